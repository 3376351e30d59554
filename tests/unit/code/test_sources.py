"""Files that are scanned as code; code is never skipped silently."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from builderd.code.model import BundleFile
from builderd.code.sources import (
    Kind,
    References,
    executed_kinds,
    is_compiled,
    is_opaque,
    kind_of,
    reachable_files,
    select_files,
)
from builderd.review.model import ReviewLimits


def file(path: str, content: bytes = b"x\n") -> BundleFile:
    return BundleFile(path, content)


def test_text_never_takes_the_place_of_code() -> None:
    texts = [file(f"a/{number}.txt") for number in range(50)]
    for limits in (ReviewLimits(files=2), ReviewLimits(total_bytes=10)):
        reading = select_files([*texts, file("web/package.json"), file("z.py")], limits, {})
        assert [one.path for one, _ in reading.read[:2]] == ["web/package.json", "z.py"]
        assert len(reading.read) < 50
        assert (reading.too_large, reading.beyond) == ((), ())


def test_code_that_is_not_read_is_named() -> None:
    large, more = file("large.py", b"x" * 30), [file(f"{number}.js") for number in range(3)]
    reading = select_files([large, *more], ReviewLimits(files=1, file_bytes=20), {})
    assert [one.path for one, _ in reading.read] == ["0.js", "1.js"]
    assert [one.path for one in reading.too_large] == ["large.py"]
    assert [one.path for one in reading.beyond] == ["2.js"]


def test_packages_that_are_shipped_along_do_not_count_as_code() -> None:
    reading = select_files(
        [file("node_modules/a/package.json"), file("a.py")], ReviewLimits(files=1, total_bytes=3), {}
    )
    assert [one.path for one, _ in reading.read] == ["a.py"]
    assert reading.beyond == ()


@pytest.mark.parametrize(
    ("path", "content", "kind"),
    [
        ("payload.pyc", b"x", Kind.BINARY),
        ("app.pyz", b"PK\x03\x04", Kind.BINARY),
        ("app", b"#!/usr/bin/env python3\nPK\x03\x04", Kind.BINARY),
        ("lib/a.jar", b"PK\x03\x04", Kind.BINARY),
        ("__pycache__/a.cpython-313.pyc", b"\xf3\r\r\n\0\0\0\0time", Kind.DATA),
        ("__pycache__/a.cpython-313.pyc", b"\xf3\r\r\n\x01\0\0\0hash", Kind.BINARY),
        ("static/a.wasm", b"\0asm", Kind.DATA),
        ("data.zip", b"PK\x03\x04\0", Kind.DATA),
        ("data.db", b"SQLite format 3\0", Kind.DATA),
    ],
)
def test_binary_program_differs_from_data(path: str, content: bytes, kind: Kind) -> None:
    assert kind_of(file(path, content)) is kind


@pytest.mark.parametrize(
    ("path", "programs", "kind"),
    [
        ("app.dat", ["python3"], Kind.PYTHON),
        ("app.txt", ["python3.13"], Kind.PYTHON),
        ("app.json", ["python3"], Kind.PYTHON),
        ("start", ["sh"], Kind.SCRIPT),
        ("app.json", ["sh"], Kind.SCRIPT),
        ("app.dat", ["node"], Kind.JAVASCRIPT),
        ("app.ts", ["node"], Kind.SCRIPT),
        ("app.json", ["node"], Kind.TEXT),
        ("app.dat", ["bun"], Kind.SCRIPT),
        ("app.dat", [""], Kind.DATA),
        ("app.py", ["sh"], Kind.PYTHON),
        ("app.js", ["sh", "python3"], Kind.PYTHON),
    ],
)
def test_a_file_is_what_it_is_run_as(path: str, programs: list[str], kind: Kind) -> None:
    assert executed_kinds([file(path)], [(path, program) for program in programs]) == {path: kind}


@pytest.mark.parametrize("content", [b"PK\x03\x04", b"\0asm", b"\xf3\r\r\n\0\0\0\0"])
def test_executed_binary_file_is_a_program_under_any_name(content: bytes) -> None:
    assert executed_kinds([file("app.dat", content)], [("app.dat", "python3")]) == {"app.dat": Kind.BINARY}


def test_files_that_cannot_be_judged_are_recognised() -> None:
    assert is_opaque(file("start", b"b\0ash"), Kind.SCRIPT)
    assert is_opaque(file("start"), Kind.DATA)
    assert not is_opaque(file("start"), Kind.SCRIPT)
    assert is_compiled(file("a.wasm", b"\0asm\1"))
    assert not is_compiled(file("a.db"))


PATHS = {"app.py", "a/__init__.py", "a/b.py", "a/c.py", "tests/p.py", "lib/x.js", "lib/y/index.js", "index.js", "t.py"}


@pytest.mark.parametrize(
    ("references", "more"),
    [
        ({}, set()),
        ({"app.py": References(modules=("a.b",))}, {"a/__init__.py", "a/b.py"}),
        (
            {"app.py": References(modules=("a.b",)), "a/b.py": References(modules=(".c",))},
            {"a/__init__.py", "a/b.py", "a/c.py"},
        ),
        (
            {"app.py": References(modules=("a.b",)), "a/b.py": References(modules=("..t",))},
            {"a/__init__.py", "a/b.py", "t.py"},
        ),
        ({"app.py": References(modules=("p",))}, set()),
        ({"app.py": References(modules=("p",), folders=("tests",))}, {"tests/p.py"}),
        ({"app.py": References(paths=("tests/p.py",))}, {"tests/p.py"}),
        ({"app.py": References(paths=("/app/t.py",))}, {"t.py"}),
        ({"app.py": References(modules=("os", "gone.away"), paths=("/etc/passwd", "../x"))}, set()),
        ({"app.py": References(anything=True)}, PATHS),
        ({"t.py": References(anything=True)}, set()),
    ],
)
def test_python_leads_to(references: Mapping[str, References], more: set[str]) -> None:
    assert reachable_files(["app.py"], references, PATHS) == {"app.py"} | more


def test_scripts_lead_to_scripts() -> None:
    references = {"index.js": References(scripts=("./lib/x",)), "lib/x.js": References(scripts=("./y", "../../out"))}
    assert reachable_files(["index.js"], references, PATHS) == {"index.js", "lib/x.js", "lib/y/index.js"}


def test_circles_come_to_an_end() -> None:
    references = {"app.py": References(modules=("t",)), "t.py": References(modules=("app",))}
    assert reachable_files(["app.py"], references, PATHS) == {"app.py", "t.py"}
