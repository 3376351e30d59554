"""What leaves the machine sealed with a passphrase: Argon2id makes the key, XChaCha20-Poly1305 seals.

Format: one byte ``1``, 16 of the salt, 24 of the nonce, then the ciphertext with its tag. Argon2id with libsodium's
"moderate" limits: 256 MiB and about a second for each guess (https://doc.libsodium.org/password_hashing/default_phf).
"""

from __future__ import annotations

from nacl import bindings, pwhash
from nacl.exceptions import CryptoError
from nacl.utils import random

from builderd.domain.errors import ValidationFailed

#: Fewer characters would be guessed.
LEAST = 12
_FORMAT = b"\x01"
_SALT = pwhash.argon2id.SALTBYTES
_NONCE = bindings.crypto_aead_xchacha20poly1305_ietf_NPUBBYTES


def seal(secret: bytes, passphrase: str, place: str) -> bytes:
    """``place`` must be named again to open it. Raises ``ValidationFailed`` for a short passphrase."""
    refuse_short(passphrase)
    salt, nonce = random(_SALT), random(_NONCE)
    key = _key(passphrase, salt)
    return (
        _FORMAT + salt + nonce + bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(secret, place.encode(), nonce, key)
    )


def refuse_short(passphrase: str) -> None:
    """Raises ``ValidationFailed``: for who would rather know before there is something to seal."""
    if len(passphrase) < LEAST:
        raise ValidationFailed({"passphrase": [f"must have at least {LEAST} characters"]})


def unseal(sealed: bytes, passphrase: str, place: str) -> bytes:
    """Raises ``ValidationFailed`` when it is another passphrase, or the bytes were changed."""
    if sealed[:1] != _FORMAT:
        raise ValidationFailed({"passphrase": ["what it seals is damaged, or of a newer builderd"]})
    salt, nonce = sealed[1 : 1 + _SALT], sealed[1 + _SALT : 1 + _SALT + _NONCE]
    text = sealed[1 + _SALT + _NONCE :]
    try:
        key = _key(passphrase, salt)
        return bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(text, place.encode(), nonce, key)
    except (CryptoError, ValueError):
        raise ValidationFailed({"passphrase": ["is not the one of this backup, or its keys are damaged"]}) from None


def _key(passphrase: str, salt: bytes) -> bytes:
    return pwhash.argon2id.kdf(
        bindings.crypto_aead_xchacha20poly1305_ietf_KEYBYTES,
        passphrase.encode(),
        salt,
        opslimit=pwhash.argon2id.OPSLIMIT_MODERATE,
        memlimit=pwhash.argon2id.MEMLIMIT_MODERATE,
    )
