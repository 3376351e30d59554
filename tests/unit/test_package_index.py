"""The package indexes of a cluster of tests ask PyPI and npm's registry alone."""

from __future__ import annotations

import pytest
from tests.package_index import FILES, INDEX, REGISTRY, source_of


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("/simple/flask/", f"{INDEX}/simple/flask/"),
        ("/files/packages/a.whl", f"{FILES}/packages/a.whl"),
        ("/npm/ms", f"{REGISTRY}/ms"),
        ("/npm/ms/-/ms-2.1.3.tgz", f"{REGISTRY}/ms/-/ms-2.1.3.tgz"),
        ("/npm.evil.example/x", None),
        ("/files.evil.example/x", None),
        ("/files@evil.example/x", None),
        ("/simple.evil.example/x", None),
        ("@evil.example/simple/x", None),
        ("http://evil.example/simple/x", None),
        ("/", None),
    ],
)
def test_path_of_the_index_leads_to_a_registry_or_nowhere(path: str, source: str | None) -> None:
    assert source_of(path) == source
