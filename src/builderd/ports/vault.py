"""The vault: what is kept secret is sealed before it is stored, and opened only where it is used."""

from __future__ import annotations

from typing import Protocol


class Vault(Protocol):
    """Both calls are quick and do not wait; what is sealed is longer than the secret by some 50 bytes."""

    def seal(self, secret: bytes, place: str) -> bytes:
        """The secret, encrypted and bound to ``place``: it cannot be opened for another one.

        A place is where it is stored, such as ``credential/<tenant>/<name>``.
        """

    def open(self, sealed: bytes, place: str) -> bytes:
        """The secret. Raises ``EngineUnavailable`` when its key is not here, or it was damaged or moved."""

    def is_current(self, sealed: bytes) -> bool:
        """Whether it is sealed with the key that ``seal`` uses now; after a rotation it is not, until sealed anew."""
