"""Files with environment variables: what is read, and which line is wrong."""

from __future__ import annotations

import pytest

from builderd.domain.bundles import BundleFile, make_bundle
from builderd.domain.errors import ValidationFailed
from builderd.domain.versions import MAX_ENV_BYTES, ignored_names, parse, read_env_file

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
