"""The examples of the SDK: one script in both forms, which the type checker knows (``script/check``), does the same."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from tests.threaded_service import threaded_service

EXAMPLES = Path(__file__).parents[3] / "examples"


def test_both_forms_of_a_script_tell_the_same_story(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with threaded_service() as running:
        monkeypatch.setenv("BUILDERD_URL", running.url)
        monkeypatch.setenv("BUILDERD_TOKEN", running.admin)
        told = []
        for name in ("story.py", "story_async.py"):
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
            told.append(capsys.readouterr().out)
    assert told[0] == told[1]
    assert told[0].startswith("review passed\ninstall passed\nstart passed\n")
    assert "versions [2, 1]" in told[0]
    assert "note kept, exit code 0" in told[0]
    assert "story is running, version 3" in told[0]
