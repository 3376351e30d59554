"""The vault on libsodium: XChaCha20-Poly1305 with a random nonce and associated data.

Format: one byte ``1``, 8 bytes of the key's id, 24 of nonce, then the ciphertext with its 16-byte tag.
https://doc.libsodium.org/secret-key_cryptography/aead/chacha20-poly1305/xchacha20-poly1305_construction
"""

from __future__ import annotations

import binascii
import logging
import os
import stat
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nacl import bindings, pwhash
from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_KEYBYTES as KEY_BYTES
from nacl.encoding import RawEncoder
from nacl.exceptions import CryptoError
from nacl.hash import blake2b
from nacl.utils import random

from builderd.domain.errors import EngineUnavailable, ValidationFailed
from builderd.linux import atomic_files

ID_BYTES = 8


@dataclass(frozen=True, slots=True)
class Key:
    """32 random bytes. The repr shows only the id."""

    material: bytes

    @classmethod
    def new(cls) -> Key:
        return cls(random(KEY_BYTES))

    @classmethod
    def from_text(cls, text: str) -> Key:
        """Parse base64, as ``text`` writes it. Raises ``ValueError``."""
        try:
            material = b64decode(text.strip(), validate=True)
        except binascii.Error:
            material = b""
        if len(material) != KEY_BYTES:
            raise ValueError(
                f"a key of the vault is {KEY_BYTES} bytes in base64, as `openssl rand -base64 32` makes one"
            )
        return cls(material)

    @property
    def text(self) -> str:
        return b64encode(self.material).decode()

    @property
    def id(self) -> bytes:
        """A hash that names the key without revealing it (BLAKE2b, with a "person" string of its own)."""
        return blake2b(self.material, digest_size=ID_BYTES, person=b"builderd-vault", encoder=RawEncoder)

    def __repr__(self) -> str:
        return f"Key({self.id.hex()})"


class Keys(Protocol):
    def load(self) -> Sequence[Key]:
        """Return at least one key, made if there is none: the first seals, all open."""

    def existing(self) -> Sequence[Key]:
        """Return the keys that exist, and create none."""


@dataclass(frozen=True, slots=True)
class ConfiguredKeys:
    """Keys from the settings, which the operator keeps elsewhere."""

    keys: tuple[Key, ...]

    def load(self) -> Sequence[Key]:
        return self.keys

    def existing(self) -> Sequence[Key]:
        return self.keys


class KeyFile:
    """A file with one base64 key a line; the first seals. Mode 600, created at the first need.

    It is read again when it changed, so that a running service follows a key rotation.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keys: Sequence[Key] = ()
        self._stamp: tuple[int, int, int] | None = None

    def load(self) -> Sequence[Key]:
        """Return the keys. Raises ``ValidationFailed`` if others may read the file, or it has no keys."""
        if keys := self.existing():
            return keys
        self._make([Key.new()], replacing=False)
        return self.existing()

    def existing(self) -> Sequence[Key]:
        """Return the keys of the file, none if there is no file. Raises like ``load``."""
        try:
            state = self._path.stat()
        except FileNotFoundError:
            return ()
        stamp = (state.st_ino, state.st_mtime_ns, state.st_size)
        if stamp != self._stamp:
            self._check(state)
            self._keys, self._stamp = self._read(), stamp
        return self._keys

    def save(self, keys: Sequence[Key]) -> None:
        """Replace all keys at once; after a crash the file has the old or the new ones."""
        self._make(keys, replacing=True)

    def _check(self, state: os.stat_result) -> None:
        if state.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise self._invalid(f"others may read it: `chmod 600 {self._path}`")

    def _read(self) -> Sequence[Key]:
        try:
            keys = [Key.from_text(line) for line in self._path.read_text().splitlines() if line.strip()]
        except ValueError as error:
            raise self._invalid(str(error)) from None
        if not keys:
            raise self._invalid("it is empty: put back the one from your backup")
        return keys

    def _make(self, keys: Sequence[Key], *, replacing: bool) -> None:
        fresh = self._path.with_name(f"{self._path.name}.{random(8).hex()}.new")
        try:
            atomic_files.write(fresh, "".join(f"{key.text}\n" for key in keys).encode())
            if replacing:
                fresh.replace(self._path)
            else:
                _link(fresh, self._path)
            # Secrets sealed with a new key would be lost if the machine failed before the file is on the disk.
            atomic_files.sync(self._path.parent)
        finally:
            fresh.unlink(missing_ok=True)

    def _invalid(self, why: str) -> ValidationFailed:
        return ValidationFailed({"vault.key_file": [f"{self._path}: {why}"]})


def _link(source: Path, target: Path) -> None:
    """Link the file unless another process was faster: two that start at once then use one key."""
    try:
        target.hardlink_to(source)
    except FileExistsError:
        return


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


#: Characters of a passphrase: a shorter one could be guessed.
MIN_LENGTH = 12
#: Argon2id's cost of each guess, which is part of the format: other limits derive other keys.
_OPERATIONS, _MEMORY = pwhash.argon2id.OPSLIMIT_MODERATE, pwhash.argon2id.MEMLIMIT_MODERATE
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
