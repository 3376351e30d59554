"""The command line: tokens, what is refused, and what the machine lacks."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from builderd.bootstrap.database import store as open_store
from builderd.bootstrap.tokens import list_tokens
from builderd.doors.cli.main import main
from builderd.services import tokens
from builderd.settings import load


def run(*words: str, data_dir: Path | None = None) -> Result:
    return CliRunner().invoke(main, [*words, *(["--data-dir", str(data_dir)] if data_dir else [])])


def make_token(data_dir: Path, *words: str) -> str:
    made = run("token", "create", "--tenant", "acme", *words, data_dir=data_dir)
    assert made.exit_code == 0, made.output
    return made.stdout.splitlines()[-1]


def authenticate(data_dir: Path, secret: str) -> str:
    async def look() -> str:
        async with open_store(load(data_dir=data_dir)) as store:
            token = await store.read(lambda uow: tokens.authenticate(uow, secret, datetime.now(UTC)))
            return token.name

    return asyncio.run(look())


def test_the_token_stands_alone_on_the_last_line_and_is_good(tmp_path: Path) -> None:
    secret = make_token(tmp_path, "--name", "ci")
    assert secret.startswith("bd_")
    assert authenticate(tmp_path, secret) == "ci"


def test_the_data_directory_is_its_owners_alone(tmp_path: Path) -> None:
    make_token(tmp_path / "new")
    assert (tmp_path / "new").stat().st_mode & 0o077 == 0


def test_a_revoked_token_is_good_no_more(tmp_path: Path) -> None:
    secret = make_token(tmp_path)
    listed = run("token", "list", "--tenant", "acme", data_dir=tmp_path)
    token_id = listed.output.split()[0]
    assert secret not in listed.output
    assert run("token", "revoke", "--tenant", "acme", token_id, data_dir=tmp_path).exit_code == 0
    with pytest.raises(Exception, match="revoked"):
        authenticate(tmp_path, secret)


@pytest.mark.parametrize("expiry", ["1h", "30d", "2099-01-31T12:00:00Z", "2099-01-31T12:00:00"])
def test_spans_and_times_are_taken_as_expiry(tmp_path: Path, expiry: str) -> None:
    assert authenticate(tmp_path, make_token(tmp_path, "--expires", expiry)) == "cli"


@pytest.mark.parametrize("expiry", ["soon", "1y", "2001-01-31T12:00:00Z", "999999999999w"])
def test_another_expiry_is_refused(tmp_path: Path, expiry: str) -> None:
    refused = run("token", "create", "--tenant", "acme", "--expires", expiry, data_dir=tmp_path)
    assert refused.exit_code != 0
    assert "Traceback" not in refused.output


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("token", "create", "--tenant", "Not A Name"), "lower-case"),
        (("token", "create", "--tenant", "acme", "--scope", "everything"), "everything"),
        (("token", "list", "--tenant", "nobody"), "There is no tenant 'nobody'"),
        (("serve", "--port", "70000"), "70000"),
        (("serve", "--config", "/nonexistent.toml"), "there is no file"),
    ],
)
def test_bad_words_get_a_clear_error(tmp_path: Path, words: tuple[str, ...], why: str) -> None:
    refused = run(*words, data_dir=tmp_path)
    assert refused.exit_code != 0
    assert why in refused.output
    assert "Traceback" not in refused.output


@pytest.mark.parametrize("command", ["serve", "down"])
def test_without_root_the_service_says_what_it_needs_and_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    refused = run(command, data_dir=tmp_path)
    assert refused.exit_code == 1
    assert f"sudo builderd {command}" in refused.output
    assert "mounts file systems" in refused.output


def test_doctor_names_what_is_missing_and_what_that_costs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    told = run("doctor", data_dir=tmp_path)
    assert told.exit_code == 1
    for words in ("apt-get install crun", "apt-get install haproxy", "apt-get install runsc", '"strong" is refused'):
        assert words in told.output


def test_a_span_is_counted_from_now(tmp_path: Path) -> None:
    make_token(tmp_path, "--expires", "2h")
    (token,) = asyncio.run(list_tokens(load(data_dir=tmp_path), "acme"))
    assert token.expires_at is not None
    assert timedelta(hours=1) < token.expires_at - datetime.now(UTC) <= timedelta(hours=2)
