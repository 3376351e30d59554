"""Strict parser of requirements files, which are hostile input.

Each line is parsed and rewritten, and the installer gets only the rewritten lines: a line that two programs parse
differently cannot smuggle an option past this parser. The format is pip's
(https://pip.pypa.io/en/stable/reference/requirements-file-format/), its lines follow PEP 508.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from packaging.requirements import InvalidRequirement, Requirement

from builderd.domain.bundles import MAX_CONTENT_BYTES, Bundle
from builderd.domain.errors import InstallFailed

FILE = "requirements.txt"
MAX_LINES = 2_000
MAX_DEPTH = 5

COMMENT = re.compile(r"(?:^|\s)#.*$")
HASH = re.compile(r"\s--hash=(sha256|sha384|sha512):([0-9a-f]+)(?=\s|$)")
INCLUDE = re.compile(r"(?:-r|--requirement)(?:\s+|=)?(?P<path>\S+)")
CONSTRAINTS = re.compile(r"(?:-c|--constraint)(?:\s+|=)?(?P<path>\S+)")
LOCAL = re.compile(r"(?:\.{1,2}(?:/|$)|[\w.-]+/)")
REPOSITORY = re.compile(r"(?:git|hg|svn|bzr)\+")

#: Reasons why pip options are refused, for the error message.
_INDEX = (
    "the package index is set by the operator of this service; take the line out, and name a private index by a "
    "credential with PIP_INDEX_URL or PIP_EXTRA_INDEX_URL (PUT /api/v1/credentials/{name})"
)
REFUSED = {
    "-i": _INDEX,
    "--index-url": _INDEX,
    "--extra-index-url": _INDEX,
    "--no-index": "the package index is set by the operator of this service",
    "-f": "packages come from the package index only",
    "--find-links": "packages come from the package index only",
    "--trusted-host": "certificates are always checked",
    "-e": "an editable install has no use here: the files of /app are on the import path already; name what it needs",
    "--editable": "an editable install has no use here: the files of /app are on the import path already; "
    "name what it needs",
}


@dataclass(frozen=True, slots=True)
class Requirements:
    """Rewritten, sorted lines. ``foreign``: one names code outside the package index."""

    lines: tuple[str, ...]
    constraints: tuple[str, ...]
    foreign: bool


@dataclass(slots=True)
class _Parser:
    """State while a file and its includes are parsed."""

    bundle: Bundle
    lines: set[str] = field(default_factory=set)
    constraints: set[str] = field(default_factory=set)
    foreign: bool = False
    read: int = 0


def read_requirements(bundle: Bundle) -> Requirements | None:
    """Parse ``requirements.txt`` of the bundle; None without the file or without requirements.

    Raises ``InstallFailed`` with the file, the line and the reason.
    """
    if bundle.file(FILE) is None:
        return None
    parser = _Parser(bundle)
    _read(parser, FILE, parser.lines, 0)
    if not parser.lines:
        return None
    return Requirements(tuple(sorted(parser.lines)), tuple(sorted(parser.constraints)), parser.foreign)


def _read(parser: _Parser, path: str, into: set[str], depth: int) -> None:
    for number, line in _logical_lines(_text(parser.bundle, path)):
        parser.read += 1
        if parser.read > MAX_LINES:
            raise _refusal(path, number, f"at most {MAX_LINES} lines are read")
        _take(parser, path, number, line, into, depth)


def _take(parser: _Parser, path: str, number: int, line: str, into: set[str], depth: int) -> None:
    for pattern, target in ((INCLUDE, into), (CONSTRAINTS, parser.constraints)):
        if match := pattern.fullmatch(line):
            _include(parser, path, number, match["path"], target, depth)
            return
    if line.startswith("-"):
        option = re.split(r"[\s=]", line, maxsplit=1)[0]
        raise _refusal(path, number, f"{option} is refused: {REFUSED.get(option, 'options have no effect here')}")
    written, foreign = _requirement(path, number, line)
    parser.foreign = parser.foreign or foreign
    into.add(written)


def _include(parser: _Parser, path: str, number: int, target: str, into: set[str], depth: int) -> None:
    included = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    if depth >= MAX_DEPTH:
        raise _refusal(path, number, f"files include each other more than {MAX_DEPTH} deep")
    if parser.bundle.file(included) is None:
        raise _refusal(path, number, f"there is no file {target!r} among the builder's files")
    _read(parser, included, into, depth + 1)


def _requirement(path: str, number: int, line: str) -> tuple[str, bool]:
    try:
        return parse_requirement(line)
    except ValueError as error:
        raise _refusal(path, number, str(error)) from None


def parse_requirement(line: str) -> tuple[str, bool]:
    """Return (rewritten line, True if its code is outside the index). Raises ``ValueError`` with the reason."""
    if LOCAL.match(line) and "@" not in line:
        raise ValueError("a path is refused: the files of /app are on the import path already")
    if REPOSITORY.match(line):
        raise ValueError(f"write it as 'name @ {line.split(maxsplit=1)[0]}'")
    hashes = sorted(f"--hash={kind}:{digest}" for kind, digest in HASH.findall(line))
    text = HASH.sub("", line).strip()
    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        raise ValueError(f"{text!r} is no requirement: {str(error).splitlines()[0]}") from None
    if requirement.url is not None and not _is_remote(requirement.url):
        raise ValueError("only https:// and git+https:// addresses can be fetched")
    written = " ".join([str(requirement), *hashes])
    # An escaped line break in a marker has become a real one meanwhile.
    if not written.isprintable():
        raise ValueError(f"{text!r} contains a line break or another unprintable character")
    return written, requirement.url is not None


def _is_remote(url: str) -> bool:
    return url.startswith(("https://", "git+https://")) and not re.search(r"[\s'\"$`\\]", url)


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield (number of its first line, line) without comments, blank lines and continuations."""
    pending, begun = "", 0
    for number, raw in enumerate(text.split("\n"), start=1):
        line = COMMENT.sub("", raw.rstrip("\r")) if not raw.rstrip("\r").endswith("\\") else raw.rstrip("\r")
        begun = begun or number
        if line.endswith("\\"):
            pending += line[:-1] + " "
            continue
        whole = (pending + line).strip()
        if whole:
            yield begun, whole
        pending, begun = "", 0
    if pending.strip():
        yield begun, pending.strip()


def _text(bundle: Bundle, path: str) -> str:
    file = bundle.file(path)
    assert file is not None, "it was looked up before"
    if file.size > MAX_CONTENT_BYTES:
        raise InstallFailed(f"{path} has {file.size} bytes: at most {MAX_CONTENT_BYTES} are read.")
    try:
        return file.content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InstallFailed(f"{path} is not UTF-8 text: save it as UTF-8.") from None


def _refusal(path: str, number: int, why: str) -> InstallFailed:
    return InstallFailed(f"{path}, line {number}: {why}.")
