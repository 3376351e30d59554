"""What a ``requirements.txt`` asks for, in pip's format (https://pip.pypa.io/en/stable/reference/requirements-file-format/).

The text is a stranger's. What names a package of the index is taken apart and written anew, so that the installer
sees nothing of the original. What names anything else (an archive, a repository, a folder, another index) is left as
it is, and marked: it is only ever installed where it can harm nobody but its tenant. What has no place in a layer is
refused, with its line.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from builderd.domain.bundles import Bundle
from builderd.domain.errors import InstallFailed

FILE_NAME = "requirements.txt"
MAX_BYTES = 1_000_000
MAX_FILES = 50
MAX_LINE = 10_000

_COMMENT = re.compile(r"(?:^|\s)#.*")
_HASH = re.compile(r"--hash[= ](sha(?:256|384|512):[0-9a-fA-F]{64,128})")
_SCHEME = re.compile(r"(?:[a-z]+\+)?(?:https?|ssh|git|ftp)[:@]", re.IGNORECASE)
#: ``name[extra] @ place`` (PEP 508)
_NAMED_PLACE = re.compile(r"[\w.-]+\s*(?:\[[^]]*\])?\s*@\s*(.+)", re.ASCII)
_ARCHIVE = re.compile(r"\.(?:whl|zip|tar|tgz|tar\.(?:gz|bz2|xz|zst|lzma?))$")


@dataclass(slots=True)
class Request:
    """``requirements`` and ``constraints`` name packages of the index only, in normal form.

    ``foreign``: something in the files is not one of them. ``uses_files``: some of it lies in the bundle itself.
    ``files`` are the requirement files as they were written, by path.
    """

    requirements: set[str] = field(default_factory=set)
    constraints: set[str] = field(default_factory=set)
    files: dict[str, bytes] = field(default_factory=dict)
    prereleases: bool = False
    require_hashes: bool = False
    foreign: bool = False
    uses_files: bool = False

    @property
    def empty(self) -> bool:
        return not self.requirements and not self.foreign


@dataclass(frozen=True, slots=True)
class _Line:
    file: str
    number: int
    text: str
    constraint: bool

    def refuse(self, why: str) -> InstallFailed:
        shown = self.text if len(self.text) <= 200 else self.text[:200] + "…"
        return InstallFailed(f"{self.file}, line {self.number}: {shown!r} {why}")


def read_request(bundle: Bundle) -> Request:
    """Read the bundle's requirement files, those that they include too. Raises ``InstallFailed``."""
    request = Request()
    _read_file(FILE_NAME, bundle, request, constraint=False)
    return request


def _read_file(path: str, bundle: Bundle, request: Request, *, constraint: bool) -> None:
    content = bundle.file(path)
    assert content, "whoever names it has looked"
    if path in request.files:
        return
    request.files[path] = content.content
    if len(request.files) > MAX_FILES or sum(map(len, request.files.values())) > MAX_BYTES:
        raise InstallFailed(f"{path}: more than {MAX_FILES} files, or {MAX_BYTES:,} bytes, of requirements.")
    for line in _lines(path, content.content, constraint=constraint):
        if line.text.startswith("-"):
            _read_option(line, bundle, request)
        else:
            _read_requirement(line, bundle, request)


def _lines(path: str, content: bytes, *, constraint: bool) -> Iterator[_Line]:
    """Logical lines: without comments, with those that end in a backslash joined to the next."""
    try:
        physical = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InstallFailed(f"{path}: is not UTF-8 text. Save it as UTF-8.") from None
    held, first = "", 0
    for number, text in enumerate(physical, start=1):
        first = first if held else number
        held += _COMMENT.sub("", text)
        if held.endswith("\\") and number < len(physical):
            held = held[:-1]
            continue
        if len(held) > MAX_LINE:
            raise _Line(path, first, held, constraint).refuse(f"is longer than {MAX_LINE:,} characters.")
        if held.strip():
            yield _Line(path, first, held.strip(), constraint)
        held = ""


def _read_requirement(line: _Line, bundle: Bundle, request: Request) -> None:
    hashes = sorted(set(_HASH.findall(line.text)))
    text = _HASH.sub("", line.text).strip()
    if " --" in text:
        raise line.refuse("has an option that is not supported here; of a package's options only --hash is.")
    named = _NAMED_PLACE.fullmatch(text)
    if named or _looks_like_place(text):
        _read_place(line, named[1] if named else text, bundle, request)
        return
    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        raise line.refuse(f"is not a requirement: {str(error).splitlines()[0]}") from None
    assert not requirement.url, "every place was taken out above"
    target = request.constraints if line.constraint else request.requirements
    target.add(" ".join([_normal(requirement), *(f"--hash={value.lower()}" for value in hashes)]))


