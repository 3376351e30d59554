"""Folders of code: which files are sent, which are left out and by which rule, and the form in which they are sent.

A path is judged by ``.builderdignore``, then by the ``.gitignore`` files from its folder upwards, as
https://git-scm.com/docs/gitignore describes: in one file the last rule that matches decides. ``ALWAYS`` is left out
whatever they say.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from builderd.code.detection.project import Project
from builderd.code.model import hash_of_digests

#: Left out in any case, also by the page Deploy: version control, caches, and what the service installs itself.
ALWAYS = frozenset({".git", ".hg", ".svn", "node_modules", ".venv", "venv", "__pycache__", ".mypy_cache"})
ALWAYS |= {".pytest_cache", ".ruff_cache", ".DS_Store"}
#: Local state of the command line, which is not even listed.
STATE = ".builderd"
#: Settings of the command line, in the folder itself: they are no code, so that their change builds nothing again.
SETTINGS = "builder.toml"
OWN, GIT = ".builderdignore", ".gitignore"

#: Beyond either, the code is sent as an upload, which can be resumed. The API takes 2,000 files and 20 MB as JSON.
JSON_FILES, JSON_BYTES = 2_000, 8_000_000
GZIP_LEVEL = 3
#: The service leaves out a folder that contains all of an archive: without this one, it could be a folder of the code.
WRAPPER = "code"


#: Executable bit and sha256 of a file, in hex.
Digest = tuple[bool, str]


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """File to send. ``path`` is relative, with slashes."""

    path: str
    size: int
    executable: bool


@dataclass(frozen=True, slots=True)
class LeftOut:
    """File or folder (its path ends with a slash) that is not sent, and the rule."""

    path: str
    rule: str


@dataclass(frozen=True)
class Folder:
    """Code in a folder: what is sent of it."""

    root: Path
    files: Sequence[PlannedFile]
    left_out: Sequence[LeftOut]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    def below(self, root: str) -> Folder:
        """Return one of its folders, with the files that are sent of it."""
        above = f"{root.rstrip('/')}/"
        files = [replace(one, path=one.path[len(above) :]) for one in self.files if one.path.startswith(above)]
        return Folder(self.root / root, files, [])

    @property
    def project(self) -> Project:
        """Return the same files, for detection."""

        def read(path: str, limit: int) -> bytes:
            with (self.root / path).open("rb") as opened:
                return opened.read(limit)

        return Project((file.path for file in self.files), read)

    @property
    def fits_json(self) -> bool:
        return len(self.files) <= JSON_FILES and self.size <= JSON_BYTES

    @cached_property
    def digests(self) -> Mapping[str, Digest]:
        """Executable bit and sha256 of each file, by path."""
        return {file.path: (file.executable, _sha256(self.root / file.path)) for file in self.files}

    @cached_property
    def bundle(self) -> str:
        """The sha256 of all paths, modes and contents, as ``Version.bundle`` of the service has it."""
        return hash_of_digests((path, bit, bytes.fromhex(sha256)) for path, (bit, sha256) in self.digests.items())

    def changed_since(self, known: Mapping[str, Digest]) -> Folder:
        """Return the files that are new or differ from those of earlier code."""
        return replace(self, files=[one for one in self.files if known.get(one.path) != self.digests[one.path]])

    def contents(self) -> dict[str, Any]:
        """Return the files as the API takes them in JSON."""
        return {file.path: encoded((self.root / file.path).read_bytes(), file.executable) for file in self.files}

    def pack(self, out: IO[bytes]) -> None:
        """Write the files as a tar.gz, whose bytes are the same for the same code."""
        with (
            gzip.GzipFile("", "wb", GZIP_LEVEL, out, mtime=0) as zipped,
            tarfile.open(fileobj=zipped, mode="w") as archive,
        ):
            for file in self.files:
                with (self.root / file.path).open("rb") as opened:
                    info = tarfile.TarInfo(f"{WRAPPER}/{file.path}")
                    info.size, info.mode = file.size, 0o755 if file.executable else 0o644
                    archive.addfile(info, opened)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def encoded(content: str | bytes, executable: bool = False) -> Any:
    """Return a file as the API takes it: text, or an object with base64."""
    if isinstance(content, str):
        return {"content": content, "executable": True} if executable else content
    try:
        return encoded(content.decode(), executable)
    except UnicodeDecodeError:
        text = base64.b64encode(content).decode()
        return {"content": text, "encoding": "base64", **({"executable": True} if executable else {})}


def read_folder(root: Path, ignore: Sequence[str] = (), env_file: str = "") -> Folder:
    """Look through a folder. ``ignore`` are further rules, before those of the files.

    ``env_file`` is sent whatever the rules say: most projects keep their ``.env`` out of version control.
    """
    if not root.is_dir():
        raise NotADirectoryError(20, "is no folder", str(root))
    own = _Rules("", OWN, [*_lines(root / OWN), *ignore])
    found = list(_walk(root, "", (), own, env_file))
    files = sorted((one for one in found if isinstance(one, PlannedFile)), key=lambda file: file.path)
    return Folder(root, files, [one for one in found if isinstance(one, LeftOut)])


@dataclass(frozen=True, slots=True)
class _Rule:
    text: str
    pattern: re.Pattern[str]
    negated: bool
    folders_only: bool


class _Rules:
    """Rules of one file. ``base`` is its folder, as a prefix of paths."""

    def __init__(self, base: str, name: str, lines: Sequence[str]) -> None:
        self._base = base
        self._name = name
        self._rules = [rule for rule in map(_rule, lines) if rule is not None]

    def judge(self, path: str, is_folder: bool) -> tuple[bool, str] | None:
        """Return whether the path is left out, and by which rule; None when no rule matches."""
        inner = path.removeprefix(self._base)
        for rule in reversed(self._rules):
            if (is_folder or not rule.folders_only) and rule.pattern.fullmatch(inner):
                return not rule.negated, f"{self._base}{self._name}: {rule.text}"
        return None


def _walk(
    root: Path, base: str, outer: tuple[_Rules, ...], own: _Rules, env_file: str
) -> Iterator[PlannedFile | LeftOut]:
    folder = root / base
    rules = (_Rules(base, GIT, _lines(folder / GIT)), *outer)
    for entry in sorted(folder.iterdir()):
        path, is_link, is_folder = f"{base}{entry.name}", entry.is_symlink(), entry.is_dir()
        if entry.name == STATE or path == SETTINGS:
            continue
        reason = ""
        if is_link:
            reason = "a symbolic link"
        elif entry.name in ALWAYS:
            reason = f"always: {entry.name}"
        elif path != env_file:
            judged = (one.judge(path, is_folder) for one in (own, *rules))
            is_left_out, rule = next((one for one in judged if one is not None), (False, ""))
            reason = rule if is_left_out else ""
        if not reason and not is_folder and not entry.is_file():
            reason = "no regular file"
        if reason:
            yield LeftOut(f"{path}/" if is_folder and not is_link else path, reason)
        elif is_folder:
            yield from _walk(root, f"{path}/", rules, own, env_file)
        else:
            status = entry.stat()
            yield PlannedFile(path, status.st_size, bool(status.st_mode & 0o100))


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(errors="replace").splitlines()
    except (FileNotFoundError, IsADirectoryError):
        return []


def _rule(line: str) -> _Rule | None:
    """Return the rule of a line, None for a comment or an empty one."""
    text = line.rstrip()
    if not text or text.startswith("#"):
        return None
    negated = text.startswith("!")
    glob = text[1:] if negated else text
    glob = glob.removeprefix("\\") if glob[:2] in ("\\#", "\\!") else glob
    folders_only = glob.endswith("/")
    glob = glob.rstrip("/")
    # A slash at the beginning or in the middle binds a rule to its file's folder.
    anchored = "/" in glob
    prefix = "" if anchored else "(?:.*/)?"
    return _Rule(text, re.compile(prefix + "".join(_regex(glob.removeprefix("/"))), re.DOTALL), negated, folders_only)


_PARTS = re.compile(r"\*\*/|/\*\*$|\*\*|\*|\?|\[!?\]?[^\]]*\]|\\.|.", re.DOTALL)
_FIXED = {"**/": "(?:.*/)?", "/**": "/.*", "**": ".*", "*": "[^/]*", "?": "[^/]"}


def _regex(glob: str) -> Iterator[str]:
    for part in _PARTS.findall(glob):
        if part in _FIXED:
            yield _FIXED[part]
        elif len(part) > 2 and part.startswith("["):
            inner = part[1:-1].replace("\\", "\\\\")
            yield f"[^{inner[1:]}]" if inner.startswith("!") else f"[{inner}]"
        else:
            yield re.escape(part[1:] if part.startswith("\\") and len(part) == 2 else part)
