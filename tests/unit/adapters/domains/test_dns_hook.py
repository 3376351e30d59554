"""The operator's program for TXT records: how it is called, what it is not given, and its failures in words."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from builderd.adapters.domains.dns_updates import HookUpdates
from builderd.ports.previews import OrderFailed


def hook(tmp_path: Path, script: str, seconds: float = 30) -> HookUpdates:
    program = tmp_path / "hook"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return HookUpdates(program, seconds)


async def test_it_is_called_with_words_and_without_the_services_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUILDERD_VAULT__KEY", "secret")
    script = 'for word; do echo "<$word>"; done >>{0}/said; env >>{0}/env; pwd >>{0}/at'
    made = hook(tmp_path, script.format(tmp_path))
    hostile = '$(touch /tmp/x) "; a'
    await made.add_text("_acme-challenge.apps.test", hostile)
    await made.remove_text("_acme-challenge.apps.test", "value")
    said = (tmp_path / "said").read_text().splitlines()
    assert said[:3] == ["<set>", "<_acme-challenge.apps.test>", f"<{hostile}>"]
    assert said[3:] == ["<unset>", "<_acme-challenge.apps.test>", "<value>"]
    names = {line.partition("=")[0] for line in (tmp_path / "env").read_text().splitlines()}
    assert names <= {"PATH", "HOME", "LANG", "PWD", "SHLVL", "_", "OLDPWD"}
    assert (tmp_path / "at").read_text() == "/\n/\n"


async def test_its_failure_is_reported_with_what_it_printed(tmp_path: Path) -> None:
    made = hook(tmp_path, r"printf 'first\n\033[31mzone not found\n' >&2; exit 3")
    with pytest.raises(OrderFailed, match=r"hook set failed with 3: first \[31mzone not found$"):
        await made.add_text("name", "value")
    with pytest.raises(OrderFailed, match="unset failed with 1, and printed nothing"):
        await hook(tmp_path, "exit 1").remove_text("name", "value")
    with pytest.raises(OrderFailed, match=r"cannot be started: No such file"):
        await HookUpdates(tmp_path / "none", 1).add_text("name", "value")


async def test_a_hook_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    made = hook(tmp_path, f"echo waits; sleep 1000 & echo $! >{tmp_path}/child; wait", seconds=0.5)
    begin = time.monotonic()
    with pytest.raises(OrderFailed, match=r"took more than 0\.5 s \(acme\.hook_timeout\): waits"):
        await made.add_text("name", "value")
    assert time.monotonic() - begin < 20
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 20
    while _runs(child):
        assert time.monotonic() < deadline
        os.sched_yield()


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
