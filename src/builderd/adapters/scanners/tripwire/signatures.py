"""GuardDog's YARA rules (see ``rules/guarddog``): shapes that malicious packages had."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import yara

RULES = Path(__file__).with_name("rules") / "guarddog"
#: Rules that match at bytes above 127 alone; of all rules they take the most time, and most files have no such byte.
BEYOND_ASCII = frozenset({"threat-runtime-obfuscation-unicode"})
#: Endings of files that are searched by the same rules.
_FAMILIES = {
    **dict.fromkeys((".py", ".pyx", ".pyi", ".pth"), "python"),
    **dict.fromkeys((".js", ".ts", ".jsx", ".tsx", ".mjs", ".cjs"), "scripts"),
}
_INCLUDED = re.compile(r'^\s*path_include\s*=\s*"([^"]*)"', re.MULTILINE)


class Signature(NamedTuple):
    rule: str
    line: int
    description: str


class Signatures:
    """The rules, compiled once. A rule of low specificity is reported as ``YAL-…``, any other as ``YAR-…``.

    Each file of rules names the files that it is for. A text that none is for is not searched, and Python by the rules
    for Python alone: a search costs as much for a rule that cannot be reported as for any other. The review's limit of
    CPU time bounds a search; YARA's own is of wall time, which a busy machine uses up for a sound file.
    """

    def __init__(self, folder: Path = RULES) -> None:
        texts = {path.stem: path.read_text() for path in sorted(folder.glob("*.yar"))}
        wanted = {stem: _patterns(text) for stem, text in texts.items()}
        self._patterns = tuple(dict.fromkeys(one for patterns in wanted.values() for one in patterns))
        self._compiled = {
            (family, is_ascii): yara.compile(sources=_chosen(texts, wanted, family, is_ascii=is_ascii))
            for family in {*_FAMILIES.values(), ""}
            for is_ascii in (True, False)
        }

    def find(self, path: str, content: bytes) -> Iterator[Signature]:
        """Yield one match for each rule, at its first position."""
        if not _is_for(path, self._patterns):
            return
        for match in self._compiled[_family(path), content.isascii()].match(data=content):
            if not _is_for(path, str(match.meta.get("path_include", "*")).split(",")):
                continue
            places = [instance.offset for string in match.strings for instance in string.instances]
            line = content.count(b"\n", 0, min(places)) + 1 if places else 0
            family = "YAL" if match.meta.get("specificity") == "low" else "YAR"
            name = str(match.rule).removeprefix("threat_").replace("_", "-")
            yield Signature(f"{family}-{name}", line, str(match.meta.get("description", "")))


def _patterns(text: str) -> list[str]:
    """Return the patterns of paths that a file of rules is for."""
    return [one for included in _INCLUDED.findall(text) or ["*"] for one in included.split(",")]


def _is_for(path: str, patterns: list[str] | tuple[str, ...]) -> bool:
    return any(fnmatch(path, one) or fnmatch(f"x/{path}", one) for one in patterns)


def _family(path: str) -> str:
    # As ``fnmatch`` sees it: the whole name of a file may be an ending.
    return next((family for ending, family in _FAMILIES.items() if path.endswith(ending)), "")


def _chosen(
    texts: Mapping[str, str], wanted: Mapping[str, list[str]], family: str, *, is_ascii: bool
) -> Mapping[str, str]:
    """Return the rules that may be reported of a file of the family."""
    return {
        stem: text
        for stem, text in texts.items()
        if any(_family(one) == family or one.endswith("*") for one in wanted[stem])
        and not (is_ascii and stem in BEYOND_ASCII)
    }
