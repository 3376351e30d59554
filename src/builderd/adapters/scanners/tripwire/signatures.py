"""GuardDog's YARA rules (see ``rules/guarddog``): shapes that malicious packages had."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import yara

RULES = Path(__file__).with_name("rules") / "guarddog"
#: Seconds for one file.
TIMEOUT = 5


class Signature(NamedTuple):
    rule: str
    line: int
    description: str


class Signatures:
    """The rules, compiled once. A rule of low specificity is reported as ``YAL-…``, any other as ``YAR-…``."""

    def __init__(self, folder: Path = RULES) -> None:
        files = {path.stem: str(path) for path in sorted(folder.glob("*.yar"))}
        self._rules = yara.compile(filepaths=files)

    def find(self, path: str, content: bytes) -> Iterator[Signature]:
        """Yield one match for each rule, at its first position."""
        for match in self._rules.match(data=content, timeout=TIMEOUT):
            wanted = str(match.meta.get("path_include", "*")).split(",")
            if not any(fnmatch(path, one) or fnmatch(f"x/{path}", one) for one in wanted):
                continue
            places = [instance.offset for string in match.strings for instance in string.instances]
            line = content.count(b"\n", 0, min(places)) + 1 if places else 0
            family = "YAL" if match.meta.get("specificity") == "low" else "YAR"
            name = str(match.rule).removeprefix("threat_").replace("_", "-")
            yield Signature(f"{family}-{name}", line, str(match.meta.get("description", "")))
