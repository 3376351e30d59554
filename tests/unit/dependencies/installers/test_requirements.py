"""Requirements files are parsed, or refused with the line."""

from __future__ import annotations

import json

import pytest

from builderd.code.model import BundleFile, make_bundle
from builderd.core.errors import InstallFailed
from builderd.dependencies.installers.project import read_project
from builderd.dependencies.installers.requirements import read_requirements


def read(text: str | bytes, **files: str) -> tuple[str, ...]:
    found = read_requirements(bundle(text, **files))
    return found.lines if found else ()


def bundle(text: str | bytes, **files: str):  # type: ignore[no-untyped-def]
    content = text if isinstance(text, bytes) else text.encode()
    others = [BundleFile(f"{name}.txt", other.encode()) for name, other in files.items()]
    return make_bundle([BundleFile("requirements.txt", content), *others])


def test_lines_are_sorted_and_stripped_of_comments_and_blanks() -> None:
    assert read("# web\nflask  # the framework\n\n\r\nDjango>=5,<6\r\n") == ("Django<6,>=5", "flask")


def test_markers_extras_and_hashes_are_kept() -> None:
    digest = "a" * 64
    line = f'uvicorn[standard]>=0.30 ; python_version > "3.10" \\\n  --hash=sha256:{digest}\n'
    (written,) = read(line)
    assert written.startswith("uvicorn[standard]>=0.30")
    assert written.endswith(f"--hash=sha256:{digest}")


def test_a_file_without_requirements_asks_for_nothing() -> None:
    assert read_requirements(bundle("# nothing\n\n")) is None
    assert read_requirements(make_bundle([BundleFile("main.py", b"")])) is None


def test_included_files_and_constraints_are_read_from_the_bundle() -> None:
    found = read_requirements(bundle("-r base.txt\n-c limits.txt\nflask", base="requests", limits="flask<4"))
    assert found is not None
    assert found.lines == ("flask", "requests")
    assert found.constraints == ("flask<4",)


def test_an_address_is_foreign_code() -> None:
    found = read_requirements(bundle("thing @ https://example.org/thing-1.0.tar.gz"))
    assert found is not None
    assert found.foreign


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("--index-url https://evil.example/simple\nflask", "package index is set by the operator"),
        ("--index-url=https://evil.example/simple", "package index is set by the operator"),
        ("-ihttps://evil.example/simple", "refused"),
        ("  --extra-index-url https://evil.example", "package index is set by the operator"),
        ("--extra-\\\nindex-url https://evil.example", "refused"),
        ("--find-links /etc", "from the package index only"),
        ("--trusted-host evil.example", "certificates are always checked"),
        ("-e ./libs", "editable"),
        ("--no-binary :all:", "no effect"),
        ("./pkg", "a path is refused"),
        ("../../etc", "a path is refused"),
        ("/etc/passwd", "no requirement"),
        ("pkg/sub", "a path is refused"),
        ("git+https://example.org/x.git", "write it as"),
        ("x @ file:///etc/passwd", "only https://"),
        ("x @ git+ssh://example.org/x", "only https://"),
        ("x @ http://example.org/x.tar.gz", "only https://"),
        ("x @ https://example.org/$(id)", "only https://"),
        ("flask; rm -rf /", "no requirement"),
        ("flask --config-settings=x=y", "no requirement"),
        ("-r missing.txt", "there is no file"),
        ("-r ../../../etc/passwd", "there is no file"),
        ("-r requirements.txt", "more than 5 deep"),
        ("flask\x00", "no requirement"),
    ],
)
def test_refused_requirement_names_line_and_reason(text: str, why: str) -> None:
    with pytest.raises(InstallFailed) as refused:
        read(text)
    assert "requirements.txt, line 1:" in refused.value.message
    assert why in refused.value.message


@pytest.mark.parametrize(
    "line",
    [
        r"""six; python_version > '3"\n--index-url https://evil.example/simple'""",
        r"""six; python_version > "3\n--index-url https://evil.example/simple" """,
        r"""six; '3\r--index-url https://evil.example' < python_version""",
        r"""six; os_name == "\x0a-r /etc/passwd" """,
        r"""six; os_name == "\12--find-links /" """,
        r"""six; os_name == "\u000a--pre" or os_name == "posix" """,
        r"""six; os_name == "\U0000000a--pre" """,
        r"""six; os_name == "\v--pre" """,
        r"""six; os_name == "\f--pre" """,
        r"""six; os_name == "\x85--pre" """,
        r"""six; os_name == "\u2028--pre" """,
        r"""six; os_name == "\N{PARAGRAPH SEPARATOR}--pre" """,
        r"""six; os_name == "\x00" """,
        r"""six; os_name == "\ud800" """,
        "six @ https://example.org/six\x01.tar.gz",
        "six @ https://example.org/six\x7f.tar.gz",
        "six @ https://example.org/six\u202e.tar.gz",
    ],
)
def test_line_is_never_rewritten_as_two(line: str) -> None:
    with pytest.raises(InstallFailed, match="a line break or another unprintable"):
        read(line)
    with pytest.raises(InstallFailed, match="a line break or another unprintable"):
        read_project(make_bundle([BundleFile("pyproject.toml", f"[project]\ndependencies = [{toml(line)}]".encode())]))


def toml(text: str) -> str:
    return json.dumps(text).replace("\x7f", "\\u007f")


def test_text_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(InstallFailed, match="UTF-8"):
        read(b"flask\xff")


def test_byte_order_mark_is_ignored() -> None:
    assert read(b"\xef\xbb\xbfflask\n") == ("flask",)


def test_text_in_utf16_with_its_mark_is_read() -> None:
    assert read("flask\r\n".encode("utf-16")) == ("flask",)


def test_a_bomb_of_lines_is_refused() -> None:
    with pytest.raises(InstallFailed, match="at most 2000 lines"):
        read("\n".join(f"package-{number}" for number in range(5000)))


def test_files_that_include_each_other_widely_end_at_the_line_limit() -> None:
    with pytest.raises(InstallFailed):
        read("-r a.txt\n" * 50, a="-r b.txt\n" * 50, b="flask\n" * 50)
