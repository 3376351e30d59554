"""Hints for a package tool that found no ``package.json`` or no script of the asked name. Pure.

Reads the tool's own message and the version's files. Both are untrusted: a name is repeated only if it looks like one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from builderd.domain.bundles import Bundle

#: Only this many bytes of a manifest are read.
MAX_MANIFEST_BYTES = 1_000_000
FILE = "package.json"
MAX_NAMED = 8
#: Folders whose ``package.json`` belongs to something else.
_OTHERS = re.compile(r"(?:^|/)(?:node_modules|\.[^/]*)/")
#: npm takes the lowest folder that has the file or ``node_modules``: the root, in an instance of Incus.
_NO_PACKAGE = re.compile(r"open '/(?:app/(?P<folder>(?:[A-Za-z0-9_.@+-]{1,100}/){0,10})|/)package\.json'")
_NO_SCRIPT = re.compile(r"Missing script: \"?(?P<name>[A-Za-z0-9_.:@/-]{1,100})")
_NAME = re.compile(r"[A-Za-z0-9_.:@/-]{1,60}")


def script_hint(line: str, bundle: Bundle | None, root: str = "") -> str:
    """Return the cure if this line is such a message, else "". The bundle's paths are relative to the ``root``."""
    if match := _NO_PACKAGE.search(line):
        return _for_package((match["folder"] or "").rstrip("/"), bundle, root)
    if match := _NO_SCRIPT.search(line):
        return _for_script(match["name"], bundle)
    return ""


def _for_package(folder: str, bundle: Bundle | None, root: str) -> str:
    folder = f"{folder}/".removeprefix(f"{root}/").strip("/")
    where = f"There is no {folder}/{FILE}" if folder else f"There is no {FILE} at the top of the files"
    folders = _folders(bundle)
    if not folders:
        return f"{where}: send it, or use a command that needs none."
    found = [f"{root}/{one}".lstrip("/") for one in folders]
    choice = f"in {found[0]}" if len(found) == 1 else f"in {', '.join(found)}"
    return f'{where}, but there is one {choice}: deploy with "root": "{found[0]}" (builderd deploy --root {found[0]}).'


def _for_script(name: str, bundle: Bundle | None) -> str:
    known = _scripts(bundle)
    if known is None:
        return f'{FILE} has no script "{name}": add it to "scripts", or use the name of one that is there.'
    if not known:
        return f'{FILE} has no scripts: add "{name}" to its "scripts", or name the program itself (node server.js).'
    shown = ", ".join(known[:MAX_NAMED]) + (", …" if len(known) > MAX_NAMED else "")
    return f'{FILE} has no script "{name}". It has {shown}: use npm run {known[0]}, or add "{name}" to its "scripts".'


def _scripts(bundle: Bundle | None) -> Sequence[str] | None:
    """Return the names of the scripts, those that serve an app first; None if there is no file that can be read."""
    file = bundle.file(FILE) if bundle is not None else None
    if file is None:
        return None
    try:
        scripts = json.loads(file.head(MAX_MANIFEST_BYTES))["scripts"]
    except KeyError:
        return ()
    except (ValueError, RecursionError, TypeError):
        return None
    names = [name for name in scripts if _NAME.fullmatch(name)] if isinstance(scripts, dict) else []
    return sorted(names, key=lambda name: _SERVES.index(name) if name in _SERVES else len(_SERVES))


#: Usual names of scripts that serve an app, the likeliest first.
_SERVES = ("start", "serve", "preview", "prod", "start:prod", "server", "dev", "develop")


def _folders(bundle: Bundle | None) -> list[str]:
    """Return the folders below the top that have a ``package.json``, the highest first."""
    paths = [file.path for file in bundle.files] if bundle is not None else []
    folders = [
        path.removesuffix(f"/{FILE}") for path in paths if path.endswith(f"/{FILE}") and not _OTHERS.search(path)
    ]
    named = [folder for folder in folders if _NAME.fullmatch(folder)]
    return sorted(named, key=lambda folder: (folder.count("/"), folder))[:MAX_NAMED]
