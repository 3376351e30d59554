"""The vault on libsodium: XChaCha20-Poly1305 with a random nonce, the place as associated data.

Format: one byte ``1``, 8 bytes of the key's id, 24 of the nonce, then the ciphertext with its tag of 16.
https://doc.libsodium.org/secret-key_cryptography/aead/chacha20-poly1305/xchacha20-poly1305_construction
"""

from __future__ import annotations

from nacl import bindings
from nacl.exceptions import CryptoError
from nacl.utils import random

from builderd.adapters.vaults.keys import ID_BYTES, GivenKeys, Key, Keys
from builderd.domain.errors import EngineUnavailable

_FORMAT = b"\x01"
_NONCE_BYTES = bindings.crypto_aead_xchacha20poly1305_ietf_NPUBBYTES
_HEAD = len(_FORMAT) + ID_BYTES
_LEAST = _HEAD + _NONCE_BYTES + bindings.crypto_aead_xchacha20poly1305_ietf_ABYTES


class SodiumVault:
    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def seal(self, secret: bytes, place: str) -> bytes:
        key, nonce = self._keys.load()[0], random(_NONCE_BYTES)
        text = bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(secret, place.encode(), nonce, key.material)
        return _FORMAT + key.id + nonce + text

    def open(self, sealed: bytes, place: str) -> bytes:
        key = self._key_of(sealed)
        nonce, text = sealed[_HEAD : _HEAD + _NONCE_BYTES], sealed[_HEAD + _NONCE_BYTES :]
        try:
            return bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(text, place.encode(), nonce, key.material)
        except CryptoError:
            raise EngineUnavailable(f"The secret of {place} is damaged: write it again.") from None

    def is_current(self, sealed: bytes) -> bool:
        return sealed[len(_FORMAT) : _HEAD] == self._keys.load()[0].id

    def _key_of(self, sealed: bytes) -> Key:
        name = key_id(sealed)
        if name is None:
            raise EngineUnavailable("A stored secret is damaged: write it again.")
        for key in self._keys.load():
            if key.id == name:
                return key
        raise EngineUnavailable(
            f"A stored secret is sealed with the key {name.hex()}, which is not here: put its file back."
        )


def key_id(sealed: bytes) -> bytes | None:
    """Of the key that it is sealed with; None for what is damaged, which no key opens."""
    return sealed[len(_FORMAT) : _HEAD] if sealed[: len(_FORMAT)] == _FORMAT and len(sealed) >= _LEAST else None


def in_memory() -> SodiumVault:
    """A vault whose key ends with the process: the fake of this port is the real one."""
    return SodiumVault(GivenKeys((Key.new(),)))
