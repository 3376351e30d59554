"""The vault: secrets are sealed before they are stored, and opened only where they are used."""

from __future__ import annotations

from typing import Protocol


class Vault(Protocol):
    """Authenticated encryption. All calls are quick and do not block; sealing adds some 50 bytes."""

    def seal(self, secret: bytes, associated_data: str) -> bytes:
        """Encrypt the secret and bind it to the associated data: it opens only with the same.

        Associated data names where the secret is stored, such as ``credential/<tenant>/<name>``.
        """

    def open(self, sealed: bytes, associated_data: str) -> bytes:
        """Return the secret. Raises ``EngineUnavailable``: its key is missing, or it was damaged or moved."""

    def check(self) -> None:
        """Raise ``EngineUnavailable`` if the keys cannot be read. Makes no key."""

    def is_current(self, sealed: bytes) -> bool:
        """Return True if it is sealed with the key that ``seal`` uses now: False after a rotation, until resealed."""
