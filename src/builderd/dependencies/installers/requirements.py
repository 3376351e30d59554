"""Strict parser of requirements files, which are hostile input.

Each line is parsed and rewritten, and the installer gets only the rewritten lines: a line that two programs parse
differently cannot smuggle an option past this parser. The format is pip's
(https://pip.pypa.io/en/stable/reference/requirements-file-format/), its lines follow PEP 508.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from packaging.requirements import InvalidRequirement, Requirement

from builderd.code.model import MAX_CONTENT_BYTES, Bundle
from builderd.core.errors import InstallFailed
from builderd.dependencies.requested import REQUIREMENTS, encoding_of

MAX_LINES = 2_000
MAX_DEPTH = 5
#: Characters of a foreign text in a message.
MAX_QUOTED = 300

COMMENT = re.compile(r"(?:^|\s)#.*$")
HASH = re.compile(r"\s--hash=(sha256|sha384|sha512):([0-9a-f]+)(?=\s|$)")
INCLUDE = re.compile(r"(?:-r|--requirement)(?:\s+|=)?(?P<path>\S+)")
CONSTRAINTS = re.compile(r"(?:-c|--constraint)(?:\s+|=)?(?P<path>\S+)")
#: The project itself, which is not installed: its files are the app's.
OWN = re.compile(r"(?:(?:-e|--editable)[ =]?\s*)?\./?")
LOCAL = re.compile(r"(?:\.{1,2}(?:/|$)|[\w.-]+/)")
REPOSITORY = re.compile(r"(?:git|hg|svn|bzr)\+")

#: Reasons why pip options are refused, for the error message.
_INDEX = (
    "the package index is set by the operator of this service; take the line out, and name a private index by a "
    "credential with PIP_INDEX_URL or PIP_EXTRA_INDEX_URL (PUT /api/v1/credentials/{name})"
)
_EDITABLE = "an editable install has no use here: the files of /app are on the import path already; name what it needs"
REFUSED = {
    **dict.fromkeys(("-i", "--index-url", "--extra-index-url"), _INDEX),
    "--no-index": "the package index is set by the operator of this service",
    **dict.fromkeys(("-f", "--find-links"), "packages come from the package index only"),
    "--trusted-host": "certificates are always checked",
    **dict.fromkeys(("-e", "--editable"), _EDITABLE),
}


@dataclass(frozen=True, slots=True)
class Requirements:
    """Rewritten, sorted lines. ``foreign``: one names code outside the package index; ``own``: one is the project."""

    lines: tuple[str, ...]
    constraints: tuple[str, ...]
    foreign: bool
    own: bool = False


def read_requirements(bundle: Bundle, path: str = REQUIREMENTS) -> Requirements | None:
    """Parse a list of the bundle; None without the file or without requirements.

    Raises ``InstallFailed`` with the file, the line and the reason.
    """
    reader = _Reader(bundle)
    reader.read(path, reader.lines)
    if not reader.lines:
        return None
    return Requirements(tuple(sorted(reader.lines)), tuple(sorted(reader.constraints)), reader.foreign, reader.own)


class _Reader:
    """Reads a file and those that it includes."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self.lines: set[str] = set()
        self.constraints: set[str] = set()
        self.foreign = self.own = False
        self._read = 0

    def read(self, path: str, into: set[str], depth: int = 0) -> None:
        for number, line in _logical_lines(read_text(self._bundle, path)):
            try:
                self._take(path, line, into, depth)
            except ValueError as error:
                raise InstallFailed(f"{path}, line {number}: {error}.") from None

    def _take(self, path: str, line: str, into: set[str], depth: int) -> None:
        self._read += 1
        if self._read > MAX_LINES:
            raise ValueError(f"at most {MAX_LINES} lines are read")
        for pattern, target in ((INCLUDE, into), (CONSTRAINTS, self.constraints)):
            if match := pattern.fullmatch(line):
                included = posixpath.normpath(posixpath.join(posixpath.dirname(path), match["path"]))
                if depth >= MAX_DEPTH:
                    raise ValueError(f"files include each other more than {MAX_DEPTH} deep")
                if self._bundle.file(included) is None:
                    raise ValueError(f"there is no file {match['path']!r} among the builder's files")
                self.read(included, target, depth + 1)
                return
        if OWN.fullmatch(line):
            self.own = True
            return
        if line.startswith("-"):
            option = re.split(r"[\s=]", line, maxsplit=1)[0]
            raise ValueError(f"{option} is refused: {REFUSED.get(option, 'options have no effect here')}")
        written, foreign = parse_requirement(line)
        self.foreign = self.foreign or foreign
        into.add(written)


def collect(path: str, listed: Iterable[tuple[str, str]], constraints: Iterable[str] = ()) -> Requirements | None:
    """Return the requirements of a file, given as (place, text); None without any.

    Raises ``InstallFailed`` with the file, the place and the reason.
    """
    lines, is_foreign = set(), False
    for number, (where, text) in enumerate(listed):
        if number >= MAX_LINES:
            raise InstallFailed(f"{path}: at most {MAX_LINES} dependencies are read.")
        try:
            written, foreign = parse_requirement(text)
        except ValueError as error:
            raise InstallFailed(f"{path}: {where}: {str(error)[:MAX_QUOTED]}.") from None
        lines.add(written)
        is_foreign = is_foreign or foreign
    return Requirements(tuple(sorted(lines)), tuple(sorted(constraints)), is_foreign) if lines else None


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
    url = requirement.url
    if url and (not url.startswith(("https://", "git+https://")) or re.search(r"[\s'\"$`\\]", url)):
        raise ValueError("only https:// and git+https:// addresses can be fetched")
    written = " ".join([str(requirement), *hashes])
    # An escaped line break in a marker has become a real one meanwhile.
    if not written.isprintable():
        raise ValueError(f"{text!r} contains a line break or another unprintable character")
    return written, requirement.url is not None


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


def read_text(bundle: Bundle, path: str, limit: int = MAX_CONTENT_BYTES) -> str:
    """Return the file's text, empty without the file. Raises ``InstallFailed``."""
    file = bundle.file(path)
    if file is None:
        return ""
    if file.size > limit:
        raise InstallFailed(f"{path} has {file.size} bytes: at most {limit} are read.")
    try:
        return file.content.decode(encoding_of(file.content))
    except UnicodeDecodeError:
        raise InstallFailed(f"{path} is not UTF-8 text: save it as UTF-8.") from None