def _normal(requirement: Requirement) -> str:
    requirement.name = canonicalize_name(requirement.name)
    return str(requirement)


def _looks_like_place(text: str) -> bool:
    place = text.partition(";")[0].strip()
    return bool(_SCHEME.match(place) or _ARCHIVE.search(place) or place.startswith((".", "/", "file:", "~")))


def _read_place(line: _Line, place: str, bundle: Bundle, request: Request) -> None:
    """Something that is not the index's: an address, or a path into the bundle."""
    request.foreign = True
    if _SCHEME.match(place):
        return
    path = _path_in_bundle(line, place.partition(";")[0].partition("[")[0].strip())
    if path != "." and not any(file.path == path or file.path.startswith(path + "/") for file in bundle.files):
        raise line.refuse("names a path that is not among the builder's files.")
    request.uses_files = True


def _path_in_bundle(line: _Line, path: str) -> str:
    if path.startswith(("/", "~", "file:")):
        raise line.refuse("names a place outside of the builder's files: give a path relative to this file.")
    inside = posixpath.normpath(posixpath.join(posixpath.dirname(line.file), path))
    if inside == ".." or inside.startswith("../"):
        raise line.refuse("leads out of the builder's files.")
    return inside


def _read_option(line: _Line, bundle: Bundle, request: Request) -> None:
    name, value = _split_option(line)
    reader = _OPTIONS.get(name)
    if reader is None:
        raise line.refuse("is an option that is not supported here.")
    reader(line, value, bundle, request)


def _split_option(line: _Line) -> tuple[str, str]:
    """``--name=value``, ``--name value``, ``-r value`` or ``-rvalue`` as (name, value)."""
    if not line.text.startswith("--") and len(line.text) > 2:
        return line.text[:2], line.text[2:].lstrip(" =")
    name, _, value = line.text.replace("=", " ", 1).partition(" ")
    return name, value.strip()


def _include(line: _Line, value: str, bundle: Bundle, request: Request) -> None:
    path = _included(line, value, bundle)
    _read_file(path, bundle, request, constraint=line.constraint)


def _constrain(line: _Line, value: str, bundle: Bundle, request: Request) -> None:
    path = _included(line, value, bundle)
    _read_file(path, bundle, request, constraint=True)


def _included(line: _Line, value: str, bundle: Bundle) -> str:
    try:
        parts = shlex.split(value)
    except ValueError:
        parts = []
    if len(parts) != 1:
        raise line.refuse("must name one file.")
    if _SCHEME.match(parts[0]):
        raise line.refuse("includes a file from elsewhere. Put it among the builder's files.")
    path = _path_in_bundle(line, parts[0])
    if bundle.file(path) is None:
        raise line.refuse(f"includes {path}, which is not among the builder's files.")
    return path


def _refuse_editable(line: _Line, value: str, bundle: Bundle, request: Request) -> None:
    raise line.refuse(
        "asks for an editable install, which a layer cannot hold: name the folder without -e. "
        "What lies in /app itself can be imported as it is."
    )


def _mark_foreign(line: _Line, value: str, bundle: Bundle, request: Request) -> None:
    request.foreign = True


def _find_links(line: _Line, value: str, bundle: Bundle, request: Request) -> None:
    _read_place(line, value, bundle, request)


def _prereleases(line: _Line, value: str, bundle: Bundle, request: Request) -> None:
    request.prereleases = True


def _require_hashes(line: _Line, value: str, bundle: Bundle, request: Request) -> None:
    request.require_hashes = True


def _ignore(line: _Line, value: str, bundle: Bundle, request: Request) -> None:
    """Wheels are preferred as it is."""


_Reader = Callable[[_Line, str, Bundle, Request], None]
_OPTIONS: Mapping[str, _Reader] = {
    "-r": _include,
    "--requirement": _include,
    "-c": _constrain,
    "--constraint": _constrain,
    "-e": _refuse_editable,
    "--editable": _refuse_editable,
    "-i": _mark_foreign,
    "--index-url": _mark_foreign,
    "--extra-index-url": _mark_foreign,
    "--no-index": _mark_foreign,
    "--trusted-host": _mark_foreign,
    "--no-binary": _mark_foreign,
    "-f": _find_links,
    "--find-links": _find_links,
    "--pre": _prereleases,
    "--require-hashes": _require_hashes,
    "--prefer-binary": _ignore,
    "--only-binary": _ignore,
}
