"""Identifiers and secrets, amounts of resources, commands beside an app, scopes of tokens, masked credentials."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from tests.unit.samples import NOW, SECOND, TENANT

from builderd.core.ids import SandboxId, TokenId, is_id, new_id, new_sandbox_id, new_secret, secret_hash
from builderd.core.resources import GB, MINIMUM, Resources, resource_errors
from builderd.credentials.model import MASK, Masker
from builderd.sandboxes.model import MAX_COMMAND_BYTES, SandboxReport, SandboxState, command_error
from builderd.tokens.model import HOURS, CallHours, Scope, Token


def test_ids_are_uuids_and_differ() -> None:
    ids = {new_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(is_id(one) for one in ids)


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "1A2B3C4D-0000-4000-8000-000000000000", "1a2b3c4d000040008000000000000000", "../", "\ud800", "*"),
        *("1a2b3c4d-0000-4000-8000-000000000000\n", " 1a2b3c4d-0000-4000-8000-000000000000"),
    ],
)
def test_malformed_id_is_rejected(text: str) -> None:
    assert not is_id(text)


def test_sandboxes_are_named_by_16_hex_characters() -> None:
    assert re.fullmatch("[0-9a-f]{16}", new_sandbox_id())
    assert new_sandbox_id() != new_sandbox_id()


def test_a_secret_is_long_random_and_fit_for_a_header() -> None:
    one, other = new_secret("bd"), new_secret("bd")
    assert one != other
    assert re.fullmatch(r"bd_[A-Za-z0-9_-]{43}", one)


def test_a_secret_is_known_by_its_sha256() -> None:
    assert secret_hash("bd_x") == hashlib.sha256(b"bd_x").hexdigest()


def test_no_text_is_too_odd_to_be_looked_up_as_a_secret() -> None:
    assert len(secret_hash("\ud800\0é")) == 64


MAXIMUM = Resources(cpu=8, memory=16, disk=100)


def test_the_bounds_themselves_are_taken() -> None:
    assert resource_errors(MINIMUM, MAXIMUM) == {}
    assert resource_errors(MAXIMUM, MAXIMUM) == {}
    assert resource_errors(Resources(), MAXIMUM) == {}


@pytest.mark.parametrize("amount", [0, -0.0, -1, 0.1, math.nan, math.inf, -math.inf, 1e9, 10**400, 100.0001])
@pytest.mark.parametrize("name", ["cpu", "memory", "disk"])
def test_resource_out_of_bounds_is_rejected_by_name(name: str, amount: float) -> None:
    faults = resource_errors(Resources(**{name: amount}), MAXIMUM)
    assert list(faults) == [name]
    assert "must be from" in faults[name]


def test_message_has_bounds_and_unit() -> None:
    faults = resource_errors(Resources(cpu=9, memory=0, disk=0), MAXIMUM)
    assert faults == {
        "cpu": "must be from 0.25 to 8 vCPU",
        "memory": "must be from 0.125 to 16 GB",
        "disk": "must be from 1 to 100 GB",
    }


def test_a_gb_is_two_to_the_thirtieth_bytes() -> None:
    assert (Resources(memory=0.125).memory_bytes, Resources(disk=3).disk_bytes) == (GB // 8, 3 * GB)


@pytest.mark.parametrize("command", ["ls", "ls -l | wc\n", "é", "x" * MAX_COMMAND_BYTES])
def test_valid_command_is_accepted(command: str) -> None:
    assert command_error(command) is None


@pytest.mark.parametrize(
    ("command", "why"),
    [
        *(("", "blank"), (" \n", "blank"), ("a\0b", "NUL"), ("\ud800", "Unicode")),
        *(("x" * (MAX_COMMAND_BYTES + 1), "100000"), ("é" * MAX_COMMAND_BYTES, "100000")),
    ],
)
def test_invalid_command_is_rejected_with_a_reason(command: str, why: str) -> None:
    assert why in (command_error(command) or "")


@pytest.mark.parametrize(
    ("state", "frozen", "thawed", "sleeps"),
    [
        (SandboxState.FROZEN, 1, None, True),
        (SandboxState.FROZEN, 2, 1, True),
        (SandboxState.FROZEN, 2, 2, True),
        (SandboxState.FROZEN, None, None, False),
        (SandboxState.FROZEN, 1, 2, False),
        (SandboxState.RUNNING, 2, 1, False),
        (SandboxState.EXITED, 1, None, False),
    ],
)
def test_sandbox_sleeps_where_its_last_freeze_was_written_down(
    state: SandboxState, frozen: int | None, thawed: int | None, sleeps: bool
) -> None:
    times = [
        None if second is None else datetime(2026, 11, 30, second=second, tzinfo=UTC) for second in (frozen, thawed)
    ]
    report = SandboxReport(SandboxId("s"), None, state, frozen_at=times[0], thawed_at=times[1])
    assert report.sleeps is sleeps


TOKEN = Token(TokenId("t"), TENANT, "ci", "0" * 64, frozenset({Scope.WRITE}), NOW)


@pytest.mark.parametrize(
    ("scopes", "allowed"),
    [
        ([], ""),
        ([Scope.READ], "read"),
        ([Scope.WRITE], "read write"),
        ([Scope.SKIP_GATES], "skip-gates"),
        ([Scope.READ, Scope.SKIP_GATES], "read skip-gates"),
        ([Scope.ADMIN], "read write skip-gates admin"),
    ],
)
def test_a_token_allows_its_scopes_and_what_they_include(scopes: list[Scope], allowed: str) -> None:
    token = replace(TOKEN, scopes=frozenset(scopes))
    assert [scope.value for scope in Scope if token.allows(scope)] == allowed.split()


def test_a_token_is_valid_until_it_expires_or_is_revoked() -> None:
    assert TOKEN.is_valid(NOW)
    brief = replace(TOKEN, expires_at=NOW + SECOND)
    assert brief.is_valid(NOW)
    assert not brief.is_valid(NOW + SECOND)
    assert not replace(TOKEN, revoked_at=NOW).is_valid(NOW)


NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)


def test_calls_are_those_of_the_last_hours() -> None:
    calls = CallHours().add(5, NOON).add(1, NOON + timedelta(minutes=59)).add(3, NOON + 2 * HOUR)
    assert calls.counts == (6, 0, 3)
    assert [calls.of_day(NOON + hours * HOUR) for hours in (2, 23, 24, 25, 26, 100)] == [9, 9, 3, 3, 0, 0]


def test_hours_of_calls_are_limited() -> None:
    calls = CallHours()
    for hours in (*range(50), 500, 501):
        calls = calls.add(1, NOON + hours * HOUR)
        assert len(calls.counts) <= HOURS
    assert calls.of_day(NOON + 501 * HOUR) == 2


def test_calls_of_another_count_are_added_in_their_own_hours() -> None:
    used = CallHours().add(1, NOON)
    pending = CallHours().add(50, NOON).add(2, NOON + 3 * HOUR)
    both = used.add_all(pending)
    assert (both.counts, both.of_day(NOON + 3 * HOUR), both.of_day(NOON + 24 * HOUR)) == ((51, 0, 0, 2), 53, 2)
    assert pending.add_all(used) == both
    assert CallHours().add_all(pending) == pending.add_all(CallHours()) == pending
    # One that comes a day later finds the old calls gone; one that is older than all kept is counted in the oldest.
    later = CallHours().add(7, NOON + 30 * HOUR)
    assert both.add_all(later).of_day(NOON + 30 * HOUR) == 7
    assert later.add_all(used).counts == (1, *([0] * (HOURS - 2)), 7)


def test_clock_that_was_set_back_loses_no_calls() -> None:
    calls = CallHours().add(5, NOON).add(2, NOON - 3 * HOUR)
    assert calls.of_day(NOON) == calls.of_day(NOON - 3 * HOUR) == 7


SECRET = 'tok"en/ä-1234567'


@pytest.mark.parametrize(
    "text", [SECRET, json.dumps(SECRET), json.dumps(SECRET, ensure_ascii=False), "?key=tok%22en%2F%C3%A4-1234567"]
)
def test_a_value_is_masked_in_each_form(text: str) -> None:
    masked = Masker([SECRET]).text(f"before {text} after")
    assert MASK in masked
    assert "1234567" not in masked
    assert masked.startswith("before ")
    assert masked.endswith(" after")


def test_a_value_of_several_lines_is_masked_line_by_line() -> None:
    assert Masker(["first-line\nsecond-line"]).text("x second-line y") == f"x {MASK} y"


def test_the_longest_of_overlapping_values_is_masked() -> None:
    assert Masker(["secret", "secret-and-more"]).text("secret-and-more") == MASK


def test_short_values_are_left() -> None:
    assert not Masker(["true", "8080", ""])


def test_a_document_keeps_its_names_and_numbers() -> None:
    masker = Masker(["status", "12345678"])
    assert masker.document({"status": ["status", 12345678, None]}) == {"status": [MASK, 12345678, None]}


def test_bytes_that_are_no_text_stay() -> None:
    assert Masker(["secret-1"]).data(b"\xff\x00secret-1\xfe") == b"\xff\x00" + MASK.encode() + b"\xfe"


@pytest.mark.parametrize("size", [1, 3, 7, 64])
def test_a_value_across_pieces_is_masked_while_bytes_go_on(size: int) -> None:
    masker = Masker(["secret-value", "secret"])
    content = b"a secret-value, a secret and \xff the sec of a secret-valu"
    out, rest = b"", b""
    for start in range(0, len(content), size):
        masked, rest = masker.beginning(rest + content[start : start + size])
        out += masked
        assert len(rest) < 12 + size
    assert out + masker.data(rest) == masker.data(content)
