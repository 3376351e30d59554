"""Files of a builder over the API: read, written and deleted while its app runs, and while it is stopped."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator
from typing import Any

import pytest
import zstandard
from tests.acceptance.live_service import TINY_APP, LiveService
from tests.acceptance.scenarios import run

pytestmark = [pytest.mark.root, pytest.mark.engines]


@pytest.fixture
def builder(service: LiveService) -> Iterator[dict[str, Any]]:
    with service.deployed("with-files", {"main.py": TINY_APP, "data/kept.txt": "kept"}, "python3 main.py") as data:
        yield data


def test_files_are_shared_with_the_app(service: LiveService, builder: dict[str, Any]) -> None:
    path = f"/builders/{builder['uuid']}/files"
    assert run(service, builder["uuid"], "echo by the app > made; ln -s /etc/passwd link; chmod 700 data")[0] == 0
    entries = {one["name"]: one for one in service.call("GET", path).json()["data"]}
    assert {name: one["type"] for name, one in entries.items()} == {
        "data": "folder",
        "link": "link",
        "made": "file",
        "main.py": "file",
    }
    assert service.call("GET", f"{path}/made").text == "by the app\n"
    assert service.call("GET", f"{path}/made", headers={"Range": "bytes=3-5"}).text == "the"
    assert service.call("GET", f"{path}/link").status_code != 200, "no link is followed"
    assert service.call("PUT", f"{path}/new/deep/file", content=b"from outside").status_code == 201
    assert service.call("PUT", f"{path}/new/deep/file", content=b"again").status_code == 200
    assert run(service, builder["uuid"], "cat new/deep/file; stat -c %U new/deep/file") == (0, "againapp\n")
    assert service.call("DELETE", f"{path}/new").status_code == 422, "it is not empty"
    assert service.call("DELETE", f"{path}/new?recursive=true").status_code in (200, 204)
    assert run(service, builder["uuid"], "test -e new")[0] == 1


def test_large_file_goes_up_and_down_unchanged(service: LiveService, builder: dict[str, Any]) -> None:
    content = hashlib.shake_128(b"large").digest(8_000_000)
    path = f"/builders/{builder['uuid']}/files/large"
    assert service.call("PUT", path, content=content).status_code == 201
    assert run(service, builder["uuid"], "sha256sum large")[1].split()[0] == hashlib.sha256(content).hexdigest()
    assert service.call("GET", path).content == content


def test_files_of_a_stopped_builder_are_read_and_written(service: LiveService, builder: dict[str, Any]) -> None:
    uuid = builder["uuid"]
    assert service.call("POST", f"/builders/{uuid}/stop").status_code == 200
    assert service.call("GET", f"/builders/{uuid}/files/data/kept.txt").text == "kept"
    assert service.call("PUT", f"/builders/{uuid}/files/data/note", content=b"while stopped").status_code == 201
    archive = service.call("GET", f"/builders/{uuid}/archive")
    assert archive.status_code == 200
    plain = zstandard.ZstdDecompressor().decompressobj().decompress(archive.content)
    with tarfile.open(fileobj=io.BytesIO(plain)) as files:
        found = {name.removeprefix("./"): files.extractfile(name) for name in files.getnames() if "data/" in name}
        assert {name: file.read() for name, file in found.items() if file} == {
            "data/kept.txt": b"kept",
            "data/note": b"while stopped",
        }
    assert service.builder(uuid)["status"] == "stopped", "nothing was started for it"
    assert service.call("POST", f"/builders/{uuid}/start").status_code == 200
    assert run(service, uuid, "cat data/note") == (0, "while stopped")


def test_uploaded_archive_is_deployed(service: LiveService) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in {"app/main.py": TINY_APP.encode(), "app/large": bytes(3_000_000)}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    upload = service.call("POST", "/uploads", json={}).json()["data"]
    whole = packed.getvalue()
    path = f"/uploads/{upload['upload_url'].rpartition('/uploads/')[2]}"
    assert service.call("PUT", path, content=whole).status_code in (200, 201, 204)
    request = {"name": "uploaded", "entrypoint": "python3 main.py", "source": {"upload_id": upload["upload_id"]}}
    answer = service.call("POST", "/builders", json={**request, "port": 8000})
    try:
        assert answer.status_code == 201, answer.text
        data = answer.json()["data"]
        assert service.visit(data).text == "hello"
        assert run(service, data["uuid"], "stat -c %s large") == (0, "3000000\n")
    finally:
        service.call("DELETE", f"/builders/{answer.json()['data']['uuid']}")
