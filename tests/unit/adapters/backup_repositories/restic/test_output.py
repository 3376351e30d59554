"""Errors of restic are passed on within a limit and without secrets."""

from __future__ import annotations

import json
from typing import Any

import pytest

from builderd.adapters.backup_repositories.restic.runs import explain, is_full, parse


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], "restic printed nothing"),
        (["Fatal: unable to open repository"], 'restic printed: "Fatal: unable to open repository"'),
        (['{"message_type":"exit_error","code":1,"message":"Fatal: no space"}'], 'restic printed: "Fatal: no space"'),
        # Of no kind that is known: better than no reason.
        (['{"message_type":"new_kind","reason":"disk"}'], '{"message_type": "new_kind", "reason": "disk"}'),
        (['{"message_type":"summary"}', '{"message_type":"error","error":{"message":"bad"}}'], 'restic printed: "bad"'),
        (["a\x1b[31mb\u202ec"], 'restic printed: "a?[31mb?c"'),
    ],
)
def test_the_last_errors_are_quoted(lines: list[str], expected: str) -> None:
    assert expected in explain(parse(line) for line in lines)


def test_secrets_are_left_out_also_where_a_line_is_cut() -> None:
    for padding in range(270, 300):
        lines = [f"{'x' * padding} hunter2hunter2 https://me:pw@host/"]
        shown = explain([parse(line) for line in lines], ["hunter2hunter2", "x"])
        assert "hunter" not in shown
        assert "pw@" not in shown


def test_error_output_is_bounded() -> None:
    messages: list[dict[str, Any]] = [json.loads(json.dumps({"text": f"{n} {'y' * 5_000}"})) for n in range(100)]
    assert len(explain(messages)) < 1_000


def _error(text: str, **more: str) -> str:
    return json.dumps({"message_type": "error", "error": {"message": text}, **more})


FULL = "write /disk/big: no space left on device"


@pytest.mark.parametrize(
    ("line", "target", "repository"),
    [
        (_error(FULL, during="restore", item="/big"), True, False),
        (_error("mkdir /disk/a: disk quota exceeded", during="restore"), True, False),
        (_error("write /disk/no space left on device: input/output error", during="restore"), False, False),
        (
            _error("symlink /repository/a: no space left on device /disk/b: permission denied", during="restore"),
            False,
            False,
        ),
        # A file that cannot be read, in a backup.
        (_error(FULL, during="scan"), False, False),
        (
            '{"message_type":"exit_error","message":"unable to create lock: write /r/l: no space left on device"}',
            False,
            True,
        ),
        ('{"message_type":"exit_error","message":"Fatal: There were 8 errors"}', False, False),
        # Plain text: a name with a line break could be all of it.
        (FULL, False, False),
    ],
)
def test_last_words_of_an_error_say_that_a_disk_or_repository_is_full(
    line: str, target: bool, repository: bool
) -> None:
    messages = [parse(line)]
    assert is_full(messages, during="restore") is target
    assert is_full(messages) is repository
