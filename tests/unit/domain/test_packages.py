import pytest

from builderd.domain.entrypoints import Package, read_package


def test_package_file_names_the_folders_entry_and_its_scripts() -> None:
    assert read_package(b'{"main": "a.js", "scripts": {"start": "node a.js", "x": 1}}') == Package(
        "a.js", ("node a.js",)
    )
    assert read_package(b'{"main": ["a"], "scripts": []}') == Package(None, ())


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"[" * 100_000])
def test_unreadable_package_file_is_ignored(content: bytes) -> None:
    assert read_package(content) is None
