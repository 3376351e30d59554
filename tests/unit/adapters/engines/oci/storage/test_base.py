"""The base is built once and atomically, also for concurrent callers. The tools are stubs here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from builderd.adapters.engines.oci.storage.base import Base, ensure_base
from builderd.domain.errors import EngineUnavailable

#: Makes the folder that it is asked for, slowly, and notes that it ran.
MAKER = """#!/bin/sh
echo "I: running apt-get update..." >&2
echo run >> "$COUNT"
for target in "$@"; do case $target in */root) break ;; esac; done
mkdir "$target"
echo "first" > "$target/first"
sleep "${SLEEP:-0}"
[ -z "$FAIL" ] || { echo "E: cannot reach the mirror" >&2; exit 1; }
echo "I: success in 1.0 seconds" >&2
"""
TOOLS = {
    "unshare": MAKER,
    "dpkg": "#!/bin/sh\necho amd64\n",
    "dpkg-query": "#!/bin/sh\necho base-files=13; echo python3=3.13\n",
    "apt-get": "#!/bin/sh\n",
    "apt-config": "#!/bin/sh\n",
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in TOOLS.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    monkeypatch.setenv("COUNT", str(tmp_path / "count"))
    return tmp_path / "home"


def runs(home: Path) -> int:
    return len((home.parent / "count").read_text().splitlines())


def leftovers(home: Path) -> list[str]:
    return [path.name for path in (home / "bases").iterdir() if path.name.startswith(".")]


def test_base_is_built_with_progress(home: Path) -> None:
    lines: list[str] = []
    base = ensure_base(lines.append, home)
    assert (base.root / "first").exists()
    assert lines[0].startswith("base: making a Debian trixie")
    assert "base: running apt-get update" in lines
    assert lines[-1] == "base: ready, 2 packages"
    record = json.loads((base.root.parent / "base.json").read_text())
    assert record["packages"] == ["base-files=13", "python3=3.13"]
    assert record["id"] == base.id
    assert leftovers(home) == []


def test_second_service_uses_the_built_base(home: Path) -> None:
    lines: list[str] = []
    first = ensure_base(print, home)
    assert ensure_base(lines.append, home) == first
    assert lines == []
    assert runs(home) == 1


def test_unused_base_is_removed_after_a_new_one(home: Path) -> None:
    old, used = (home / "bases" / name for name in ("old", "used"))
    for base in (old, used):
        (base / "root").mkdir(parents=True)
    os.utime(old, (0, 0))
    made = ensure_base(print, home).root.parent
    assert sorted((home / "bases").iterdir()) == sorted([used, made])


def test_concurrent_callers_share_one_build(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLEEP", "0.3")
    found: list[Base] = []
    lines: list[str] = []
    askers = [threading.Thread(target=lambda: found.append(ensure_base(lines.append, home))) for _ in range(4)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert len(found) == 4
    assert len({base.id for base in found}) == 1
    assert runs(home) == 1
    assert "base: waiting for another process that makes it" in lines


def test_failed_base_build_shows_the_tools_output(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIL", "1")
    with pytest.raises(EngineUnavailable, match="E: cannot reach the mirror"):
        ensure_base(print, home)
    assert leftovers(home) == []
    monkeypatch.setenv("FAIL", "")
    assert (ensure_base(print, home).root / "first").exists()


def test_a_missing_tool_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home.parent / "bin/unshare").unlink()
    monkeypatch.setenv("PATH", str(home.parent / "bin"))
    with pytest.raises(EngineUnavailable, match="unshare"):
        ensure_base(print, home)


def test_a_service_that_is_killed_half_way_is_waited_for_and_its_half_is_thrown_away(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tool goes on for a while without its service: two of them must never work on one folder."""
    monkeypatch.setenv("SLEEP", "1")
    program = (
        "import sys, pathlib; from builderd.adapters.engines.oci.storage.base import ensure_base;"
        "ensure_base(lambda line: print(line, flush=True), pathlib.Path(sys.argv[1]))"
    )
    service = subprocess.Popen([sys.executable, "-c", program, home], stdout=subprocess.PIPE, text=True)
    assert service.stdout
    while "running apt-get" not in service.stdout.readline():
        pass
    service.send_signal(signal.SIGKILL)
    service.wait()
    lines: list[str] = []
    monkeypatch.setenv("SLEEP", "0")
    ensure_base(lines.append, home)
    assert lines[0] == "base: waiting for another process that makes it"
    assert runs(home) == 2
    assert leftovers(home) == []
