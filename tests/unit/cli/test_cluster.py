"""``builderd cluster``: what is printed and refused; the calls themselves run on real Incus (integration)."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from builderd.adapters.engines.incus.administration import Administration, MemberState, read_token
from builderd.cli.group import builderd
from builderd.domain.errors import ValidationFailed

MEMBERS = [
    MemberState("one", "10.0.0.1", "Online", False, 3, 2, 5.0, 10.0, 1.0, 2.0),
    MemberState("two", "10.0.0.2", "Online", True, 1, 0, 9.0, 10.0, 1.5, 2.0),
    MemberState("three", "10.0.0.3", "Offline", False, 4, 0),
]


@pytest.fixture
def members(monkeypatch: pytest.MonkeyPatch) -> list[MemberState]:
    found = list(MEMBERS)

    async def shown(self: Administration) -> Sequence[MemberState]:
        return found

    monkeypatch.setattr(Administration, "members", shown)
    return found


def run(tmp_path: Path, *words: str) -> Any:
    argv = ["cluster", *words, "--data-dir", str(tmp_path)]
    return CliRunner().invoke(builderd, argv, env={"BUILDERD_ENGINE": "incus"})


def test_status_shows_a_row_for_each_member_and_fails_while_one_is_away(
    tmp_path: Path, members: list[MemberState]
) -> None:
    done = run(tmp_path, "status")
    assert done.exit_code == 1
    assert [line.split("  ")[0] for line in done.stdout.splitlines()] == ["MEMBER", "one", "two", "three"]
    assert "Online (evacuating)" in done.stdout
    assert "5.0 of 10.0 GB" in done.stdout
    members.pop()
    assert run(tmp_path, "status").exit_code == 0


def test_status_in_json_has_all_fields(tmp_path: Path, members: list[MemberState]) -> None:
    shown = json.loads(run(tmp_path, "status", "--json").stdout)
    assert shown[2] == {
        "name": "three",
        "address": "10.0.0.3",
        "status": "Offline",
        "evacuating": False,
        "disks": 4,
        "instances": 0,
        "pool_free": None,
        "pool_total": None,
        "memory_free": None,
        "memory_total": None,
    }


@pytest.mark.parametrize("content", [b"", b"x", b"{}", b"[]", b'{"server_name": "n", "addresses": []}'])
def test_token_that_is_none_is_refused_in_words(content: bytes) -> None:
    with pytest.raises(ValidationFailed) as refused:
        read_token(base64.b64encode(content).decode())
    with pytest.raises(ValidationFailed):
        read_token("no base64 !")
    assert "builderd cluster add NAME" in refused.value.errors["token"][0]


def test_server_that_does_not_answer_is_named(tmp_path: Path) -> None:
    argv = ["cluster", "status", "--data-dir", str(tmp_path)]
    env = {"BUILDERD_ENGINE": "incus", "BUILDERD_INCUS__SOCKET": str(tmp_path / "none")}
    done = CliRunner().invoke(builderd, argv, env=env)
    assert done.exit_code == 1
    assert f"Incus does not answer at {tmp_path / 'none'}" in done.output
