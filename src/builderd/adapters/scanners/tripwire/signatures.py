"""GuardDog's YARA rules (see ``rules/guarddog``): shapes that malicious packages had."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import yara

RULES = Path(__file__).with_name("rules") / "guarddog"
#: Rules that match at bytes above 127 alone; they take more time than all others, and most files have no such byte.
BEYOND_ASCII = frozenset({"threat-runtime-obfuscation-unicode"})


class Signature(NamedTuple):
    rule: str
    line: int
    description: str


class Signatures:
    """The rules, compiled once. A rule of low specificity is reported as ``YAL-…``, any other as ``YAR-…``.

    The review's limit of CPU time bounds a search; YARA's own is of wall time, which a busy machine uses up for a
    sound file.
    """

    def __init__(self, folder: Path = RULES) -> None:
        files = {path.stem: str(path) for path in sorted(folder.glob("*.yar"))}
        self._all = yara.compile(filepaths=files)
        self._for_ascii = yara.compile(filepaths={name: files[name] for name in files.keys() - BEYOND_ASCII})

    def find(self, path: str, content: bytes) -> Iterator[Signature]:
        """Yield one match for each rule that is for this path, at its first position."""
        rules = self._for_ascii if content.isascii() else self._all
        for match in rules.match(data=content):
            patterns = str(match.meta.get("path_include", "*")).split(",")
            if not any(fnmatch(path, one) or fnmatch(f"x/{path}", one) for one in patterns):
                continue
            places = [instance.offset for string in match.strings for instance in string.instances]
            line = content.count(b"\n", 0, min(places)) + 1 if places else 0
            family = "YAL" if match.meta.get("specificity") == "low" else "YAR"
            name = str(match.rule).removeprefix("threat_").replace("_", "-")
            yield Signature(f"{family}-{name}", line, str(match.meta.get("description", "")))
