"""Apps that no folder alone describes: a job, a bot with its server, gRPC, a compiled program, a driven sandbox."""

from __future__ import annotations

import atexit
import base64
import os
import shutil
import subprocess
import sys
import time
import tomllib
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from tests.acceptance.zoo.app import (
    Files,
    Kept,
    Visit,
    ZooApp,
    all_of,
    answers,
    has_file,
    logs,
    runs,
    written,
)
from tests.acceptance.zoo.telegram import TelegramStub

#: Programs and pages of the apps.
TEXTS: dict[str, str] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())

#: A name that a visitor leaves and that the app shows after the next version.
GUEST = "Ada of the zoo"
#: Minutes for which the sandbox is driven; an hour is what the zoo's issue asks for.
MINUTES = float(os.environ.get("BUILDERD_ZOO_SANDBOX_MINUTES", "5"))
WORKER: dict[str, Any] = {"job_type": "worker"}


def telegram() -> ZooApp:
    """Return a bot and the stub that it polls, which counts with it."""
    stub = TelegramStub()
    return ZooApp(
        "telegram-bot",
        written(main_py=TEXTS["bot"], requirements_txt="python-telegram-bot==22.8\n"),
        "python3 main.py",
        stub.answered,
        Kept(stub.remember, stub.counts_on),
        fields=WORKER,
        around=stub.serving,
    )


PANDAS = ZooApp(
    "pandas-job",
    written(
        job_py=TEXTS["job"],
        animals_csv="kind,weight\ngnu,180\ngnu,220\nyak,500\n",
        requirements_txt="pandas==3.1.1\nmatplotlib==3.11.2\n",
    ),
    "python3 job.py",
    all_of(has_file("out/summary.csv", b"gnu,2,200.0"), has_file("out/summary.png", b"\x89PNG"), logs("yak")),
    Kept(has_file("runs.txt", b"run\n"), has_file("runs.txt", b"run\nrun\n")),
    fields={"job_type": "one_time"},
)

GRPCIO = "grpcio==1.85.3"


@cache
def grpc_python() -> Path:
    """Return a Python with grpcio, for the client."""
    folder = mkdtemp(prefix="bd.")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    venv = Path(folder, "venv")
    subprocess.run((sys.executable, "-m", "venv", venv), check=True)
    subprocess.run((venv / "bin/pip", "install", "-q", GRPCIO), check=True)
    return venv / "bin/python"


def called(words: str, *expected: str) -> Any:
    """Prove that a real client calls all kinds of methods, and is refused without the token."""

    def proof(visit: Visit) -> None:
        host, token = visit.data["preview_url"].split("/")[2], visit.data["service_token"]
        target = f"127.0.0.1:{visit.service.preview_port}"
        call = (grpc_python(), "-c", TEXTS["grpc_client"], target, host, token, words)
        done = subprocess.run(call, capture_output=True, text=True, timeout=120, check=False)
        said = done.stdout.splitlines()
        assert said[:3] == [words.upper(), "1000", "INVALID_ARGUMENT not this"], done
        assert said[3].startswith("UNAUTHENTICATED"), said
        assert {*expected} <= {*said[4:]}, said

    return proof


GRPC = ZooApp(
    "grpc",
    written(main_py=TEXTS["grpc_server"], requirements_txt=f"{GRPCIO}\n"),
    "python3 main.py",
    called("hello"),
    Kept(called("kept words"), called("hello", "kept words")),
    fields={"protocol": "h2c", "require_qa": True, "visibility": "private"},
)


def rust_files(folder: Path) -> Files:
    """Compile the server; its program is sent as an upload, as a program of any size is."""
    compiler = shutil.which("rustc")
    if compiler is None:
        raise RuntimeError("the zoo's program in Rust needs a compiler: apt-get install rustc")
    (folder / "main.rs").write_text(TEXTS["rust_server"])
    program = folder / "server"
    subprocess.run((compiler, "-O", "-C", "strip=symbols", "-o", program, folder / "main.rs"), check=True)
    encoded = base64.b64encode(program.read_bytes()).decode()
    return {"server": {"content": encoded, "encoding": "base64", "executable": True}}


RUST = ZooApp(
    "rust",
    rust_files,
    "./server",
    answers("", "Rust in the zoo"),
    Kept(answers("", GUEST, "POST", content=GUEST), answers("", GUEST)),
    archive=True,
    accept="compiled from the source in the zoo",
)


def drive(visit: Visit) -> None:
    """Prove that a sandbox does what agents do in it, over and over, and is the same at the end."""
    processes = "ls -d /proc/[0-9]* | wc -l"
    visit.run("mkdir -p work && uv venv -q work/venv")
    visit.run("uv pip install -q --python work/venv/bin/python idna==3.10", 300)
    visit.run("(nohup python3 -m http.server 8000 >/dev/null 2>&1 &)")
    before, turns, deadline = int(visit.run(processes)), 0, time.monotonic() + MINUTES * 60
    while time.monotonic() < deadline:
        turns += 1
        assert visit.run(f"echo {turns} >> work/turns.txt; wc -l < work/turns.txt") == f"{turns}\n"
        code = "import idna, sys; print(idna.encode(sys.argv[1]).decode())"
        assert visit.run(f"work/venv/bin/python -c '{code}' gnü{turns}.de").startswith("xn--gn")
        visit.run("printf 'int main(){return 0;}' > work/a.c; git init -q work/repo; git -C work/repo status --short")
        answer = visit.get("work/turns.txt", headers={"X-Service-Token": visit.data["service_token"]})
        assert (answer.status_code, answer.text.splitlines()[-1]) == (200, str(turns))
    assert turns > 0
    assert int(visit.run(processes)) == before


SANDBOX = ZooApp(
    "sandbox",
    lambda _: {},
    None,
    runs("echo here", "here"),
    Kept(all_of(drive, runs(f"echo {GUEST!r} > guests.txt")), runs("cat guests.txt; wc -l < work/turns.txt", GUEST)),
    fields={"job_type": "sandbox"},
)

OTHER_APPS = (telegram(), PANDAS, GRPC, RUST, SANDBOX)
