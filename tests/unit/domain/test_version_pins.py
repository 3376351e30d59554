"""The install log names the Python or Node.js that runs where a project asks for another."""

from __future__ import annotations

import pytest

from builderd.domain.bundles import BundleFile, make_bundle
from builderd.domain.version_pins import NODE, PYTHON, pin_notes


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


def test_versions_are_those_of_the_base() -> None:
    assert (PYTHON, NODE) == ((3, 13), 20)
