"""Hints for apps that ended at their start."""

from __future__ import annotations

import json

import pytest

from builderd.domain.bundles import BundleFile, make_bundle
from builderd.domain.start_hints import start_hint

PACKAGE = json.dumps(
    {"dependencies": {"express": "4"}, "devDependencies": {"vite": "7", "typescript": "5", "express": "4"}}
)


def hint(line: str, **files: str) -> str:
    names = {"requirements": "requirements.txt", "pyproject": "pyproject.toml", "package": "package.json"}
    bundle = make_bundle(BundleFile(names.get(name, name), text.encode()) for name, text in files.items())
    return start_hint(["starting", line, "Node.js v20.19.2"], bundle)


@pytest.mark.parametrize(
    ("line", "files", "says"),
    [
        ("/bin/sh: 1: gunicorn: not found", {"requirements": "flask"}, "add gunicorn to requirements.txt"),
        ("bash: line 1: uvicorn: command not found", {}, "add uvicorn to requirements.txt"),
        ("/bin/sh: 1: streamlit: not found", {"pyproject": ""}, "add streamlit to project.dependencies"),
        ("sh: 1: vite: not found", {"package": PACKAGE}, "move it to dependencies"),
        ("sh: 1: tsc: not found", {"package": PACKAGE}, '"typescript", which package.json has in devDependencies'),
        ("sh: 1: next: not found", {"package": PACKAGE}, 'add "next" to the dependencies of package.json'),
        ("/bin/sh: 1: wget: not found", {}, "Sandboxes have no wget"),
        ("/bin/sh: 1: frobnicate: not found", {}, "The command frobnicate was not found"),
        ("/bin/sh: 1: pip: not found", {}, "Sandboxes have no pip: add the package to requirements.txt"),
        ("env: \u2018yarn\u2019: No such file or directory", {}, "Sandboxes have no yarn"),
        ("ModuleNotFoundError: No module named 'flask'", {}, "add flask to requirements.txt"),
        ("ModuleNotFoundError: No module named 'cv2'", {}, "add opencv-python-headless to requirements.txt"),
        ("ModuleNotFoundError: No module named 'flask'", {"Pipfile": ""}, "Pipfile is not read; add flask"),
        (
            "ModuleNotFoundError: No module named 'flask'",
            {"backend/requirements.txt": "flask"},
            "backend/requirements.txt is not read; add flask",
        ),
        ("ModuleNotFoundError: No module named 'app.db'", {"backend/app.py": ""}, "cd backend && …"),
        ("ModuleNotFoundError: No module named 'app'", {"src/app/__init__.py": ""}, "PYTHONPATH to /app/src"),
        ("Error: Cannot find module 'express/lib'", {}, 'add "express" to the dependencies'),
        ("Error: Cannot find module './routes'", {}, "The file ./routes is not among the files"),
        ("Error: Cannot find package '@scope/a' imported from /app/x", {}, 'add "@scope/a" to'),
        ("Error: Cannot find package 'vite' imported from /app/x", {"package": PACKAGE}, "devDependencies"),
        ("Error: Cannot find module 'express'", {"package": PACKAGE}, "The package express is missing"),
        ("KeyError: 'DATABASE_URL'", {}, ""),
        ("", {}, ""),
    ],
)
def test_start_hint_names_the_missing_package_and_file(line: str, files: dict[str, str], says: str) -> None:
    found = hint(line, **files)
    assert says in found
    assert bool(found) is bool(says)


@pytest.mark.parametrize("package", ["[]", "{", '{"devDependencies": 1}', "[" * 100_000, "\udcff"])
def test_a_manifest_that_is_none_is_passed_over(package: str) -> None:
    bundle = make_bundle([BundleFile("package.json", package.encode(errors="surrogateescape"))])
    assert "was not found" in start_hint(["sh: 1: frobnicate: not found"], bundle)


@pytest.mark.parametrize(
    "line",
    ["x: <script>alert(1)</script>: not found", "No module named '" + "a" * 10_000 + "'", ": " * 50_000 + "not found"],
)
def test_hostile_lines_are_not_repeated(line: str) -> None:
    assert start_hint([line], None) == ""


def test_last_matching_log_line_decides_the_hint() -> None:
    lines = ["sh: 1: wget: not found", "ModuleNotFoundError: No module named 'flask'", "exit"]
    assert "flask" in start_hint(lines, None)
