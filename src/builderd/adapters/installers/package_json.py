"""Node projects: ``package.json`` and its lock, read with suspicion.

What is understood of them is written anew for the installer, without scripts, configuration or anything else that
npm might act on. Formats: https://docs.npmjs.com/cli/configuring-npm/package-json and …/package-lock-json.
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

#: What of a ``package.json`` decides what is installed; ``npm ci`` holds the lock against all of it.
DECISIVE = ("dependencies", "optionalDependencies", "devDependencies", "peerDependencies", "peerDependenciesMeta")
OVERRIDES = "overrides"

#: Where a lock may put a package: nothing that leads out of the folder.
NAME = r"(?:@[A-Za-z0-9_~-][\w.~-]*/)?[A-Za-z0-9_~-][\w.~-]*"
PLACE = re.compile(rf"node_modules/{NAME}(?:/node_modules/{NAME})*")
PACKAGE = re.compile(NAME)
#: A version, range or tag of the registry, or another name for one. What begins with a dot is a folder to npm.
REGISTRY_SPEC = re.compile(r"(?:npm:(?:@?[\w.~/-]+)(?:@[^:/]*)?|(?!\.)[^:/]*)")
REMOTE_SPEC = re.compile(r"(?:https|git\+https|github|gitlab|bitbucket):[^\s]+|[\w-][\w.-]*/[\w.-]+(?:#[^\s]*)?")
#: Of an override: the version that the app itself asks for.
REFERENCE = re.compile(rf"\$(?:{NAME})")
#: What an override is of: a package, or those of its versions.
OVERRIDDEN = re.compile(rf"(?:{NAME})(?:@(?!\.)[^:/]*)?")
MAX_NESTED = 50
PUBLIC_REGISTRY = "https://registry.npmjs.org/"


@dataclass(frozen=True, slots=True)
class NodePackages:
    """``manifest`` and ``lock`` as the installer gets them. ``foreign``: some code comes from outside the registry."""

    manifest: bytes
    lock: bytes | None
    foreign: bool


def read_packages(bundle: Bundle, registry: str | None) -> NodePackages | None:
    """What ``package.json`` asks for, or None where there is none, or it asks for nothing that an app needs.

    ``registry`` is the operator's, None for npm's own. Raises ``InstallFailed`` with the file and the reason.
    """
    document = _document(bundle, FILE)
    if document is None:
        return None
    if document.get("workspaces"):
        raise InstallFailed(f"{FILE}: workspaces are not installed: deploy the folder of the one that is the app.")
    manifest = {name: _dependencies(document, name) for name in DECISIVE if document.get(name)}
    overrides = document.get(OVERRIDES)
    if overrides:
        manifest[OVERRIDES] = overrides
    if not any(manifest.get(name) for name in ("dependencies", "optionalDependencies")):
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
    """The specs that stand in for others, of this table and all within it."""
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


def _check_spec(place: str, spec: Any) -> None:
    if not isinstance(spec, str) or not (REGISTRY_SPEC.fullmatch(spec) or REMOTE_SPEC.fullmatch(spec)):
        raise InstallFailed(
            f"{FILE}: {place}: {spec!r} is refused: only versions of the registry, "
            "https:// and git+https:// addresses can be installed."
        )


def _specs(table: Any) -> Iterator[str]:
    yield from (spec for spec in (table or {}).values() if isinstance(spec, str))


def _is_remote(spec: str) -> bool:
    return not REGISTRY_SPEC.fullmatch(spec)


def _check_lock(lock: dict[str, Any], registry: str | None) -> bool:
    """Whether something of it comes from elsewhere than the registry."""
    known = tuple(filter(None, (PUBLIC_REGISTRY, registry and registry.rstrip("/") + "/")))
    packages = [*_packages(lock), *_nested(lock.get("dependencies"))]
    if len(packages) > MAX_PACKAGES:
        raise InstallFailed(f"The lock names more than {MAX_PACKAGES} packages.")
    foreign = False
    for place, package in packages:
        if package.get("link") or any(str(package.get(key, "")).startswith("file:") for key in ("resolved", "version")):
            raise InstallFailed(f"The lock takes {place!r} from a folder: only packages of the registry are installed.")
        resolved = package.get("resolved")
        foreign = foreign or (isinstance(resolved, str) and not resolved.startswith(known))
        foreign = foreign or _is_remote(str(package.get("version", "")))
    return foreign


def _packages(lock: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Of ``lockfileVersion`` 2 and 3."""
    packages = lock.get("packages", {})
    if not isinstance(packages, dict):
        raise InstallFailed("The lock is damaged: run `npm install` again.")
    for place, package in packages.items():
        if not isinstance(package, dict) or (place and not PLACE.fullmatch(place)):
            raise InstallFailed(f"The lock puts a package at {place!r}, outside of node_modules.")
        if place:
            yield place, package


def _nested(table: Any, depth: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """Of ``lockfileVersion`` 1, where packages hold packages."""
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
        raise InstallFailed(f"{path} is not JSON: {error}.") from None
    if not isinstance(document, dict):
        raise InstallFailed(f"{path} must hold a JSON object.")
    return document


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, indent=1, sort_keys=True).encode()
