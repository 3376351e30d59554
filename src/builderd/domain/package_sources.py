"""Private package indexes, named by the variables of a builder's credentials as pip and npm know them.

Addresses are settings of an installer; user names, passwords and tokens are secrets, which only the environment of the
installer has.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit, urlunsplit

INDEX, EXTRA_INDEX = "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"
REGISTRY, NPM_TOKEN = "NPM_CONFIG_REGISTRY", "NPM_TOKEN"
#: Variables that make a credential one of package sources.
VARIABLES = frozenset({INDEX, EXTRA_INDEX, REGISTRY, NPM_TOKEN})
#: Names of the indexes for uv: of the default one, and the beginning of the others'.
DEFAULT_NAME, EXTRA_NAME = "private", "private-extra-"


@dataclass(frozen=True, slots=True)
class PackageSources:
    """``index`` replaces the package index, ``extras`` (name → address) are asked before it; ``registry`` is npm's.

    ``secrets`` are variables of the installers' environment. ``fingerprint`` changes with the credentials, and does
    not depend on the secrets.
    """

    index: str | None
    extras: Mapping[str, str]
    registry: str | None
    has_npm_token: bool
    fingerprint: str
    secrets: Mapping[str, str] = field(repr=False)


def read_sources(values: Mapping[str, str], versions: Sequence[str]) -> PackageSources | None:
    """Return the sources that these variables name, None if they name none.

    ``versions`` name the credentials and their state. Raises ``ValueError`` with the variable and the reason.
    """
    if not VARIABLES & values.keys():
        return None
    secrets: dict[str, str] = {}
    indexes = dict(_indexes(values, secrets))
    index = indexes.pop(DEFAULT_NAME, None)
    registry = _bare(REGISTRY, values[REGISTRY])[0] if REGISTRY in values else None
    if NPM_TOKEN in values:
        secrets[NPM_TOKEN] = values[NPM_TOKEN]
    digest = hashlib.sha256(repr((index, sorted(indexes.items()), registry, sorted(versions))).encode()).hexdigest()
    return PackageSources(index, indexes, registry, NPM_TOKEN in values, digest, secrets)


def _indexes(values: Mapping[str, str], secrets: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield name and address of each Python index, and put its user and password among the secrets."""
    given = [(DEFAULT_NAME, INDEX, values[INDEX])] if INDEX in values else []
    extras = values.get(EXTRA_INDEX, "").split()
    given += [(f"{EXTRA_NAME}{number}", EXTRA_INDEX, url) for number, url in enumerate(extras, 1)]
    for name, variable, url in given:
        address, user, password = _bare(variable, url)
        prefix = f"UV_INDEX_{name.upper().replace('-', '_')}"
        if user:
            secrets[f"{prefix}_USERNAME"] = user
        if password:
            secrets[f"{prefix}_PASSWORD"] = password
        yield name, address


def _bare(variable: str, url: str) -> tuple[str, str, str]:
    """Return an address without user and password, and both of them."""
    try:
        parts = urlsplit(url.strip())
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"{variable} is no address") from error
    if parts.scheme not in ("https", "http") or not host or any(sign in host for sign in " \"'$\\"):
        raise ValueError(f"{variable} must be an address that begins with https:// or http://")
    shown = f"[{host}]" if ":" in host else host
    address = urlunsplit((parts.scheme, f"{shown}:{port}" if port else shown, parts.path, parts.query, ""))
    if any(sign.isspace() or sign in "\"'\\`$=" for sign in urlunsplit(("", "", parts.path, "", ""))):
        raise ValueError(f"{variable} has a path that no index has")
    return address, unquote(parts.username or ""), unquote(parts.password or "")
