"""Strict parser of ``package.json`` and its lock, which are hostile input.

The installer gets files rewritten from the parsed dependencies only, without scripts, configuration or anything else
that npm acts on. Formats: https://docs.npmjs.com/cli/configuring-npm/package-json and …/package-lock-json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from builderd.domain.bundles import Bundle
from builderd.domain.errors import InstallFailed

FILE = "package.json"
LOCKS = ("npm-shrinkwrap.json", "package-lock.json")
MAX_BYTES = 10_000_000
MAX_PACKAGES = 20_000

#: Keys of ``package.json`` that decide what is installed; ``npm ci`` compares the lock with all of them.
DECISIVE = ("dependencies", "optionalDependencies", "devDependencies", "peerDependencies", "peerDependenciesMeta")
OVERRIDES = "overrides"

#: Paths where a lock may put a package: none outside of the folder.
NAME = r"(?:@[A-Za-z0-9_~-][\w.~-]*/)?[A-Za-z0-9_~-][\w.~-]*"
LOCK_PATH = re.compile(rf"node_modules/{NAME}(?:/node_modules/{NAME})*")
PACKAGE = re.compile(NAME)
#: A version, range or tag of the registry, or an alias. A spec that begins with a dot is a folder to npm.
REGISTRY_SPEC = re.compile(r"(?:npm:(?:@?[\w.~/-]+)(?:@[^:/]*)?|(?!\.)[^:/]*)")
REMOTE_SPEC = re.compile(r"(?:https|git\+https|github|gitlab|bitbucket):[^\s]+|[\w-][\w.-]*/[\w.-]+(?:#[^\s]*)?")
#: The value of an override that means the version in the app's own dependencies.
REFERENCE = re.compile(rf"\$(?:{NAME})")
#: The key of an override: a package, or a range of its versions.
OVERRIDDEN = re.compile(rf"(?:{NAME})(?:@(?!\.)[^:/]*)?")
MAX_NESTED = 50
PUBLIC_REGISTRY = "https://registry.npmjs.org/"


@dataclass(frozen=True, slots=True)
class NodePackages:
    """Rewritten ``manifest`` and ``lock`` for npm. ``foreign``: some code comes from outside the registry."""

    manifest: bytes
    lock: bytes | None
    foreign: bool


def read_packages(bundle: Bundle, registry: str | None, *, dev: bool = False) -> NodePackages | None:
    """Parse ``package.json`` and its lock; None without the file or without dependencies to install.

    ``dev``: those for development are to be installed too. ``registry``: the operator's registry URL, None for npm's
    default. Raises ``InstallFailed`` with file and reason.
    """
    document = _document(bundle, FILE)
    if document is None:
        return None
    if document.get("workspaces"):
        raise InstallFailed(f"{FILE}: workspaces are not supported: deploy the folder of the app's workspace.")
    manifest = {name: _dependencies(document, name) for name in DECISIVE if document.get(name)}
    overrides = document.get(OVERRIDES)
    if overrides:
        manifest[OVERRIDES] = overrides
    wanted = ("dependencies", "optionalDependencies", *(("devDependencies",) if dev else ()))
    if not any(manifest.get(name) for name in wanted):
        return None
    lock = next(filter(None, (_document(bundle, name) for name in LOCKS)), None)
    specs = [spec for name in DECISIVE for spec in _specs(manifest.get(name))]
    specs += _overriding(overrides) if overrides else ()
    foreign = any(_is_remote(spec) for spec in specs)
    foreign = foreign or (lock is not None and _check_lock(lock, registry))
    written = {"name": "app", "version": "0.0.0", "private": True, **manifest}
    return NodePackages(_json(written), _json(lock) if lock is not None else None, foreign)


def _dependencies(document: dict[str, Any], name: str) -> dict[str, Any]:
    table = document[name]
    if not isinstance(table, dict):
        raise InstallFailed(f"{FILE}: {name} must be an object.")
    if name == "peerDependenciesMeta":
        return table
    for package, spec in table.items():
        if not PACKAGE.fullmatch(package):
            raise InstallFailed(f"{FILE}: {name}: {package!r} is no name of a package.")
        _check_spec(f"{name}.{package}", spec)
    return table


def _overriding(table: Any, depth: int = 0) -> Iterator[str]:
    """Yield the specs of an overrides table and of all nested ones."""
    if not isinstance(table, dict) or depth > MAX_NESTED:
        raise InstallFailed(f"{FILE}: {OVERRIDES} must be an object, nested {MAX_NESTED} deep at most.")
    for package, value in table.items():
        if package != "." and not OVERRIDDEN.fullmatch(package):
            raise InstallFailed(f"{FILE}: {OVERRIDES}: {package!r} is no name of a package.")
        if isinstance(value, dict):
            yield from _overriding(value, depth + 1)
        elif not (isinstance(value, str) and REFERENCE.fullmatch(value)):
            _check_spec(f"{OVERRIDES}.{package}", value)
            yield value


def _check_spec(key: str, spec: Any) -> None:
    if not isinstance(spec, str) or not (REGISTRY_SPEC.fullmatch(spec) or REMOTE_SPEC.fullmatch(spec)):
        raise InstallFailed(
            f"{FILE}: {key}: {spec!r} is refused: use a version of the registry, "
            "or an https:// or git+https:// address."
        )


def _specs(table: Any) -> Iterator[str]:
    yield from (spec for spec in (table or {}).values() if isinstance(spec, str))


def _is_remote(spec: str) -> bool:
    return not REGISTRY_SPEC.fullmatch(spec)


def _check_lock(lock: dict[str, Any], registry: str | None) -> bool:
    """Return True if a package of the lock comes from outside the registry. Raises ``InstallFailed``."""
    known = tuple(filter(None, (PUBLIC_REGISTRY, registry and registry.rstrip("/") + "/")))
    packages = [*_packages(lock), *_nested(lock.get("dependencies"))]
    if len(packages) > MAX_PACKAGES:
        raise InstallFailed(f"The lock names more than {MAX_PACKAGES} packages.")
    foreign = False
    for location, package in packages:
        if package.get("link") or any(str(package.get(key, "")).startswith("file:") for key in ("resolved", "version")):
            raise InstallFailed(f"The lock takes {location!r} from a folder: only registry packages are supported.")
        resolved = package.get("resolved")
        foreign = foreign or (isinstance(resolved, str) and not resolved.startswith(known))
        foreign = foreign or _is_remote(str(package.get("version", "")))
    return foreign


def _packages(lock: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield path and entry of each package of ``lockfileVersion`` 2 and 3."""
    packages = lock.get("packages", {})
    if not isinstance(packages, dict):
        raise InstallFailed("The lock is damaged: run `npm install` again.")
    for location, package in packages.items():
        if not isinstance(package, dict) or (location and not LOCK_PATH.fullmatch(location)):
            raise InstallFailed(f"The lock puts a package at {location!r}, outside of node_modules.")
        if location:
            yield location, package


def _nested(table: Any, depth: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and entry of each package of ``lockfileVersion`` 1, where packages nest."""
    if table is None:
        return
    if not isinstance(table, dict) or depth > MAX_NESTED:
        raise InstallFailed("The lock is damaged: run `npm install` again.")
    for name, package in table.items():
        if not PACKAGE.fullmatch(name) or not isinstance(package, dict):
            raise InstallFailed(f"The lock names a package {name!r}, which is no name of one.")
        yield name, package
        yield from _nested(package.get("dependencies"), depth + 1)


def _document(bundle: Bundle, path: str) -> dict[str, Any] | None:
    file = bundle.file(path)
    if file is None:
        return None
    if file.size > MAX_BYTES:
        raise InstallFailed(f"{path} is larger than {MAX_BYTES} bytes.")
    try:
        document = json.loads(file.content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        cure = "make it anew (npm install --package-lock-only)" if "lock" in path or "shrinkwrap" in path else "mend it"
        raise InstallFailed(f"{path} is not JSON: {error}: {cure}.") from None
    if not isinstance(document, dict):
        raise InstallFailed(f"{path} must hold a JSON object.")
    return document


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, indent=1, sort_keys=True).encode()
