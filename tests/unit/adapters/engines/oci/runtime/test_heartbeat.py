"""The heartbeat tells the last moment at which something ran."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from builderd.adapters.engines.oci.runtime import heartbeat
from builderd.adapters.engines.oci.runtime.heartbeat import Beat, Heartbeat


def test_the_last_beat_is_found_by_the_next_service(tmp_path: Path) -> None:
    times = iter([1000.5, 2000.25])
    first = Heartbeat(tmp_path / "heartbeat", "boot-1", lambda: next(times))
    assert first.last() is None
    first.beat()
    first.beat()
    assert Heartbeat(tmp_path / "heartbeat", "boot-2", float).last() == Beat("boot-1", 2000.25)


@pytest.mark.parametrize("text", ["", "boot", "boot x", "boot 1 2"])
def test_damaged_heartbeat_file_is_ignored(tmp_path: Path, text: str) -> None:
    (tmp_path / "heartbeat").write_text(text)
    assert Heartbeat(tmp_path / "heartbeat", "boot", float).last() is None


def test_the_file_keeps_its_length(tmp_path: Path) -> None:
    times = iter([999.0, 123456789012.0])
    beating = Heartbeat(tmp_path / "heartbeat", "b" * 36, lambda: next(times))
    sizes = []
    for _ in range(2):
        beating.beat()
        sizes.append((tmp_path / "heartbeat").stat().st_size)
    assert sizes == [heartbeat.LENGTH] * 2


async def test_heartbeat_runs_only_while_sandboxes_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "INTERVAL", 0.001)
    beats: list[float] = []
    busy = True

    def now() -> float:
        beats.append(1.0)
        return 1.0

    beating = Heartbeat(tmp_path / "heartbeat", "boot", now)
    beating.start(lambda: busy)
    while len(beats) < 3:
        await asyncio.sleep(0.001)
    busy = False
    await asyncio.sleep(0.02)
    seen = len(beats)
    await asyncio.sleep(0.02)
    assert len(beats) == seen
    beating.stop()


async def test_failed_heartbeat_write_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(heartbeat, "INTERVAL", 0.001)
    folder = tmp_path / "data"
    beats = 0

    def now() -> float:
        nonlocal beats
        beats += 1
        return float(beats)

    async def until(beaten: int) -> None:
        async with asyncio.timeout(10):
            while beats < beaten:
                await asyncio.sleep(0.001)

    beating = Heartbeat(folder / "heartbeat", "boot", now)
    beating.start(lambda: True)
    await until(5)
    folder.mkdir()
    await until(beats + 5)
    assert beating.last()
    assert caplog.text.count("heartbeat not written") == 1
    folder.rename(tmp_path / "away")
    await until(beats + 5)
    assert caplog.text.count("heartbeat not written") == 2
    beating.stop()
