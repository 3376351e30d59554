from collections.abc import Mapping

import pytest

from builderd.domain.sources import References, reachable_files

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
