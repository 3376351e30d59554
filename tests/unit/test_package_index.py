"""The package indexes of a cluster of tests ask PyPI and npm's registry alone."""

from __future__ import annotations

import io
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import nullcontext
from http.client import IncompleteRead

import pytest
from tests.package_index import FILES, INDEX, REGISTRY, package_index, source_of


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


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of an index whose way to PyPI is cut off."""

    def refuse(request: urllib.request.Request, **_: object) -> None:
        raise IncompleteRead(b"") if "half" in request.full_url else urllib.error.URLError("no route to host")

    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with monkeypatch.context() as patch, package_index("127.0.0.1", nullcontext()) as urls:
        patch.setattr("tests.package_index.urllib.request.urlopen", refuse)
        patch.setattr("tests.unit.test_package_index.OPEN", direct.open)
        yield urls.python.removesuffix("/simple")


#: Asks without a proxy of this machine.
OPEN = urllib.request.urlopen


@pytest.mark.parametrize(
    ("path", "status"), [("/simple/flask/", 502), ("/simple/half/", 502), ("/files.evil.example/x", 404)]
)
def test_index_answers_what_it_does_not_get(index: str, path: str, status: int) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        OPEN(f"{index}{path}", timeout=30)
    assert refused.value.code == status


def test_answers_name_files_at_the_index(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {f"{INDEX}/simple/a/": f"<a href={FILES}/a.whl>", f"{REGISTRY}/ms": f"{REGISTRY}/ms/-/ms.tgz"}

    class Answer(io.BytesIO):
        status, headers = 200, {"Content-Type": "text/plain"}

    def answer(request: urllib.request.Request, **_: object) -> Answer:
        return Answer(told.get(request.full_url, REGISTRY).encode())

    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with package_index("127.0.0.1", nullcontext()) as urls:
        monkeypatch.setattr("tests.package_index.urllib.request.urlopen", answer)
        at = urls.npm.removesuffix("/npm/")
        assert direct.open(f"{urls.python}/a/").read().decode() == f"<a href={at}/files/a.whl>"
        assert direct.open(f"{urls.npm}ms").read().decode() == f"{at}/npm/ms/-/ms.tgz"
        assert direct.open(f"{urls.npm}ms/-/ms.tgz").read().decode() == REGISTRY, "a file is as it is"
