"""Sources: what kind of file each of a bundle is, by its name and its first bytes. Nothing is parsed here."""

from __future__ import annotations

import posixpath
from enum import StrEnum

from builderd.domain.bundles import BundleFile


class Kind(StrEnum):
    PYTHON = "python"
    JAVASCRIPT = "javascript"
    #: Code that is read by patterns only: TypeScript, shell, Ruby, PHP, Perl, PowerShell, Lua, Go.
    SCRIPT = "script"
    #: Configuration and documents: searched for secrets.
    TEXT = "text"
    #: A program in machine code.
    BINARY = "binary"
    #: Only counted.
    DATA = "data"


CODE = frozenset({Kind.PYTHON, Kind.JAVASCRIPT, Kind.SCRIPT})

_ENDINGS = {
    **dict.fromkeys((".py", ".pyw", ".pyi", ".pth"), Kind.PYTHON),
    **dict.fromkeys((".js", ".mjs", ".cjs"), Kind.JAVASCRIPT),
    **dict.fromkeys((".ts", ".mts", ".cts", ".tsx", ".jsx", ".vue", ".svelte"), Kind.SCRIPT),
    **dict.fromkeys((".sh", ".bash", ".zsh", ".rb", ".php", ".pl", ".lua", ".ps1", ".go"), Kind.SCRIPT),
    **dict.fromkeys((".json", ".yml", ".yaml", ".toml", ".ini", ".cfg", ".conf", ".properties", ".env"), Kind.TEXT),
    **dict.fromkeys((".txt", ".md", ".rst", ".html", ".htm", ".xml", ".sql", ".pem", ".key", ".tf"), Kind.TEXT),
    **dict.fromkeys((".example", ".sample", ".template", ".dist", ".ipynb", ".service", ".gradle"), Kind.TEXT),
}
_NAMES = {
    **dict.fromkeys(("Dockerfile", "Makefile", "Procfile", ".npmrc", ".netrc", ".pypirc", "id_rsa"), Kind.TEXT),
    **dict.fromkeys((".bashrc", ".profile"), Kind.SCRIPT),
}
#: ELF, PE, Mach-O in both byte orders and sizes, and its universal form (which Java classes share).
_MACHINE = (b"\x7fELF", b"MZ", b"\xfe\xed\xfa\xce", b"\xfe\xed\xfa\xcf", b"\xce\xfa\xed\xfe", b"\xcf\xfa\xed\xfe")


def kind_of(file: BundleFile) -> Kind:
    """By the name first, then by a ``#!`` line; what holds a NUL byte near its beginning is no text."""
    head = file.head(1024)
    if head.startswith(_MACHINE):
        return Kind.BINARY
    name = posixpath.basename(file.path)
    ending = posixpath.splitext(name)[1].lower()
    named = _NAMES.get(name) or _ENDINGS.get(ending) or (Kind.TEXT if name.startswith(".env") else None)
    if named in CODE:
        return named or Kind.DATA
    if head.startswith(b"#!"):
        return _of_interpreter(head.partition(b"\n")[0])
    if b"\0" in head:
        return Kind.DATA
    return named or (Kind.SCRIPT if file.executable else Kind.DATA)


def _of_interpreter(line: bytes) -> Kind:
    if b"python" in line:
        return Kind.PYTHON
    return Kind.JAVASCRIPT if b"node" in line else Kind.SCRIPT


def is_code(file: BundleFile) -> bool:
    """Whether somebody may run it as it is."""
    return kind_of(file) in CODE
