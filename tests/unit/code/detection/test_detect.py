"""Detection by shapes of projects (``shapes.toml``), and of hostile projects."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from builderd.code.detection.detect import detect
from builderd.code.detection.model import Detected, Refusal
from builderd.code.detection.project import Project

SHAPES: Mapping[str, Any] = tomllib.loads((Path(__file__).parent / "shapes.toml").read_text())


def found(files: Mapping[str, str | bytes], kind: str | None = None) -> Detected | Refusal:
    texts = {path: text.encode() if isinstance(text, str) else text for path, text in files.items()}
    return detect(Project(texts, lambda path, limit: texts[path][:limit]), kind)


def fixed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@pytest.mark.parametrize("name", SHAPES)
def test_start_of_a_usual_project_is_found(name: str) -> None:
    shape = dict(SHAPES[name])
    result, refused, note = found(shape.pop("files")), shape.pop("refused", None), shape.pop("note", "")
    if refused is not None:
        assert isinstance(result, Refusal), result
        assert refused in result.reason
        return
    assert isinstance(result, Detected), result
    assert {key: getattr(result, key) for key in shape} == {key: fixed(value) for key, value in shape.items()}
    assert note in " ".join(result.notes)


def test_kind_that_is_asked_for_chooses_the_line_of_a_procfile() -> None:
    both = {"Procfile": "web: a\nworker: b\n"}
    assert [getattr(found(both, kind), "entrypoint", "") for kind in (None, "worker")] == ["a", "b"]


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    "files",
    [
        {"main.py": "x = " + "(" * 100_000},
        {"main.py": "from flask import Flask\napp = Flask" + ".a" * 60_000 + "()"},
        {"main.py": "from flask import Flask\nx = " + "-" * 90_000 + "1"},
        {"main.py": "from flask import Flask\nx = " + "1+" * 60_000 + "1"},
        {"main.py": b"\xff\x00flask"},
        {"app.py": "from b import app\n", "b.py": "from app import app\n", "requirements.txt": "flask"},
        {"package.json": DEEP, "angular.json": DEEP, "index.html": ""},
        {"package.json": '{"scripts": [], "dependencies": 1, "main": {}, "workspaces": 7}'},
        {"package.json": '{"dependencies": {"@angular/core": "1"}}', "angular.json": '{"projects": {"a": 1, "b": []}}'},
        {"package.json": '{"dependencies": {"next": "1"}}', "next.config.js": "/*" * 100_000},
        # With the square of its length, a minute in which nobody is served.
        {"package.json": '{"dependencies": {"astro": "1"}}', "astro.config.mjs": "/* x " * 80_000},
        {"pyproject.toml": "a" + ".a" * 90_000 + "=1", "main.py": ""},
        {"pyproject.toml": "x = " + DEEP, "main.py": ""},
        {"pyproject.toml": "[project]\ndependencies = [1, [], '']\n[tool]\npoetry = 1", "main.py": ""},
        {"requirements.txt": "-r requirements.txt\n-r ../../etc/passwd\n", "main.py": ""},
        {"Procfile": ":\n" * 50_000 + "web" * 50_000},
        {"index.html": "<script " * 40_000},
        {"setup.py": "install_requires=" + "[" * 100_000, "main.py": ""},
        {f"{number}/package.json": "{}" for number in range(2_000)},
        {"a/" * 400 + "main.py": "from flask import Flask\napp = Flask()", "requirements.txt": "flask"},
    ],
)
def test_hostile_projects_end_in_an_answer(files: Mapping[str, str | bytes]) -> None:
    assert isinstance(found(files), Detected | Refusal)


def test_names_of_a_project_are_quoted_in_commands_and_shown_on_one_line() -> None:
    path = "a'; id\n.py"
    result = found({path: "import streamlit\n", "requirements.txt": "streamlit"})
    assert isinstance(result, Detected)
    assert "streamlit run 'a'\"'\"'; id\n.py'" in result.entrypoint
    assert "\n" not in result.reason
