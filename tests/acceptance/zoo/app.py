"""Describe an app of the zoo: its files, what proves that it is up, and what it keeps over a new version."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from tests.acceptance.live_service import LiveService

#: Text, or ``{"content", "encoding": "base64"}``, by path.
Files = Mapping[str, Any]
#: Seconds for which an app that is up may take for a proof, against hanging only.
PATIENCE = 240.0


@dataclass(frozen=True)
class Visit:
    """A deployed app, as its proofs see it: ``data`` is the builder of the API."""

    service: LiveService
    data: Mapping[str, Any]

    @property
    def path(self) -> str:
        return f"/builders/{self.data['uuid']}"

    def get(self, path: str = "", method: str = "GET", **options: Any) -> httpx.Response:
        return self.service.visit(self.data, path, method, **options)

    def run(self, command: str, seconds: int = 120) -> str:
        """Return the output of a command beside the app, which must end with code 0."""
        request = {"command": command, "timeout": seconds}
        answer = self.service.call("POST", f"{self.path}/exec", json=request)
        assert answer.status_code == 200, answer.text
        result = answer.json()["data"]
        assert result["exit_code"] == 0, result
        output: str = result["output"]
        return output

    def lines(self) -> list[str]:
        log = self.service.call("GET", f"{self.path}/logs?tail=500").json()["data"]
        return [line["text"] for line in log]


#: Raises ``AssertionError`` while the app does not do what it is for.
Proof = Callable[[Visit], object]


@dataclass(frozen=True)
class Kept:
    """A datum that a new version must find: ``write`` makes it, ``read`` proves that it is there."""

    write: Proof
    read: Proof


@dataclass(frozen=True)
class ZooApp:
    """``make`` returns the files, in a folder of its own.

    ``fields`` are further fields of the create request: most apps need none; ``around`` gives more of them, while the
    app is looked at. ``archive``: its files are sent by the upload API.
    ``accept``: the reason for which a person lets pass what holds it in the review.
    """

    name: str
    make: Callable[[Path], Files]
    entrypoint: str | None
    proof: Proof
    kept: Kept
    fields: Mapping[str, Any] = field(default_factory=dict)
    around: Callable[[], AbstractContextManager[Mapping[str, Any]]] = lambda: nullcontext({})
    archive: bool = False
    accept: str = ""

    @property
    def kind(self) -> str:
        return str(self.fields.get("job_type", "always_on"))

    def body(self, folder: Path) -> dict[str, Any]:
        """Return the create request, with the files in it."""
        body: dict[str, Any] = {"name": self.name, **self.fields}
        if files := dict(self.make(folder)):
            body["files"] = files
        return body if self.entrypoint is None else {**body, "entrypoint": self.entrypoint}


def written(**files: Any) -> Callable[[Path], Files]:
    """Return a maker of files that are written here: ``main_py`` is ``main.py``, ``a__b_py`` is ``a/b.py``."""
    named = {".".join(name.replace("__", "/").rsplit("_", 1)): content for name, content in files.items()}
    return lambda _: named


def eventually(visit: Visit, proof: Proof) -> float:
    """Repeat the proof until it holds; the seconds that took. Raises its last ``AssertionError``."""
    begun = time.monotonic()
    while True:
        try:
            proof(visit)
            return time.monotonic() - begun
        except (AssertionError, httpx.TransportError, OSError):
            if time.monotonic() - begun > PATIENCE:
                raise
            time.sleep(0.25)


def answers(path: str, text: str, method: str = "GET", status: int = 200, **options: Any) -> Proof:
    """Prove that a request is answered with this status and a body that holds the text."""

    def proof(visit: Visit) -> None:
        answer = visit.get(path, method, **options)
        assert answer.status_code == status, f"{method} /{path}: {answer.status_code} {answer.text[:300]}"
        assert text in answer.text, f"{method} /{path} has no {text!r}: {answer.text[:300]}"

    return proof


def runs(command: str, text: str = "") -> Proof:
    """Prove that a command in the sandbox ends with code 0 and writes the text."""

    def proof(visit: Visit) -> None:
        output = visit.run(command)
        assert text in output, output

    return proof


def logs(text: str) -> Proof:
    """Prove that a line of the log holds the text."""

    def proof(visit: Visit) -> None:
        lines = visit.lines()
        assert any(text in line for line in lines), lines[-20:]

    return proof


def has_file(path: str, text: bytes) -> Proof:
    """Prove that a file of the app, read by the API of files, holds the bytes."""

    def proof(visit: Visit) -> None:
        answer = visit.service.call("GET", f"{visit.path}/files/{path}")
        assert answer.status_code == 200, answer.text
        assert text in answer.content, answer.content[:300]

    return proof


def all_of(*proofs: Proof) -> Proof:
    """Return the proof that all of these hold, in their order."""

    def proof(visit: Visit) -> None:
        for one in proofs:
            one(visit)

    return proof
