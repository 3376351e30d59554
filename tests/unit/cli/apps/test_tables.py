"""Text of apps and files reaches a terminal without what controls it, and a file as it is."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from builderd.cli.apps.inside import _write
from builderd.cli.apps.session import Session, shown
from builderd.cli.group import builderd

CLIPBOARD = "\x1b]52;c;ZXZpbA==\x07"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_colours_and_no_other_control() -> None:
    hostile = f"a\x1b[31mred\x1b[2J{CLIPBOARD}\x9d\r\n\tb\u202e"
    text = shown(hostile, Terminal())
    assert text.replace("\N{REPLACEMENT CHARACTER}", "") == "a\x1b[31mred[2J]52;c;ZXZpbA==\n\tb\x1b[0m"
    assert shown(hostile, io.StringIO()) == hostile


@pytest.mark.parametrize("is_terminal", [True, False])
def test_results_log_lines_messages_and_output_are_shown_so(monkeypatch: pytest.MonkeyPatch, is_terminal: bool) -> None:
    shows: tuple[Callable[[], None], ...] = (
        lambda: Session().result({}, CLIPBOARD),
        lambda: Session().row({}, CLIPBOARD),
        lambda: Session().say(CLIPBOARD),
        lambda: _write(sys.stdout, CLIPBOARD),
    )
    for show in shows:
        out = Terminal() if is_terminal else io.StringIO()
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", out)
        show()
        assert ("\x07" in out.getvalue()) is not is_terminal


def test_a_procfile_and_a_key_of_builder_toml_have_no_escapes_in_messages(home: Path) -> None:
    (home / "Procfile").write_text(f"web: python3 main.py {CLIPBOARD}\n")
    for words in (["init"], ["deploy"]):
        result = CliRunner().invoke(builderd, words, prog_name="builderd")
        assert "\x1b" not in result.output, words
        (home / "builder.toml").unlink(missing_ok=True)
    (home / "builder.toml").write_text('"\\u001b]52;c;ZXZpbA==\\u0007" = 1\n')
    result = CliRunner().invoke(builderd, ["deploy"], prog_name="builderd")
    assert "\x1b" not in result.output
    assert "is not known" in result.output
