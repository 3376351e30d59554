"""Contexts: services that the user is signed in to, in a file of mode 600 in the platform's configuration folder.

Where the machine has a keyring (the package ``keyring`` with a usable backend), the token is kept there instead.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from platformdirs import user_config_path

from builderd.client.kept import replace_file

KEYRING = "keyring"
SERVICE = "builderd"


@dataclass(frozen=True, slots=True)
class Context:
    """A service, and the token for it. ``kept_in`` is ``file`` or ``keyring``."""

    name: str
    url: str
    token: str
    ca: str | None = None
    kept_in: str = "file"


@dataclass(slots=True)
class Contexts:
    """All contexts, and the one in use."""

    current: str = ""
    known: dict[str, dict[str, Any]] = field(default_factory=dict)

    def get(self, name: str | None = None) -> Context | None:
        """Return a context, by default the one in use; None if there is none of this name."""
        found = self.known.get(name or self.current)
        if found is None:
            return None
        context = Context(name or self.current, **found)
        if context.kept_in == KEYRING:
            secret = _keyring().get_password(SERVICE, context.name) or ""
            context = Context(context.name, context.url, secret, context.ca, KEYRING)
        return context

    def put(self, context: Context) -> None:
        """Keep a context and use it."""
        kept = asdict(context)
        del kept["name"]
        keyring = _keyring()
        if keyring is not None:
            keyring.set_password(SERVICE, context.name, context.token)
            kept |= {"token": "", "kept_in": KEYRING}
        self.known[context.name] = kept
        self.current = context.name

    def remove(self, name: str) -> None:
        """Forget a context and its token."""
        if self.known.pop(name, {}).get("kept_in") == KEYRING:
            _keyring().delete_password(SERVICE, name)
        if self.current == name:
            self.current = next(iter(self.known), "")


def location() -> Path:
    """Return the file of contexts."""
    return user_config_path("builderd") / "contexts.json"


def load() -> Contexts:
    """Return the contexts; none where the file is missing."""
    try:
        text = location().read_text()
    except FileNotFoundError:
        return Contexts()
    try:
        return Contexts(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise OSError(
            5, f"is no file of contexts ({error}): remove it and run `builderd login`", str(location())
        ) from error


@contextmanager
def changed() -> Iterator[Contexts]:
    """Yield the contexts, and write them when the block ends without an error."""
    contexts = load()
    yield contexts
    file = location()
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    replace_file(file, json.dumps(asdict(contexts), indent=2))


def _keyring() -> Any:
    """Return the keyring's module, None where it is not installed or has no usable backend."""
    try:
        keyring = import_module("keyring")
        return keyring if keyring.get_keyring().priority >= 1 else None
    except (ImportError, RuntimeError, AttributeError):
        return None
