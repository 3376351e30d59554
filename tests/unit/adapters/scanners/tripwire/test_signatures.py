"""GuardDog's rules are reported of the files that they are for."""

from __future__ import annotations

from pathlib import Path

import yara

from builderd.adapters.scanners.tripwire.signatures import BEYOND_ASCII, RULES, Signatures


def test_rule_is_reported_of_files_that_it_is_for() -> None:
    encoded = b"\nimport base64; exec(base64.b64decode('aW1wb3J0IG9zCg=='))\n"
    found = {(one.rule, one.line) for one in Signatures().find("a/app.py", encoded)}
    assert ("YAR-runtime-obfuscation-base64exec", 2) in found
    assert not list(Signatures().find("README.md", encoded))


def test_rules_beyond_ascii_need_such_a_byte() -> None:
    assert [one.rule[4:] for one in Signatures().find("app.py", b"p\xd0\xb0ypal = 1")] == [
        "runtime-obfuscation-unicode"
    ]
    for stem in BEYOND_ASCII:
        rules = yara.compile(str(Path(RULES, f"{stem}.yar")))
        assert not rules.match(data=bytes(range(128)) * 3)
        shapes = [line for line in Path(RULES, f"{stem}.yar").read_text().splitlines() if line.strip().startswith("$")]
        assert shapes
        assert all("\\xd0" in line or "\\xce" in line or "\\xf0" in line or "\\xe2" in line for line in shapes)
