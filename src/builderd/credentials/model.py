"""Credentials: a tenant's named secrets, handed to the builders that ask for them, and masked wherever they show.

Some name private package indexes, by variables of pip and npm. Their addresses are settings of an installer;
user names, passwords and tokens are secrets, which only the environment of the installer has.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from builderd.core.ids import BuilderId, TenantId

NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?")
MAX_VARIABLES = 100
#: Limit of all names and values of one credential together.
MAX_BYTES = 64_000
#: Limit per tenant.
MAX_CREDENTIALS = 500


@dataclass(frozen=True, slots=True)
class Credential:
    """Stored credential. ``variables`` are the names of the sealed values, in order.

    ``last_used_by`` is the builder that last started with it.
    """

    tenant_id: TenantId
    name: str
    variables: tuple[str, ...]
    sealed: bytes
    created_at: datetime
    updated_at: datetime
    last_used_at: datetime | None = None
    last_used_by: BuilderId | None = None

    @property
    def associated_data(self) -> str:
        """Associated data that the vault binds the values to."""
        return associated_data_of(self.tenant_id, self.name)


def associated_data_of(tenant_id: TenantId, name: str) -> str:
    """Return the associated data of a credential: ``credential/<tenant>/<name>``."""
    return f"credential/{tenant_id}/{name}"


def pack(values: Mapping[str, str]) -> bytes:
    """Serialize the values to the bytes that are sealed."""
    return json.dumps(dict(values), ensure_ascii=True).encode()


def unpack(packed: bytes) -> dict[str, str]:
    """The inverse of ``pack``."""
    values: dict[str, str] = json.loads(packed)
    return values


def name_error(name: str) -> str | None:
    """Return the reason to reject a name, or None."""
    if NAME.fullmatch(name):
        return None
    return "must be 1 to 63 lower-case letters, digits, - and _, and begin and end with a letter or digit"


#: Text that stands in place of a secret.
MASK = "[credential masked]"
#: Shorter values are left: they occur in ordinary text, such as `true` and `8080`.
MIN_LENGTH = 6


class Masker:
    """Hides secret values in texts, JSON documents and bytes."""

    def __init__(self, values: Iterable[str]) -> None:
        forms = sorted({form for value in values for form in _forms(value)}, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, forms))) if forms else None
        encoded = sorted((form.encode("utf-8", "surrogatepass") for form in forms), key=len, reverse=True)
        self._bytes = re.compile(b"|".join(map(re.escape, encoded))) if forms else None
        #: Bytes of the longest form.
        self._longest = len(encoded[0]) if encoded else 0

    def __bool__(self) -> bool:
        return self._pattern is not None

    def text(self, text: str) -> str:
        """Return the text without secrets."""
        return self._pattern.sub(MASK, text) if self._pattern else text

    def document(self, value: Any) -> Any:
        """Return a JSON value with all its strings masked; names of fields stay."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.document(one) for one in value]
        if isinstance(value, dict):
            return {name: self.document(one) for name, one in value.items()}
        return value

    def data(self, content: bytes) -> bytes:
        """Return bytes without secrets."""
        return self._bytes.sub(MASK.encode(), content) if self._bytes else content

    def beginning(self, content: bytes) -> tuple[bytes, bytes]:
        """Return the masked beginning of bytes that go on, and the rest, in which a secret may have begun."""
        if self._bytes is None:
            return content, b""
        safe, position, parts = len(content) - self._longest + 1, 0, list[bytes]()
        for found in self._bytes.finditer(content):
            if found.start() >= safe:
                break
            parts += [content[position : found.start()], MASK.encode()]
            position = found.end()
        end = max(position, safe)
        return b"".join([*parts, content[position:end]]), content[end:]


def _forms(value: str) -> Iterator[str]:
    """Yield the value as it may appear: whole, line by line as a log has it, in JSON and in a URL."""
    for part in {value, *value.splitlines()}:
        if len(part.strip()) >= MIN_LENGTH:
            yield from (part, json.dumps(part)[1:-1], json.dumps(part, ensure_ascii=False)[1:-1], quote(part, safe=""))


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
    given = [(DEFAULT_NAME, INDEX, values[INDEX])] if INDEX in values else []
    extras = values.get(EXTRA_INDEX, "").split()
    given += [(f"{EXTRA_NAME}{number}", EXTRA_INDEX, url) for number, url in enumerate(extras, 1)]
    indexes: dict[str, str] = {}
    secrets: dict[str, str] = {}
    for name, variable, url in given:
        indexes[name], user, password = _bare(variable, url)
        prefix = f"UV_INDEX_{name.upper().replace('-', '_')}"
        secrets |= {f"{prefix}_USERNAME": user} if user else {}
        secrets |= {f"{prefix}_PASSWORD": password} if password else {}
    index = indexes.pop(DEFAULT_NAME, None)
    registry = _bare(REGISTRY, values[REGISTRY])[0] if REGISTRY in values else None
    if NPM_TOKEN in values:
        secrets[NPM_TOKEN] = values[NPM_TOKEN]
    digest = hashlib.sha256(repr((index, sorted(indexes.items()), registry, sorted(versions))).encode()).hexdigest()
    return PackageSources(index, indexes, registry, NPM_TOKEN in values, digest, secrets)


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
