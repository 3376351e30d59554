"""Source files: the kind of each by name and first bytes, which of them scanners read, and which the app reaches."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from builderd.code.entrypoints import PACKAGE, PYTHON, SCRIPT_ENDINGS, SCRIPTED, module_files
from builderd.code.model import BundleFile
from builderd.review.model import ReviewLimits


class Kind(StrEnum):
    PYTHON = "python"
    JAVASCRIPT = "javascript"
    #: Code that is read by patterns only: TypeScript, shell, Ruby, PHP, Perl, PowerShell, Lua, Go.
    SCRIPT = "script"
    #: Configuration and documents: searched for secrets.
    TEXT = "text"
    #: A program in machine code, or compiled for an interpreter, or in an archive that one runs.
    BINARY = "binary"
    #: Only counted.
    DATA = "data"


CODE = frozenset({Kind.PYTHON, Kind.JAVASCRIPT, Kind.SCRIPT})

_COMPILED = (".pyc", ".pyo")
_ENDINGS = {
    **dict.fromkeys((".py", ".pyw", ".pyi", ".pth"), Kind.PYTHON),
    **dict.fromkeys((".js", ".mjs", ".cjs"), Kind.JAVASCRIPT),
    **dict.fromkeys((".ts", ".mts", ".cts", ".tsx", ".jsx", ".vue", ".svelte"), Kind.SCRIPT),
    **dict.fromkeys((".sh", ".bash", ".zsh", ".rb", ".php", ".pl", ".lua", ".ps1", ".go"), Kind.SCRIPT),
    **dict.fromkeys((".pm", ".psgi", ".ru", ".rake", ".phtml", ".rs"), Kind.SCRIPT),
    **dict.fromkeys((".json", ".yml", ".yaml", ".toml", ".ini", ".cfg", ".conf", ".properties", ".env"), Kind.TEXT),
    **dict.fromkeys((*_COMPILED, ".pyz", ".pyzw", ".jar", ".war", ".class", ".phar"), Kind.BINARY),
    **dict.fromkeys((".txt", ".md", ".rst", ".html", ".htm", ".xml", ".sql", ".pem", ".key", ".tf"), Kind.TEXT),
    **dict.fromkeys((".example", ".sample", ".template", ".dist", ".ipynb", ".service", ".gradle"), Kind.TEXT),
    **dict.fromkeys((".pkl", ".pickle", ".joblib", ".b64", ".model", ".sav", ".weights"), Kind.TEXT),
}
_NAMES = {
    **dict.fromkeys(("Dockerfile", "Makefile", "Procfile", ".netrc", ".pypirc", "id_rsa"), Kind.TEXT),
    **dict.fromkeys((".bashrc", ".profile", ".npmrc", "Gemfile", "Rakefile"), Kind.SCRIPT),
}
#: ELF, PE, Mach-O in both byte orders and sizes, and its universal form (which Java classes share).
_MACHINE = (b"\x7fELF", b"MZ", b"\xfe\xed\xfa\xce", b"\xfe\xed\xfa\xcf", b"\xce\xfa\xed\xfe", b"\xcf\xfa\xed\xfe")


_ZIP, _WASM = b"PK\x03\x04", b"\0asm"
#: Kind of a file that several programs run: the strictest one, in this order.
_STRICTEST = (Kind.BINARY, Kind.PYTHON, Kind.JAVASCRIPT, Kind.SCRIPT, Kind.TEXT, Kind.DATA)


def kind_of(file: BundleFile) -> Kind:
    """Return a file's kind: by its name, then by a ``#!`` line; a NUL byte in its first KiB makes it data."""
    head = file.head(1024)
    if head.startswith(_MACHINE):
        return Kind.BINARY
    name = posixpath.basename(file.path)
    ending = posixpath.splitext(name)[1].lower()
    named = _NAMES.get(name) or _ENDINGS.get(ending) or (Kind.TEXT if name.startswith(".env") else None)
    if named is Kind.BINARY:
        # Bytecode that is checked by its source's time, which a deployment changes: the flags are in bytes 4 to 8, 0
        # for a time (PEP 552).
        is_cache = posixpath.basename(posixpath.dirname(file.path)) == "__pycache__" and head[4:8] == bytes(4)
        return Kind.DATA if is_cache else Kind.BINARY
    if named in CODE:
        return named or Kind.DATA
    if head.startswith(b"#!"):
        line, _, rest = head.partition(b"\n")
        if rest.startswith(_ZIP):
            return Kind.BINARY
        return Kind.PYTHON if b"python" in line else Kind.JAVASCRIPT if b"node" in line else Kind.SCRIPT
    if b"\0" in head:
        return Kind.DATA
    # A file without an ending may be what a script reads.
    return named or (Kind.SCRIPT if file.executable else Kind.DATA if ending else Kind.TEXT)


def executed_kinds(files: Iterable[BundleFile], programs: Iterable[tuple[str, str]]) -> Mapping[str, Kind]:
    """Return path → kind for files that a program runs: the kind as which it reads them, not of their name."""
    by_path = {file.path: file for file in files}
    kinds: dict[str, list[Kind]] = {}
    for path, program in programs:
        kinds.setdefault(path, []).append(_kind_for(by_path[path], program))
    # Other code may import it as what its name says.
    return {
        path: min((*found, *({kind_of(by_path[path])} & CODE)), key=_STRICTEST.index) for path, found in kinds.items()
    }


