"""Reachability: files of a bundle that the entrypoint or a hook runs, by static references."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from builderd.domain.entrypoints import SCRIPT_ENDINGS, module_files


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
    folders = _folders(waiting, references)
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


def _folders(roots: Sequence[str], references: Mapping[str, References]) -> Sequence[str]:
    """Return the module search path: the app's folder, ``src``, the roots' folders, and what any file adds."""
    own = [folder for root in roots if (folder := posixpath.dirname(root))]
    added = [folder for refers in references.values() for folder in refers.folders]
    return tuple(dict.fromkeys(("", "src/", *(f"{folder}/" for folder in (*own, *added)))))


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
