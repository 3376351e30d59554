"""Hints for installs that failed: which file and line asked for it, and what to write instead. Pure.

Reads the installer's output, which is untrusted: it is only searched, and a name is repeated only if it looks like one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from builderd.domain.bundles import Bundle
from builderd.domain.version_pins import PYTHON

#: Only so many bytes of all manifests together, and characters of the output, are searched.
MAX_BYTES, MAX_OUTPUT = 1_000_000, 20_000
#: Files that name Python packages, in the order in which they are read, and all files of requirements.
_PYTHON_FILES = ("requirements.txt", "pyproject.toml", "pylock.toml", "Pipfile.lock", "setup.py", "setup.cfg")
_NODE_FILES = ("package.json",)

_NAME = r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,100})(?:\[[^\]]{0,100}\])?"
_VERSION = r"[A-Za-z0-9][A-Za-z0-9.!+_-]{0,50}"
_NO_VERSION = re.compile(rf"there is no version of {_NAME}==(?P<version>{_VERSION})")
_ONLY = re.compile(rf"only {_NAME}\s?<?=+(?P<newest>{_VERSION}) is available")
_NO_PACKAGE = re.compile(rf"\b{_NAME} was not found in the (?:package registry|provided package locations)")
_OTHER_PYTHON = re.compile(
    r"current Python version \([\d.]{1,20}\) does not satisfy Python(?P<wanted>[<>=!~\d.,]{1,50})"
)
_NPM_NAME = r"(?P<name>(?:@[a-z0-9_~-][\w.~-]{0,100}/)?[A-Za-z0-9_~-][\w.~-]{0,100})"
_NPM_NO_VERSION = re.compile(rf"No matching version found for {_NPM_NAME}@(?P<version>[!#-&(-~]{{1,50}}?)\.?(?:\s|$)")
_NPM_NO_PACKAGE = re.compile(rf"'{_NPM_NAME}@[^'\s]{{0,50}}' is not in (?:this|the npm) registry")
_NPM_OUT_OF_SYNC = re.compile(r"can only install packages when your package\.json and ")
_NO_LOGIN = re.compile(
    r"\b40[13] (?:Unauthorized|Forbidden)|\bE40[13]\b|lack of valid authentication credentials", re.IGNORECASE
)
#: What a build from source says that lacks a compiler or another program.
_BUILT = re.compile(rf"Failed to (?:download and )?build `?{_NAME}")
_COMPILER = re.compile(
    r"(?:command '(?P<name>[\w.+-]{1,40})' failed: No such file|No such file or directory: '(?P<file>[\w.+-]{1,40})'"
    r"|(?:error: )?(?:Unable to find|No) (?:a )?(?:working )?(?:C|C\+\+) compiler|can't find Rust compiler"
    r"|(?P<tool>cargo|cmake|gcc|g\+\+|rustc): (?:command )?not found|(?P<program>[\w.+-]{1,40}) executable not found"
    r"|unknown compiler\(s\)|linker `cc` not found)",
    re.IGNORECASE,
)
_EXCLUDED = re.compile(
    rf"Because {_NAME}(?:==(?P<version>{_VERSION}))? depends on "
    r"(?P<needed>[A-Za-z0-9][A-Za-z0-9._-]{0,100})(?P<range>[<>=!~][^\s]{0,50})?(?: and|,)"
)


def install_hint(output: Sequence[str], bundle: Bundle) -> str:
    """Return a sentence that names the cause, the file with its line and the change; "" if the output does not tell."""
    text = " ".join("\n".join(output)[-MAX_OUTPUT:].split())
    return next(_hints(text, bundle), "")


def _hints(text: str, bundle: Bundle) -> Iterator[str]:
    if _NO_LOGIN.search(text):  # an index that refuses seems to have no packages
        yield (
            "A package index refused the login: name it by a credential with its user and password (builderd "
            "credentials set index PIP_INDEX_URL; PIP_EXTRA_INDEX_URL, or NPM_CONFIG_REGISTRY with NPM_TOKEN), and "
            'list that in "credentials".'
        )
    yield from _python_hints(text, bundle)
    yield from _node_hints(text, bundle)


def _python_hints(text: str, bundle: Bundle) -> Iterator[str]:
    if match := _NO_PACKAGE.search(text):
        where = _asked(match["name"], bundle, _PYTHON_FILES)
        yield f"{where}: the package index has no package {match['name']}. Correct its name, or take it out."
    if match := _NO_VERSION.search(text) or _ONLY.search(text):
        yield _for_version(match["name"], match.groupdict().get("version"), text, bundle)
    if match := _OTHER_PYTHON.search(text):
        here = f"{PYTHON[0]}.{PYTHON[1]}"
        yield f"A package needs Python {match['wanted']}, and {here} runs here: ask for a version of it for {here}."
    if (match := _COMPILER.search(text)) and (built := _BUILT.search(text)):
        tool = match["name"] or match["file"] or match["tool"] or match["program"] or "compiler"
        yield (
            f"{_asked(built['name'], bundle, _PYTHON_FILES)}: {built['name']} is built from source, and there is no "
            f"{tool} here. Ask for a version that has wheels for this Python, or for a package that brings its "
            "binaries (psycopg2-binary in place of psycopg2)."
        )
    if match := _EXCLUDED.search(text):
        asked = f"{match['name']}=={match['version']}" if match["version"] else match["name"]
        yield (
            f"{_asked(match['needed'], bundle, _PYTHON_FILES)}: {match['needed']} does not fit {asked}, which needs "
            f"{match['needed']}{match['range'] or ''}. Change one of the two versions, or name both without one."
        )


def _node_hints(text: str, bundle: Bundle) -> Iterator[str]:
    if match := _NPM_NO_VERSION.search(text):
        where = _asked(match["name"], bundle, _NODE_FILES)
        yield (
            f"{where}: there is no version {match['version']} of {match['name']}. Write one that exists "
            f'(npm view {match["name"]} versions), or "*" for the newest.'
        )
    if match := _NPM_NO_PACKAGE.search(text):
        where = _asked(match["name"], bundle, _NODE_FILES)
        yield f"{where}: the registry has no package {match['name']}. Correct its name, or take it out."
    if _NPM_OUT_OF_SYNC.search(text):
        yield (
            "package-lock.json does not fit package.json: make it anew (npm install --package-lock-only), "
            "and deploy both."
        )


def _for_version(name: str, version: str | None, text: str, bundle: Bundle) -> str:
    where = _asked(name, bundle, _PYTHON_FILES)
    wanted = f"no version {version} of {name}" if version else f"no version of {name} that is asked for"
    newest = next((match["newest"] for match in _ONLY.finditer(text) if match["name"] == name), None)
    if newest:
        return f"{where}: there is {wanted}. The newest is {newest}: write {name}=={newest}, or {name} alone."
    return f"{where}: there is {wanted}. Write one that exists, or {name} alone for the newest."


def _asked(name: str, bundle: Bundle, files: Sequence[str]) -> str:
    """Return ``file, line N`` of the first file that names the package, else that another package asks for it."""
    mention, left = _mention_of(name), MAX_BYTES
    for path in (*files, *_requirements(bundle, files)):
        file = bundle.file(path)
        content = file.head(left) if file and left else b""
        left -= len(content)
        text = content.decode(errors="replace")
        if match := mention.search(text):
            number = text.count("\n", 0, match.end()) + 1
            return f"{path}, line {number}"
    return f"{name}, which another package asks for"


def _requirements(bundle: Bundle, files: Sequence[str]) -> list[str]:
    """Return the other files of requirements, which the first may include."""
    if files is not _PYTHON_FILES:
        return []
    return [file.path for file in bundle.files if file.path.endswith(".txt") and "require" in file.path][:20]


def _mention_of(name: str) -> re.Pattern[str]:
    """Return a pattern of a line that names the package before a "#", in any spelling of PEP 503."""
    spelled = "[-_.]{1,100}".join(map(re.escape, re.split(r"[-_.]+", name.strip("-._")))) or "(?!)"
    return re.compile(rf"^[^#\n]*?(?<![\w.~/@-]){spelled}[-_.]{{0,100}}(?![\w.~/-])", re.IGNORECASE | re.MULTILINE)
