"""The vault on libsodium: XChaCha20-Poly1305 with a random nonce and associated data.

Format: one byte ``1``, 8 bytes of the key's id, 24 of nonce, then the ciphertext with its 16-byte tag.
https://doc.libsodium.org/secret-key_cryptography/aead/chacha20-poly1305/xchacha20-poly1305_construction
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from nacl import bindings
from nacl.exceptions import CryptoError
from nacl.utils import random

from builderd.adapters.vaults.keys import ID_BYTES, ConfiguredKeys, Key, Keys
from builderd.domain.errors import EngineUnavailable, ValidationFailed

log = logging.getLogger(__name__)

#: Seconds after which a caller may try again while the keys cannot be read.
RETRY_SECONDS = 30
_FORMAT = b"\x01"
_NONCE_BYTES = bindings.crypto_aead_xchacha20poly1305_ietf_NPUBBYTES
_HEADER = len(_FORMAT) + ID_BYTES
_MIN_BYTES = _HEADER + _NONCE_BYTES + bindings.crypto_aead_xchacha20poly1305_ietf_ABYTES


class SodiumVault:
    """Implements ``ports.vault.Vault``."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def seal(self, secret: bytes, associated_data: str) -> bytes:
        """Seal a secret: encrypt it and authenticate it together with its associated data."""
        key, nonce = self._load()[0], random(_NONCE_BYTES)
        data = associated_data.encode()
        text = bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(secret, data, nonce, key.material)
        return _FORMAT + key.id + nonce + text

    def open(self, sealed: bytes, associated_data: str) -> bytes:
        key, data = self._key_of(sealed), associated_data.encode()
        nonce, text = sealed[_HEADER : _HEADER + _NONCE_BYTES], sealed[_HEADER + _NONCE_BYTES :]
        try:
            return bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(text, data, nonce, key.material)
        except CryptoError:
            raise EngineUnavailable(f"The secret of {associated_data} is damaged: write it again.") from None

    def check(self) -> None:
        self._read(self._keys.existing)

    def is_current(self, sealed: bytes) -> bool:
        return sealed[len(_FORMAT) : _HEADER] == self._load()[0].id

    def _key_of(self, sealed: bytes) -> Key:
        name = key_id(sealed)
        if name is None:
            raise EngineUnavailable("A stored secret is damaged: write it again.")
        for key in self._load():
            if key.id == name:
                return key
        raise EngineUnavailable(
            f"A stored secret is sealed with the key {name.hex()}, which this service lacks: put its key file back."
        )

    def _load(self) -> Sequence[Key]:
        return self._read(self._keys.load)

    def _read(self, read: Callable[[], Sequence[Key]]) -> Sequence[Key]:
        """Return the keys. Raises ``EngineUnavailable`` while they cannot be read: no caller can mend that."""
        try:
            return read()
        except (ValidationFailed, OSError) as error:
            # Path and mode of the file are the operator's: callers get this error, too.
            log.warning("vault key cannot be read error=%s", getattr(error, "message", error))
            raise EngineUnavailable(
                "The vault's key cannot be read: its operator finds the cause in the service's log.",
                retry_after=RETRY_SECONDS,
            ) from None


def key_id(sealed: bytes) -> bytes | None:
    """Return the id of the key that sealed it; None if it is damaged, so that no key opens it."""
    is_whole = sealed[: len(_FORMAT)] == _FORMAT and len(sealed) >= _MIN_BYTES
    return sealed[len(_FORMAT) : _HEADER] if is_whole else None


def in_memory() -> SodiumVault:
    """Return a vault with a key that ends with the process: this port needs no fake."""
    return SodiumVault(ConfiguredKeys((Key.new(),)))
