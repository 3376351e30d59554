"""The vault on libsodium: XChaCha20-Poly1305 with a random nonce and associated data.

Format: one byte ``1``, 8 bytes of the key's id, 24 of nonce, then the ciphertext with its 16-byte tag.
https://doc.libsodium.org/secret-key_cryptography/aead/chacha20-poly1305/xchacha20-poly1305_construction
"""

from __future__ import annotations

import logging
import stat
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nacl import pwhash
from nacl.encoding import RawEncoder
from nacl.exceptions import CryptoError
from nacl.hash import blake2b
from nacl.secret import Aead
from nacl.utils import random

from builderd.core.errors import EngineUnavailable, ValidationFailed
from builderd.linux import atomic_files

KEY_BYTES, ID_BYTES = Aead.KEY_SIZE, 8
#: Seconds after which a caller may try again while the keys cannot be read.
RETRY_SECONDS = 30
_FORMAT = b"\x01"
_HEADER = len(_FORMAT) + ID_BYTES
_MIN_BYTES = _HEADER + Aead.NONCE_SIZE + Aead.MACBYTES
#: Characters of a passphrase: a shorter one could be guessed.
MIN_LENGTH = 12
#: Argon2id's cost of each guess, which is part of the format: other limits derive other keys.
_OPERATIONS, _MEMORY = pwhash.argon2id.OPSLIMIT_MODERATE, pwhash.argon2id.MEMLIMIT_MODERATE
_SALT = pwhash.argon2id.SALTBYTES

log = logging.getLogger(__name__)


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
        wrong = f"a key of the vault is {KEY_BYTES} bytes in base64, as `openssl rand -base64 32` makes one"
        try:
            material = b64decode(text.strip(), validate=True)
        except ValueError:
            raise ValueError(wrong) from None
        if len(material) != KEY_BYTES:
            raise ValueError(wrong)
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


@dataclass(frozen=True, slots=True)
class ConfiguredKeys:
    """Keys from the settings, which the operator keeps elsewhere."""

    keys: tuple[Key, ...]

    def load(self) -> Sequence[Key]:
        return self.keys

    def existing(self) -> Sequence[Key]:
        return self.keys


class KeyFile:
    """A file with one base64 key a line; the first seals, all open. Mode 600, created at the first need.

    It is read again when it changed, so that a running service follows a key rotation.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keys: Sequence[Key] = ()
        self._stamp: tuple[int, int, int] | None = None

    def load(self) -> Sequence[Key]:
        """Return at least one key, made if there is none.

        Raises ``ValidationFailed`` if others may read the file, or it has no keys.
        """
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
            if state.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise self._invalid(f"others may read it: `chmod 600 {self._path}`")
            self._keys, self._stamp = self._read(), stamp
        return self._keys

    def save(self, keys: Sequence[Key]) -> None:
        """Replace all keys at once; after a crash the file has the old or the new ones."""
        self._make(keys, replacing=True)

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
                # Two services that start at once then use one key.
                with suppress(FileExistsError):
                    self._path.hardlink_to(fresh)
            # Secrets sealed with a new key would be lost if the machine failed before the file is on the disk.
            atomic_files.sync(self._path.parent)
        finally:
            fresh.unlink(missing_ok=True)

    def _invalid(self, why: str) -> ValidationFailed:
        return ValidationFailed({"vault.key_file": [f"{self._path}: {why}"]})


class SodiumVault:
    """Implements ``ports.outside.Vault``."""

    def __init__(self, keys: ConfiguredKeys | KeyFile) -> None:
        self._keys = keys

    def seal(self, secret: bytes, associated_data: str) -> bytes:
        """Seal a secret: encrypt it and authenticate it together with its associated data."""
        key = self._read(self._keys.load)[0]
        return _FORMAT + key.id + Aead(key.material).encrypt(secret, associated_data.encode())

    def open(self, sealed: bytes, associated_data: str) -> bytes:
        name = key_id(sealed)
        if name is None:
            raise EngineUnavailable("A stored secret is damaged: write it again.")
        key = next((key for key in self._read(self._keys.load) if key.id == name), None)
        if key is None:
            raise EngineUnavailable(
                f"A stored secret is sealed with the key {name.hex()}, which this service lacks: put its key file back."
            )
        try:
            return Aead(key.material).decrypt(sealed[_HEADER:], associated_data.encode())
        except CryptoError:
            raise EngineUnavailable(f"The secret of {associated_data} is damaged: write it again.") from None

    def check(self) -> None:
        self._read(self._keys.existing)

    def is_current(self, sealed: bytes) -> bool:
        return sealed[len(_FORMAT) : _HEADER] == self._read(self._keys.load)[0].id

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


def seal(secret: bytes, passphrase: str, associated_data: str) -> bytes:
    """Encrypt the secret; ``unseal`` needs the same associated data. Raises ``ValidationFailed`` if too short."""
    check_length(passphrase)
    salt = random(_SALT)
    return _FORMAT + salt + _aead(passphrase, salt).encrypt(secret, associated_data.encode())


def check_length(passphrase: str) -> None:
    """Raise ``ValidationFailed`` for a short passphrase; also called before there is something to seal."""
    if len(passphrase) < MIN_LENGTH:
        raise ValidationFailed({"passphrase": [f"must have at least {MIN_LENGTH} characters"]})


def unseal(sealed: bytes, passphrase: str, associated_data: str) -> bytes:
    """Return the secret. Raises ``ValidationFailed`` for another passphrase or changed bytes."""
    if sealed[:1] != _FORMAT:
        raise ValidationFailed({"passphrase": ["the sealed data is damaged, or a newer builderd wrote it"]})
    try:
        aead = _aead(passphrase, sealed[1 : 1 + _SALT])
        return aead.decrypt(sealed[1 + _SALT :], associated_data.encode())
    except (CryptoError, ValueError):
        raise ValidationFailed({"passphrase": ["is not the one of this backup, or its keys are damaged"]}) from None


def _aead(passphrase: str, salt: bytes) -> Aead:
    return Aead(pwhash.argon2id.kdf(KEY_BYTES, passphrase.encode(), salt, opslimit=_OPERATIONS, memlimit=_MEMORY))
