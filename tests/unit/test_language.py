"""script/language.py reports forbidden docstrings, log lines and phrases, and accepts plain ones."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "script" / "language.py"


@pytest.fixture(scope="module")
def language() -> ModuleType:
    spec = importlib.util.spec_from_file_location("language", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def faults(language: ModuleType, tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    source = tmp_path / "src" / "builderd"
    source.mkdir(parents=True)
    (source / "planted.py").write_text(text)
    monkeypatch.setattr(language, "SOURCE", source)
    return list(language.faults_of(source / "planted.py"))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        *(
            (f'def f() -> None:\n    """{opening}"""', "src/builderd/planted.py:2")
            for opening in ("The same for a disk.", "What it costs.", "Whether it runs.", "Of a sandbox.", "It ends.")
        ),
        ('log.warning("of %d builders it is not known", 3)', "log line"),
        ('log.warning(f"builder {3} failed")', "log line"),
        ('logger.info("%s ended", 3)', "log line"),
        ("# A host that is nobody's is ignored.", "riddle"),
        ('raise ValueError("ask whoever runs the service")', "riddle"),
        ('raise ValueError(f"the owner of {name} is told")', "riddle"),
        ('log.info("no new builds for a moment")', "riddle"),
    ],
)
def test_docstring_log_line_or_message_is_reported(
    language: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, fault: str
) -> None:
    (found,) = faults(language, tmp_path, f"{text}\n", monkeypatch)
    assert fault in found


@pytest.mark.parametrize(
    ("text", "reported"),
    [
        ("def test_what_is_over_goes() -> None: ...", 1),
        ("def test_caller_is_told() -> None: ...", 1),
        ('def client() -> None:\n    """With a token."""', 1),
        ('def test_expired_leases_are_deleted() -> None:\n    """Leases end by themselves."""', 0),
    ],
)
def test_riddle_in_a_tests_name_or_docstring_is_reported(
    language: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, reported: int
) -> None:
    monkeypatch.setattr(language, "ROOT", tmp_path)
    (tmp_path / "test_planted.py").write_text(text)
    assert len(list(language.faults_of_test(tmp_path / "test_planted.py"))) == reported


def test_plain_docstring_and_log_line_are_accepted(
    language: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = '"""Return the size."""\nlog.warning("idle check failed, retrying in 5 s builder=%s error=%s", 1, 2)\n'
    assert faults(language, tmp_path, text, monkeypatch) == []
