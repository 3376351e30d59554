"""Valid entrypoints and variables."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builderd.code.model import BundleFile, make_bundle
from builderd.core.errors import ValidationFailed
from builderd.versions.model import (
    MAX_ENTRYPOINT_BYTES,
    MAX_ENV_BYTES,
    PLATFORM_ENV,
    entrypoint_error,
    env_error,
    env_size_error,
    ignored_names,
    parse,
    read_env_file,
)


@pytest.mark.parametrize(
    "entrypoint",
    [
        "python3 main.py",
        "a",
        "sh -c 'x; y' | tee log",
        "a\nb",
        "é",
        "x" * MAX_ENTRYPOINT_BYTES,
        "é" * (MAX_ENTRYPOINT_BYTES // 2),
    ],
)
def test_a_command_is_an_entrypoint(entrypoint: str) -> None:
    assert entrypoint_error(entrypoint) is None


@pytest.mark.parametrize(
    ("entrypoint", "why"),
    [
        ("", "blank"),
        (" \t\n", "blank"),
        ("\u3000", "blank"),
        ("a\0b", "NUL"),
        ("a\ud800", "Unicode"),
        ("x" * (MAX_ENTRYPOINT_BYTES + 1), "4096"),
        ("é" * (MAX_ENTRYPOINT_BYTES // 2 + 1), "4096"),
    ],
)
def test_unusable_entrypoint_is_rejected_with_a_reason(entrypoint: str, why: str) -> None:
    assert why in (entrypoint_error(entrypoint) or "")


@pytest.mark.parametrize("name", ["A", "a", "_", "MY_FLAG", "a1", "port", "N" * 1000])
@pytest.mark.parametrize("value", ["", "1", "a b\nc", "é", "x" * 100_000])
def test_a_plain_variable_is_taken(name: str, value: str) -> None:
    assert env_error(name, value) is None


@pytest.mark.parametrize("name", ["", "1A", "A-B", "A B", "A=B", "A\n", "É", "A\0", "BASH_FUNC_x%%", "N" * 1001])
def test_invalid_variable_name_is_rejected(name: str) -> None:
    assert "name" in (env_error(name, "1") or "")


@pytest.mark.parametrize("name", sorted(PLATFORM_ENV))
def test_platform_variables_cannot_be_set(name: str) -> None:
    assert "platform" in (env_error(name, "1") or "")


@pytest.mark.parametrize(("value", "why"), [("\0", "NUL"), ("\udfff", "Unicode"), ("x" * 100_001, "100000")])
def test_invalid_variable_value_is_rejected_with_a_reason(value: str, why: str) -> None:
    assert why in (env_error("A", value) or "")


def test_all_variables_together_must_fit_into_a_process() -> None:
    assert env_size_error({f"V{number}": "x" * 99_000 for number in range(10)}) is None
    assert "in all" in (env_size_error({f"V{number}": "x" * 100_000 for number in range(10)}) or "")
    assert env_size_error({}) is None


@given(st.text(), st.text())
def test_every_accepted_variable_can_be_handed_to_a_process(name: str, value: str) -> None:
    if env_error(name, value) is None:
        text = f"{name}={value}".encode()
        assert b"\0" not in text
        assert name.isascii()
        assert text.partition(b"=")[0] == name.encode()


TEXT = r"""# settings
PLAIN=value
  export SPACED = two words   # a comment
EMPTY=
HASH=a#b
QUOTED="a # b\n\"c\" \$HOME \d"   # a comment
LITERAL='no \n escapes $HOME'
URL=postgres://user:pass@host/db?a=b
KEY="-----BEGIN-----
line two
-----END-----"
AFTER=1
PLAIN=last
"""


def read(text: str | bytes, path: str = ".env") -> dict[str, str]:
    content = text if isinstance(text, bytes) else text.encode()
    return dict(read_env_file(make_bundle([BundleFile(".env", content)]), path))


def error(text: str | bytes, path: str = ".env") -> list[str]:
    with pytest.raises(ValidationFailed) as refused:
        read(text, path)
    assert set(refused.value.errors) == {"env_file"}
    return list(refused.value.errors["env_file"])


@pytest.mark.parametrize("text", [TEXT, TEXT.replace("\n", "\r\n"), "\ufeff" + TEXT, TEXT.rstrip("\n")])
def test_values_are_read_as_libraries_read_them(text: str) -> None:
    assert read(text) == {
        "PLAIN": "last",
        "SPACED": "two words",
        "EMPTY": "",
        "HASH": "a#b",
        "QUOTED": 'a # b\n"c" $HOME \\d',
        "LITERAL": r"no \n escapes $HOME",
        "URL": "postgres://user:pass@host/db?a=b",
        "KEY": "-----BEGIN-----\nline two\n-----END-----",
        "AFTER": "1",
    }


def test_errors_name_the_lines_and_not_what_stands_on_them() -> None:
    text = "A=1\nsecret words\nB='\n\n1'\nMIIEsecret/+==\nD=\"open\nE='1' more\n"
    assert error(text) == [
        ".env, line 2: must be NAME=VALUE",
        ".env, line 6: must be NAME=VALUE, with only letters, digits and _ in the name, and no digit first",
        '.env, line 7: the value of D has no closing ", or text after it',
        ".env, line 8: the value of E has no closing ', or text after it",
    ]
    assert len(error("no\n" * 100_000)) == 10


def test_a_file_that_cannot_be_read_is_named() -> None:
    assert error("", "other.env") == ['names a file that is not in files: other.env (no file: "env_file": "")']
    assert error(b"A=1\nB=\xff\n") == [".env, line 2: must be text in UTF-8"]
    assert "at most 1000000 bytes" in error("A=" + "a" * MAX_ENV_BYTES)[0]
    assert "line 1: A: must be at most 100000 bytes long" in error("A=" + "a" * 100_001)[0]
    assert "NUL" in error("A=a\0b")[0]


def test_names_of_the_platform_are_not_taken_from_the_file() -> None:
    text = "PORT=3000\nA=1\nSERVICE_TOKEN=x\n"
    assert read(text) == {"A": "1"}
    assert ignored_names(make_bundle([BundleFile(".env", text.encode())]), ".env") == ["PORT", "SERVICE_TOKEN"]


def test_no_path_is_no_file() -> None:
    assert read("not read", "") == {}


HOSTILE = ["A='\n", 'A="\n', "A='\nA=\"\n", 'A="\\\n', "A=" + " #" * 40 + "\n", "export " * 9 + "\n", " ", "A= ", "a"]


@pytest.mark.parametrize("line", [*HOSTILE, "A=" + " " * 90_000 + "b"])
def test_hostile_files_are_read_in_linear_time(line: str) -> None:
    text = line * (200_000 // len(line))
    assert len(parse(text).errors) <= 10
