"""The package index of a cluster of tests asks PyPI alone."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import nullcontext
from http.client import IncompleteRead

import pytest
from tests.package_index import FILES, INDEX, package_index, source_of


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("/simple/flask/", f"{INDEX}/simple/flask/"),
        ("/files/packages/a.whl", f"{FILES}/packages/a.whl"),
        ("/files.evil.example/x", None),
        ("/files@evil.example/x", None),
        ("/simple.evil.example/x", None),
        ("@evil.example/simple/x", None),
        ("http://evil.example/simple/x", None),
        ("/", None),
    ],
)
def test_path_of_the_index_leads_to_pypi_or_nowhere(path: str, source: str | None) -> None:
    assert source_of(path) == source


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of an index whose way to PyPI is cut off."""

    def refuse(request: urllib.request.Request, **_: object) -> None:
        raise IncompleteRead(b"") if "half" in request.full_url else urllib.error.URLError("no route to host")

    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with monkeypatch.context() as patch, package_index("127.0.0.1", nullcontext()) as url:
        patch.setattr("tests.package_index.urllib.request.urlopen", refuse)
        patch.setattr("tests.unit.test_package_index.OPEN", direct.open)
        yield url.removesuffix("/simple")


#: Asks without a proxy of this machine.
OPEN = urllib.request.urlopen


@pytest.mark.parametrize(
    ("path", "status"), [("/simple/flask/", 502), ("/simple/half/", 502), ("/files.evil.example/x", 404)]
)
def test_index_answers_what_it_does_not_get(index: str, path: str, status: int) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        OPEN(f"{index}{path}", timeout=30)
    assert refused.value.code == status
