"""Hints for installs that failed, from the installer's output and the files."""

from __future__ import annotations

import time

import pytest

from builderd.domain.bundles import BundleFile, make_bundle
from builderd.domain.install_hints import install_hint


def hint(output: str, **files: str) -> str:
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
    found = hint(output, **files)
    assert says in found
    assert bool(found) is bool(says)


def test_control_characters_of_a_version_are_not_repeated() -> None:
    assert hint("No matching version found for ms@1\x1b[31m.") == ""


def test_files_are_searched_to_a_megabyte_in_all() -> None:
    parts = {f"require{number}_txt": "a-b.c " * 150_000 for number in range(20)}
    begun = time.process_time()
    assert "which another package asks for" in hint(NO_VERSION, **parts, requirements_txt="a" * 999_000)
    # 20 ms; 20 files of 0.9 MB take 1 s and more.
    assert time.process_time() - begun < 0.5


def test_wrapped_sentences_are_read() -> None:
    assert "no version 99.9 of six" in hint("Because there is no version of\n      six==99.9 and")


@pytest.mark.parametrize("name", ["\x1b[31m", "a b", "<script>", "$(reboot)", "`x`"])
def test_names_that_look_like_none_are_not_repeated(name: str) -> None:
    assert name not in hint(f"there is no version of {name}==1 and {name} was not found in the package registry")


@pytest.mark.parametrize(
    "piece", ["a", "there is no version of a", "a[", "only ", "No matching version found for @a/a", "'a@"]
)
def test_long_hostile_output_is_read_in_little_time(piece: str) -> None:
    begun = time.process_time()
    hint(piece * (1_000_000 // len(piece)), requirements_txt=piece * 100_000)
    assert time.process_time() - begun < 2