def _kind_for(file: BundleFile, program: str) -> Kind:
    own, head = kind_of(file), file.head(1024)
    compiled = head.startswith((_ZIP, _WASM)) or (head[2:4] == b"\r\n" and b"\0" in head)
    if own is Kind.BINARY or compiled or file.path.endswith(_COMPILED):
        return Kind.BINARY
    if not program:
        return own
    if PYTHON.fullmatch(program):
        return Kind.PYTHON
    if program not in SCRIPTED:
        return Kind.SCRIPT
    if own in (Kind.JAVASCRIPT, Kind.SCRIPT) or file.path.endswith(".json"):
        return own
    return Kind.JAVASCRIPT if program in ("node", "nodejs") else Kind.SCRIPT


def is_opaque(file: BundleFile, kind: Kind) -> bool:
    """Return True if code of this kind cannot be scanned: shells skip NUL bytes, patterns do not."""
    return kind is Kind.DATA or (kind is Kind.SCRIPT and any(b"\0" in chunk for chunk in file.chunks()))


def is_compiled(file: BundleFile) -> bool:
    """Return True for compiled code that a program loads (WebAssembly, Python bytecode)."""
    return file.head(4) == _WASM or file.path.endswith(_COMPILED)


@dataclass(frozen=True, slots=True)
class ReviewScope:
    """Scope of a review. ``read`` are the files that scanners get, with their kinds; the others are code left out.

    ``too_large`` exceed the limit of one file, ``beyond`` the limits of all files together.
    """

    read: tuple[tuple[BundleFile, Kind], ...]
    too_large: tuple[BundleFile, ...]
    beyond: tuple[BundleFile, ...]


def select_files(files: Iterable[BundleFile], limits: ReviewLimits, run: Mapping[str, Kind]) -> ReviewScope:
    """Select the files to scan within the limits: code before text, so that text cannot displace code.

    ``run`` is the result of ``executed_kinds``. Twice as many files as the limit are read: the excess is a hold, and
    its acceptance should rest on as many findings as possible.
    """
    kinds = [(file, run.get(file.path) or kind_of(file)) for file in files]
    code = [(file, kind) for file, kind in kinds if counts_as_code(file, kind)]
    text = [(file, kind) for file, kind in kinds if kind is Kind.TEXT and not counts_as_code(file, kind)]
    read: list[tuple[BundleFile, Kind]] = []
    beyond, total = [], 0
    for file, kind in (*code, *text):
        if file.size > limits.file_bytes:
            continue
        if len(read) < limits.files * 2 and total + file.size <= limits.total_bytes:
            read.append((file, kind))
            total += file.size
        elif counts_as_code(file, kind):
            beyond.append(file)
    too_large = tuple(file for file, _ in code if file.size > limits.file_bytes)
    return ReviewScope(tuple(read), too_large, tuple(beyond))


def counts_as_code(file: BundleFile, kind: Kind) -> bool:
    """Return True for files that must be scanned: code and ``package.json``."""
    folder, name = posixpath.split(file.path)
    return kind in CODE or (name == PACKAGE and "node_modules" not in folder)


@dataclass(frozen=True, slots=True)
class References:
    """References of one file: dotted modules (with leading dots for relative ones), scripts, and other paths.

    ``folders`` are its additions to the module search path. ``anything`` marks dynamic imports.
    """

    modules: tuple[str, ...] = ()
    scripts: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    anything: bool = False

    @property
    def imports(self) -> References:
        """References without plain paths, which it may read but not run."""
        return replace(self, paths=(), anything=False)


def reachable_files(
    roots: Iterable[str], references: Mapping[str, References], paths: Collection[str]
) -> frozenset[str]:
    """Return the roots and all files reachable from them; a file with dynamic imports reaches every file."""
    known, waiting = set(roots), list(roots)
    # The module search path: the app's folder, ``src``, the roots' folders, and what any file adds.
    own = [folder for root in waiting if (folder := posixpath.dirname(root))]
    added = [folder for refers in references.values() for folder in refers.folders]
    folders = tuple(dict.fromkeys(("", "src/", *(f"{folder}/" for folder in (*own, *added)))))
    while waiting:
        path = waiting.pop()
        refers = references.get(path)
        if refers is None:
            continue
        if refers.anything:
            return frozenset(paths)
        fresh = {one for one in _targets(path, refers, folders, paths) if one not in known}
        known |= fresh
        waiting += fresh
    return frozenset(known)


def _targets(path: str, refers: References, folders: Sequence[str], paths: Collection[str]) -> Iterator[str]:
    here = posixpath.dirname(path)
    for module in refers.modules:
        if module.startswith("."):
            yield from _relative(module, here, paths)
        else:
            yield from module_files(module, paths, folders)
    for script in refers.scripts:
        stem = posixpath.normpath(posixpath.join(here, script))
        yield from (stem + ending for ending in SCRIPT_ENDINGS if stem + ending in paths)
    for target in refers.paths:
        for base in (here, ""):
            named = posixpath.normpath(posixpath.join(base, target.removeprefix("/app/")))
            if named in paths:
                yield named


def _relative(module: str, here: str, paths: Collection[str]) -> Iterator[str]:
    name = module.lstrip(".")
    folder = here
    for _ in range(len(module) - len(name) - 1):
        folder = posixpath.dirname(folder)
    prefix = f"{folder}/" if folder else ""
    if f"{prefix}__init__.py" in paths:
        yield f"{prefix}__init__.py"
    if name:
        yield from module_files(name, paths, (prefix,))
