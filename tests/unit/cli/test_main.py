"""The command line: tokens, what is refused, and what the machine lacks."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from builderd.bootstrap.configuration import load
from builderd.bootstrap.database import store as open_store
from builderd.bootstrap.tokens import list_tokens
from builderd.cli.group import builderd as main
from builderd.database.unit_of_work import UnitOfWork
from builderd.engine import states as folder
from builderd.engine.oci.engine import machine as engine_preflight
from builderd.previews.haproxy import process as previews_preflight
from builderd.qa.testers import local as testers_preflight
from builderd.tokens import service as tokens


def run(*words: str, data_dir: Path | None = None) -> Result:
    return CliRunner().invoke(main, [*words, *(["--data-dir", str(data_dir)] if data_dir else [])])


def make_token(data_dir: Path, *words: str) -> str:
    made = run("token", "create", "--tenant", "acme", *words, data_dir=data_dir)
    assert made.exit_code == 0, made.output
    return made.stdout.splitlines()[-1]


def derive(data_dir: Path, secret: str) -> str:
    """Let a token make another one; return the id of that."""

    def make(uow: UnitOfWork) -> str:
        now = datetime.now(UTC)
        own = tokens.authenticate(uow, secret, now)
        return tokens.derive(uow, own, "child", now, scopes=own.scopes)[0].id

    async def write() -> str:
        async with open_store(load(data_dir=data_dir)) as store:
            return await store.write(make)

    return asyncio.run(write())


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


def test_a_token_before_there_is_a_service_says_that_it_began_a_database(tmp_path: Path) -> None:
    first, second = (run("token", "create", "--tenant", "acme", data_dir=tmp_path / "new") for _ in range(2))
    assert "created its database (builderd.db)" in first.stderr
    assert "created its database" not in second.stderr
    assert [len(made.stdout.splitlines()) for made in (first, second)] == [1, 1]


@pytest.mark.parametrize(
    "words",
    [
        ("token", "create", "--tenant", "acme"),
        ("token", "list", "--tenant", "acme"),
        ("token", "revoke", "--tenant", "acme", "tok_1"),
        ("vault", "rotate"),
        ("serve",),
        ("down",),
    ],
)
def test_folder_with_other_content_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    tmp_path.chmod(0o755)
    (tmp_path / "theirs").write_text("theirs")
    refused = run(*words, data_dir=tmp_path)
    assert refused.exit_code == (0 if words == ("down",) else 1), refused.output
    assert "Traceback" not in refused.output
    assert tmp_path.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


@pytest.mark.parametrize(
    "words",
    [("token", "list", "--tenant", "acme"), ("token", "revoke", "--tenant", "acme", "tok_1"), ("vault", "rotate")],
)
def test_commands_do_not_create_a_data_directory(tmp_path: Path, words: tuple[str, ...]) -> None:
    refused = run(*words, data_dir=tmp_path / "none")
    assert refused.exit_code == 1
    assert "There is no builderd in" in refused.output
    assert list(tmp_path.iterdir()) == []


def test_empty_data_dir_setting_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("token", "list", "--tenant", "acme")
    assert "it is empty" in run(*words, "--data-dir", "").output
    monkeypatch.setenv("BUILDERD_DATA_DIR", "")
    assert "is empty" in run(*words).output


def test_revoked_token_is_invalid(tmp_path: Path) -> None:
    secret = make_token(tmp_path)
    listed = run("token", "list", "--tenant", "acme", data_dir=tmp_path)
    token_id = listed.output.split()[0]
    assert secret not in listed.output
    child = derive(tmp_path, secret)
    revoked = run("token", "revoke", "--tenant", "acme", token_id, data_dir=tmp_path)
    assert (revoked.exit_code, revoked.output.splitlines()[1:]) == (0, [f"ended: token {child} child"])
    with pytest.raises(Exception, match="revoked"):
        authenticate(tmp_path, secret)


def test_token_expiry_is_shown_in_utc(tmp_path: Path) -> None:
    words = ("token", "create", "--tenant", "acme", "--expires", "2099-01-31T12:00:00+05:00")
    assert "good until 2099-01-31 07:00 UTC" in run(*words, data_dir=tmp_path).stderr
    (token,) = asyncio.run(list_tokens(load(data_dir=tmp_path), "acme"))
    assert token.expires_at == datetime(2099, 1, 31, 7, tzinfo=UTC)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("token", "create", "--tenant", "Not A Name"), "lower-case"),
        (("token", "create", "--tenant", "acme", "--scope", "everything"), "everything"),
        (("token", "create", "--tenant", "acme", "--expires", "soon"), "neither a span"),
        (("token", "create", "--tenant", "acme", "--expires", "1y"), "neither a span"),
        (("token", "create", "--tenant", "acme", "--expires", "2001-01-31T12:00:00Z"), "must lie in the future"),
        (("token", "create", "--tenant", "acme", "--expires", "999999999999w"), "neither a span"),
        (("token", "create", "--tenant", "acme", "--expires", "9999-12-31T23:00:00-05:00"), "neither a span"),
        (("serve", "--port", "70000"), "70000"),
        (("serve", "--config", "/nonexistent.toml"), "there is no file"),
    ],
)
def test_bad_words_get_a_clear_error(tmp_path: Path, words: tuple[str, ...], why: str) -> None:
    refused = run(*words, data_dir=tmp_path)
    assert refused.exit_code != 0
    assert why in refused.output
    assert "Traceback" not in refused.output


def _newer_schema(data_dir: Path) -> None:
    make_token(data_dir)
    with closing(sqlite3.connect(data_dir / "builderd.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")


def _full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


CREATE = ("token", "create", "--tenant", "acme")


@pytest.mark.parametrize(
    ("case", "words", "why"),
    [
        ("newer schema", CREATE, "a newer builderd made"),
        ("no server", CREATE, "does not answer"),
        ("no such database", CREATE, "database_url"),
        ("no place", CREATE, "/dev/null/data: Not a directory"),
        ("no data", ("backup", "{tmp}/kept", "--without-keys"), "There is no database"),
        ("full disk", ("backup", "{tmp}/kept", "--without-keys"), "/kept: No space left on device"),
        ("mounted", ("backup", "/proc", "--without-keys"), "/proc is a mount point"),
    ],
)
def test_expected_failures_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, words: tuple[str, ...], why: str
) -> None:
    data_dir = tmp_path / "data"
    match case:
        case "newer schema":
            _newer_schema(data_dir)
        case "no server":
            monkeypatch.setenv("BUILDERD_DATABASE_URL", "postgresql://builderd@127.0.0.1:1/builderd")
        case "no such database":
            monkeypatch.setenv("BUILDERD_DATABASE_URL", "mysql://builderd@db/builderd")
        case "no place":
            data_dir = Path("/dev/null/data")
        case "full disk":
            make_token(data_dir)
            monkeypatch.setattr(folder, "write_manifest", _full_disk)
        case "mounted":
            make_token(data_dir)
    failed = run(*(word.format(tmp=tmp_path) for word in words), data_dir=data_dir)
    assert isinstance(failed.exception, SystemExit), failed.exception
    assert failed.exit_code == 1
    told = failed.output.splitlines()[-1]
    assert told.startswith("Error: ")
    assert why in told
    assert list(tmp_path.glob("kept*")) == list(tmp_path.glob(".kept*")) == []


@pytest.mark.parametrize("words", [("serve",), ("down",), ("base", "build")])
def test_without_root_the_service_says_what_it_needs_and_why_before_it_looks_into_the_directory_of_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: tuple[str, ...]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    hide(monkeypatch, tmp_path / "builderd.toml")
    refused = run(*words, data_dir=tmp_path)
    assert refused.exit_code == 1
    assert f"sudo builderd {' '.join(words)}" in refused.output
    assert "mounts file systems" in refused.output


def hide(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    """Deny the user its folder: they do not learn whether it is there."""
    look = Path.is_file

    def is_file(path: Path) -> bool:
        if path == file:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return look(path)

    monkeypatch.setattr(Path, "is_file", is_file)


def test_without_root_code_is_reviewed_also_where_a_service_has_settings_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app/main.py").write_text("print('hello')\n")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    hide(monkeypatch, tmp_path / "data/builderd.toml")
    reviewed = run("review", str(tmp_path / "app"), data_dir=tmp_path / "data")
    assert reviewed.exit_code == 0, reviewed.output
    assert f"{tmp_path}/data/builderd.toml" in caplog.text
    refused = run("token", "list", "--tenant", "acme", data_dir=tmp_path / "data")
    assert refused.output == f"Error: {tmp_path}/data/builderd.toml: Permission denied; run it as root\n"


def test_sandbox_folders_are_readable_under_any_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        run("doctor", data_dir=tmp_path)
        (tmp_path / "upper").mkdir()
    finally:
        os.umask(before)
    assert (tmp_path / "upper").stat().st_mode & 0o777 == 0o755


def test_doctor_names_what_is_missing_and_what_that_costs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    search_in(monkeypatch, tmp_path)
    monkeypatch.setenv("BUILDERD_QA__CHROMIUM", "/nonexistent")
    told = run("doctor", data_dir=tmp_path)
    assert told.exit_code == 1
    for words in ("apt-get install crun", "apt-get install haproxy", "apt-get install runsc", '"strong" is refused'):
        assert words in told.output
    assert "\nTo install all packages named above: builderd setup --with-browser\n" in told.output
    for name in ("restic", "bubblewrap", "Chromium"):
        assert f"lack  {name}" in told.output


def search_in(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    for module in (engine_preflight, previews_preflight, testers_preflight):
        monkeypatch.setattr(module, "SEARCH_PATH", str(folder))


def test_doctor_finds_what_the_shell_of_a_plain_su_does_not_look_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "sbin/mkfs.btrfs"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho mkfs.btrfs, part of btrfs-progs v6.14\n")
    program.chmod(0o755)
    search_in(monkeypatch, program.parent)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    told = run("doctor", data_dir=tmp_path / "data")
    assert re.search(r"^ok +mkfs\.btrfs +mkfs\.btrfs, part of btrfs-progs v6\.14$", told.output, re.MULTILINE)
    assert os.environ["PATH"].split(":")[:2] == ["/usr/bin", "/bin"]
    assert "/usr/sbin" in os.environ["PATH"].split(":")


def test_a_span_is_counted_from_now(tmp_path: Path) -> None:
    make_token(tmp_path, "--expires", "2h")
    (token,) = asyncio.run(list_tokens(load(data_dir=tmp_path), "acme"))
    assert token.expires_at is not None
    assert timedelta(hours=1) < token.expires_at - datetime.now(UTC) <= timedelta(hours=2)
