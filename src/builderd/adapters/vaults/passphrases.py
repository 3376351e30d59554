"""Encryption with a passphrase, for secrets that leave the machine: Argon2id key, XChaCha20-Poly1305 cipher.

Format: one byte ``1``, 16 bytes of salt, 24 of nonce, then the ciphertext with its tag. Argon2id with libsodium's
"moderate" limits: 256 MiB and about a second for each guess (https://doc.libsodium.org/password_hashing/default_phf).
"""

from __future__ import annotations

from nacl import bindings, pwhash
from nacl.exceptions import CryptoError
from nacl.utils import random

from builderd.domain.errors import ValidationFailed

#: Characters of a passphrase: a shorter one could be guessed.
MIN_LENGTH = 12
#: Argon2id's cost of each guess, which is part of the format: other limits derive other keys.
_OPERATIONS, _MEMORY = pwhash.argon2id.OPSLIMIT_MODERATE, pwhash.argon2id.MEMLIMIT_MODERATE
_FORMAT = b"\x01"
_SALT = pwhash.argon2id.SALTBYTES
_NONCE = bindings.crypto_aead_xchacha20poly1305_ietf_NPUBBYTES


def seal(secret: bytes, passphrase: str, associated_data: str) -> bytes:
    """Encrypt the secret; ``unseal`` needs the same associated data. Raises ``ValidationFailed`` if too short."""
    check_length(passphrase)
    salt, nonce = random(_SALT), random(_NONCE)
    key = _key(passphrase, salt)
    text = bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(secret, associated_data.encode(), nonce, key)
    return _FORMAT + salt + nonce + text


def check_length(passphrase: str) -> None:
    """Raise ``ValidationFailed`` for a short passphrase; also called before there is something to seal."""
    if len(passphrase) < MIN_LENGTH:
        raise ValidationFailed({"passphrase": [f"must have at least {MIN_LENGTH} characters"]})


def unseal(sealed: bytes, passphrase: str, associated_data: str) -> bytes:
    """Return the secret. Raises ``ValidationFailed`` for another passphrase or changed bytes."""
    if sealed[:1] != _FORMAT:
        raise ValidationFailed({"passphrase": ["the sealed data is damaged, or a newer builderd wrote it"]})
    salt, nonce = sealed[1 : 1 + _SALT], sealed[1 + _SALT : 1 + _SALT + _NONCE]
    text = sealed[1 + _SALT + _NONCE :]
    try:
        key = _key(passphrase, salt)
        return bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(text, associated_data.encode(), nonce, key)
    except (CryptoError, ValueError):
        raise ValidationFailed({"passphrase": ["is not the one of this backup, or its keys are damaged"]}) from None


def _key(passphrase: str, salt: bytes) -> bytes:
    return pwhash.argon2id.kdf(
        bindings.crypto_aead_xchacha20poly1305_ietf_KEYBYTES,
        passphrase.encode(),
        salt,
        opslimit=_OPERATIONS,
        memlimit=_MEMORY,
    )
