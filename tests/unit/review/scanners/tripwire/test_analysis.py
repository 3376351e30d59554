"""One review: the order of its parts does not matter, and each rule is reported of the files that it is for."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yara

from builderd.review.scanners.tripwire import analysis
from builderd.review.scanners.tripwire.analysis import Analyser, Tools
from builderd.review.scanners.tripwire.review import Source
from builderd.review.scanners.tripwire.secret_rules import (
    BEYOND_ASCII,
    GUARDDOG,
    Secret,
    SecretRules,
    Signatures,
    is_local,
)

#: No stopword of the rule is in it.
KEY = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


def test_password_is_reported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    linted = threading.Event()
    lint, find = Analyser._lint, SecretRules.find

    def lint_first(*arguments: object) -> object:
        try:
            return lint(*arguments)  # type: ignore[arg-type]
        finally:
            linted.set()

    def find_last(rules: SecretRules, path: str, text: str) -> Iterator[Secret]:
        assert linted.wait(60)
        return find(rules, path, text)

    monkeypatch.setattr(analysis, "FOLDER", tmp_path)
    monkeypatch.setattr(Analyser, "_lint", lint_first)
    monkeypatch.setattr(SecretRules, "find", find_last)
    analyser = Analyser(Tools(ruff=str(Path(sys.executable).with_name("ruff"))))
    seen = analyser.analyse([Source("app.py", "python", f'SECRET_KEY = "{KEY}"\n'.encode())], ["app.py"], 120)
    assert seen["failures"] == []
    assert [(hit["rule"], hit["line"]) for hit in seen["hits"]] == [("GEN-generic-api-key", 1)]


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
        rules = yara.compile(str(Path(GUARDDOG, f"{stem}.yar")))
        assert not rules.match(data=bytes(range(128)) * 3)
        shapes = [
            line for line in Path(GUARDDOG, f"{stem}.yar").read_text().splitlines() if line.strip().startswith("$")
        ]
        assert shapes
        assert all("\\xd0" in line or "\\xce" in line or "\\xf0" in line or "\\xe2" in line for line in shapes)


#: Self-signed certificates, which are public; their keys were thrown away.
LOCAL = (
    "-----BEGIN CERTIFICATE-----\n"
    "MIIBfDCCASOgAwIBAgIUMUqfGoc6XpjW3SL7ppsuFvQnjNIwCgYIKoZIzj0EAwIw\n"
    "FDESMBAGA1UEAwwJbG9jYWxob3N0MB4XDTI2MTEyODAwMDYwMloXDTI2MTIyODAw\n"
    "MDYwMlowFDESMBAGA1UEAwwJbG9jYWxob3N0MFkwEwYHKoZIzj0CAQYIKoZIzj0D\n"
    "AQcDQgAE4HGljC1IuZs8bz4uvRy1BxeN1zMRG75UoDih1b5PaNWKOBf0wHAz1Naf\n"
    "tghue/oEqwAXElrhVfMGNJentcWne6NTMFEwHQYDVR0OBBYEFCO1791Tuzr/2P2t\n"
    "hcurl7y59zWEMB8GA1UdIwQYMBaAFCO1791Tuzr/2P2thcurl7y59zWEMA8GA1Ud\n"
    "EwEB/wQFMAMBAf8wCgYIKoZIzj0EAwIDRwAwRAIgFX1Yw1jzYlt7Oqs0AfxE9PPV\n"
    "XuH+/r7kK4caxXpjvdgCIBzvLPswKhhd2VR4lLIt6M99mg3U2UWuOIl5VKOk2/UE\n"
    "-----END CERTIFICATE-----\n"
)
OTHER = (
    "-----BEGIN CERTIFICATE-----\n"
    "MIIBgjCCASegAwIBAgIUCSts3zcxzBsZJZyggDmQXas+/T8wCgYIKoZIzj0EAwIw\n"
    "FjEUMBIGA1UEAwwLZXhhbXBsZS5jb20wHhcNMjYxMTI4MDAwNjAyWhcNMjYxMjI4\n"
    "MDAwNjAyWjAWMRQwEgYDVQQDDAtleGFtcGxlLmNvbTBZMBMGByqGSM49AgEGCCqG\n"
    "SM49AwEHA0IABImJeUu7Jy2/8CyH/y8iKP1ukJVF6+5KwMpCWgZ+f3iXWWrH6IC3\n"
    "3OwBjvCPIuQn4eUbBL+mS1n8W/5dXa+WKbOjUzBRMB0GA1UdDgQWBBTcPOMr6NP2\n"
    "TjVKkRDxv6PQH8U8tTAfBgNVHSMEGDAWgBTcPOMr6NP2TjVKkRDxv6PQH8U8tTAP\n"
    "BgNVHRMBAf8EBTADAQH/MAoGCCqGSM49BAMCA0kAMEYCIQDVxyCmgTU+BWwU7Ol2\n"
    "ArZhcHcdbpvmEF/pBmN3bm0HrwIhAMFFrlQUFT/RO3abO9S2XN8gos22tSWL44TI\n"
    "W9Iq39J7\n"
    "-----END CERTIFICATE-----\n"
)


@pytest.mark.parametrize(
    ("path", "texts", "local"),
    [
        ("key.pem", {"cert.pem": LOCAL}, True),
        ("tls/key.pem", {"tls/cert.pem": LOCAL}, True),
        ("key.pem", {"cert.pem": OTHER}, False),
        ("key.pem", {"cert.pem": LOCAL, "other.pem": OTHER}, False),
        ("key.pem", {"cert.pem": "-----BEGIN CERTIFICATE-----" + "A" * 200 + "-----END CERTIFICATE-----"}, False),
        ("key.pem", {"other/cert.pem": LOCAL}, False),
        ("key.pem", {}, False),
        ("certs/localhost.key", {}, True),
        ("tests/fixtures/server.pem", {}, True),
        ("tests/settings.py", {}, False),
        ("app.py", {"cert.pem": LOCAL}, False),
    ],
)
def test_key_is_local(path: str, texts: dict[str, str], local: bool) -> None:
    assert is_local(path, texts) is local
