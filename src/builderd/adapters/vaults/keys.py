"""The vault's keys, from a file or from settings; the first seals, all open."""

from __future__ import annotations

import binascii
import os
import stat
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_KEYBYTES as KEY_BYTES
from nacl.encoding import RawEncoder
from nacl.hash import blake2b
from nacl.utils import random

from builderd.domain.errors import ValidationFailed
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
        """Return the keys. Raises ``ValidationFailed`` if others may read the file, or it holds no keys."""
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
        """Replace all keys at once; after a crash the file holds the old or the new ones."""
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
