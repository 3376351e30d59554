"""The result of a review does not depend on the order in which its parts finish."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from builderd.adapters.scanners.tripwire import analysis
from builderd.adapters.scanners.tripwire.analysis import Analyser, Tools
from builderd.adapters.scanners.tripwire.review import Source
from builderd.adapters.scanners.tripwire.secret_rules import Secret, SecretRules

#: No stopword of the rule is in it.
KEY = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


def test_password_is_reported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    linted = threading.Event()
    lint, find = Analyser._lint, SecretRules.find

    def lint_first(*arguments: object) -> None:
        try:
            lint(*arguments)  # type: ignore[arg-type]
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
