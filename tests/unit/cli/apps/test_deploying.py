"""Deployments from a folder: lost answers are resumed and never make a second builder, and jobs pass on their end."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import time
import tomllib
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import IO, Any

import httpx2
import pytest
from click.testing import CliRunner, Result
from tests.fakes.sandboxes import Behaviour
from tests.fakes.testers import FakeTesters
from tests.swallowing_proxy import swallowing_proxy
from tests.threaded_service import Running

from builderd import Builderd, NoAnswer, NotFound
from builderd.cli.group import builderd
from builderd.client import folders
from builderd.client._sync import builder, uploads
from builderd.client.kept import JOB, SENT, STATE, State
from builderd.qa.model import Visit


def run(*words: str) -> Result:
    return CliRunner().invoke(builderd, list(words), prog_name="builderd")


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builderd.client._sync.transport.wait_before", lambda *_: 0.05)


def builders(running: Running) -> dict[str, int]:
    """Versions by name."""
    with Builderd(running.url, running.admin) as client:
        return {one.name: one.version for one in client.builders.list()}


@pytest.mark.parametrize("large", [False, True])
def test_a_lost_answer_is_resumed_by_the_same_command(
    running: Running, home: Path, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    if large:
        monkeypatch.setattr("builderd.client.folders.JSON_BYTES", 10)
    # All three attempts of the client lose their answer.
    with swallowing_proxy(running.url, 3) as proxy:
        monkeypatch.setenv("BUILDERD_URL", proxy.url)
        lost = run("deploy", "--yes")
        assert (lost.exit_code, proxy.swallowed) == (5, 3)
        assert "Run the same command again" in lost.stderr
        assert (home / STATE).exists()
        resumed = run("deploy", "--json")
        assert resumed.exit_code == 0, resumed.output
        again = run("deploy")
    assert "Resuming" not in again.stderr
    assert not (home / STATE).exists()
    assert json.loads(resumed.stdout)["version"] == 1
    assert builders(running) == {"my-app": 2}


def test_variables_come_from_a_file_that_git_ignores(running: Running, home: Path) -> None:
    (home / ".gitignore").write_text(".env\n")
    (home / ".env").write_text("A=1\n")
    assert run("deploy", "--yes", "--env-file", ".env").exit_code == 0
    with Builderd(running.url, running.admin) as client:
        app = client.builders.get("my-app")
        assert (app.data.env_file, app.data.env_file_values) == (".env", {"A": "1"})
        (home / ".env").write_text("A=2\n")
        app.deploy(home, env_file=".env")
        assert app.data.env_file_values == {"A": "2"}
    assert "in files" in run("deploy", "--env-file", "other.env").stderr


class Killed(BaseException):
    """In place of SIGKILL: nothing of the command handles it."""


@pytest.mark.parametrize("expired", [False, True])
def test_an_upload_goes_on_after_the_command_was_killed(
    running: Running, home: Path, monkeypatch: pytest.MonkeyPatch, expired: bool
) -> None:
    monkeypatch.setattr(folders, "JSON_BYTES", 10)
    monkeypatch.setattr(uploads, "PIECE_BYTES", 50_000)
    monkeypatch.setattr(uploads, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(uploads, "ATTEMPTS", 200)
    (home / "data.bin").write_bytes(Random(1).randbytes(300_000))
    pieces, starts = uploads.pieces, []

    def cut(archive: IO[bytes], size: int, on_progress: Any = None) -> Iterator[bytes]:
        starts.append(archive.tell())
        for number, piece in enumerate(pieces(archive, size, on_progress)):
            if len(starts) == 1 and number == 3:
                raise Killed
            yield piece

    monkeypatch.setattr(uploads, "pieces", cut)
    with pytest.raises(Killed):
        run("deploy", "--yes")
    assert (home / STATE).stat().st_mode & 0o777 == 0o600
    url = json.loads((home / STATE).read_text())["pending"]["upload_url"]
    if expired:
        (home / STATE).write_text((home / STATE).read_text().replace(url, f"{url}x"))
    resumed = run("deploy")
    assert resumed.exit_code == 0, resumed.output
    assert "Resuming the upload that was interrupted." in resumed.stderr
    assert starts[0] == 0
    assert (starts[-1] > 0) is not expired
    assert builders(running) == {"my-app": 1}
    assert not (home / STATE).exists()
    if not expired:
        # What was deployed does not count against the tenant's limit of uploads any more.
        with Builderd(running.url, running.admin) as client, pytest.raises(NotFound):
            client.uploads.state(url)


def jobs(running: Running) -> int:
    """Return how many jobs were ever made."""
    with Builderd(running.url, running.admin) as client:
        return sum(1 for one in client.events() if one.type == "builder.created")


@pytest.mark.parametrize("large", [False, True])
def test_a_job_goes_on_after_the_command_was_killed(
    running: Running, home: Path, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    if large:
        monkeypatch.setattr(folders, "JSON_BYTES", 10)

    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    ends = Behaviour(listens_at=None, exits_at=1, exit_code=4, lines=("from the job",))
    running.service.engine.behave("python3 main.py", ends)
    before = jobs(running)
    with monkeypatch.context() as patched:
        patched.setattr("builderd.client._sync.builder.Builder.wait", killed)
        with pytest.raises(Killed):
            run("run", ".", "--", "python3", "main.py")
    resumed = run("run", ".", "--", "python3", "main.py")
    assert "Resuming the job" in resumed.stderr
    assert (resumed.exit_code, resumed.stdout) == (4, "from the job\n")
    assert jobs(running) == before + 1
    assert not (home / JOB).exists()
    # It was answered: the same command is another job.
    assert run("run", ".", "--", "python3", "main.py").exit_code == 4
    assert jobs(running) == before + 2


def test_a_job_that_was_deleted_meanwhile_is_begun_anew(
    running: Running, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    running.service.engine.behave("true", Behaviour(listens_at=None, exits_at=1))
    with monkeypatch.context() as patched:
        patched.setattr("builderd.client._sync.builder.Builder.wait", killed)
        with pytest.raises(Killed):
            run("run", "--name", "job", ".", "--", "true")
    with Builderd(running.url, running.admin) as client:
        client.builders.get("job").delete(purge=True)
    again = run("run", "--name", "job", ".", "--", "true")
    assert "Resuming the job" in again.stderr
    assert again.exit_code == 0, again.output
    assert not (home / JOB).exists()


@pytest.mark.parametrize("resumed", [False, True])
def test_a_job_that_a_fault_of_the_machine_ended_is_not_resumed(
    running: Running, home: Path, monkeypatch: pytest.MonkeyPatch, resumed: bool
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    running.service.engine.behave("true", Behaviour(listens_at=None, exits_at=1))
    running.service.engine.fail_next("start", *[full] * 4)
    if resumed:
        with swallowing_proxy(running.url, 3) as proxy, monkeypatch.context() as patch:
            patch.setenv("BUILDERD_URL", proxy.url)
            assert run("run", ".", "--", "true").exit_code == 5
            failed = run("run", ".", "--", "true")
            assert "Resuming the job" in failed.stderr
    else:
        failed = run("run", ".", "--", "true")
    assert "ENOSPC" in failed.stderr
    assert not (home / JOB).exists()
    again = run("run", ".", "--", "true")
    assert (again.exit_code, "Resuming" in again.stderr) == (0, False), again.output


def test_two_jobs_of_a_folder_at_once_are_two(running: Running, home: Path) -> None:
    first, second = State(home, JOB), State(home, JOB)
    lock = first.claim()
    assert lock is not None
    assert second.claim() is None
    lock.close()
    again = second.claim()
    assert again is not None
    again.close()


def test_other_code_is_no_resumption(running: Running, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with swallowing_proxy(running.url, 3) as proxy:
        monkeypatch.setenv("BUILDERD_URL", proxy.url)
        assert run("deploy", "--yes").exit_code == 5
        (home / "main.py").write_text("print('other')\n")
        assert run("deploy").exit_code == 0
    assert builders(running) == {"my-app": 2}


def test_a_failure_is_an_answer_and_is_not_replayed(running: Running, home: Path) -> None:
    (home / "requirements.txt").write_text("flask")
    running.service.installer.refusal = "no"
    assert run("deploy", "--yes").exit_code == 1
    assert not (home / STATE).exists()
    running.service.installer.refusal = None
    assert run("deploy").exit_code == 0


def test_an_interrupted_deployment_goes_on_and_is_resumed(
    running: Running, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("builderd.cli.apps.progress.show_stage", interrupted)
        stopped = run("deploy", "--yes")
    assert stopped.exit_code == 130
    assert "Follow it: builderd logs -f my-app" in stopped.stderr
    resumed = run("deploy", "--json")
    assert (resumed.exit_code, json.loads(resumed.stdout)["version"]) == (0, 1)
    assert builders(running) == {"my-app": 1}


def test_app_of_a_monorepo_is_named_and_found_in_its_folder(running: Running, home: Path) -> None:
    for file in home.iterdir():
        if file.is_file():
            file.unlink()
    (home / "apps/web").mkdir(parents=True)
    (home / "apps/web/main.py").write_text("")
    (home / "README.md").write_text("")
    nothing = run("deploy")
    assert nothing.exit_code == 4
    assert "--root apps/web" in nothing.stderr
    assert "no files that are sent" in run("deploy", "--root", "apps/api").stderr
    (home / "apps/web/main.py").write_text("import http.server\nhttp.server.test()\n")
    done = run("deploy", "--root", "apps/web", "--yes", "--json")
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    assert (data["root"], data["entrypoint"]) == ("apps/web", "python3 main.py")


@pytest.mark.parametrize("code", [0, 3])
def test_deploy_of_a_job_awaits_its_end_and_fails_as_it_does(running: Running, home: Path, code: int) -> None:
    (home / "Procfile").unlink(missing_ok=True)
    running.service.engine.behave("true", Behaviour(listens_at=None, exits_at=1, exit_code=code))
    for version in (1, 2):
        (home / "main.py").write_text(f"# {version}")
        done = run("deploy", "--type", "one_time", "--start", "true")
        assert done.exit_code == (1 if code else 0), done.output
        assert ("exited with code 3" if code else f"has run version {version}") in done.stderr


@pytest.fixture
def uploaded(monkeypatch: pytest.MonkeyPatch, home: Path) -> list[int]:
    """Make a folder that is too large for JSON; return the sizes of its uploads."""
    monkeypatch.setattr(folders, "JSON_BYTES", 1000)
    (home / "data.bin").write_bytes(Random(1).randbytes(3000))
    sizes: list[int] = []
    send = uploads.Uploads.send_folder

    def counted(self: uploads.Uploads, folder: folders.Folder, *args: Any, **options: Any) -> str:
        sizes.append(folder.size)
        return send(self, folder, *args, **options)

    monkeypatch.setattr(uploads.Uploads, "send_folder", counted)
    return sizes


def served(running: Running, name: str = "my-app") -> dict[str, bytes]:
    """Files of the code that serves."""
    with Builderd(running.url, running.admin) as client:
        app = client.builders.get(name)
        current = next(one for one in app.versions() if one.current)
    return {file.path: file.content for file in running.service.bundles.stored[current.bundle].files}


def test_only_changed_files_are_sent_again(running: Running, home: Path, uploaded: list[int]) -> None:
    (home / "old.txt").write_text("old")
    assert run("deploy", "--yes").exit_code == 0
    (home / "old.txt").unlink()
    (home / "main.py").write_text("print('changed')\n")
    (home / "new").mkdir()
    (home / "new/file").write_text("new")
    again = run("deploy")
    assert again.exit_code == 0, again.output
    assert "2 changed: 20 B." in again.stderr
    assert len(uploaded) == 1
    files = served(running)
    assert {path: files[path] for path in ("main.py", "new/file")} == {
        "main.py": b"print('changed')\n",
        "new/file": b"new",
    }
    assert set(files) == {"main.py", "new/file", "data.bin"}
    assert run("deploy").exit_code == 0
    assert (len(uploaded), builders(running)) == (1, {"my-app": 3})


def test_large_changes_are_sent_as_a_whole(running: Running, home: Path, uploaded: list[int]) -> None:
    assert run("deploy", "--yes").exit_code == 0
    (home / "data.bin").write_bytes(Random(2).randbytes(3000))
    assert run("deploy").exit_code == 0
    assert len(uploaded) == 2
    assert served(running)["data.bin"] == (home / "data.bin").read_bytes()


def forged(sent: dict[str, Any], home: Path) -> dict[str, Any]:
    """State that claims the builder had a file which it does not have."""
    digest = hashlib.sha256((home / "main.py").read_bytes()).hexdigest()
    return {**sent, "files": {**sent["files"], "main.py": [False, digest]}}


def test_stale_state_of_a_file_that_became_a_folder_does_not_block(
    running: Running, home: Path, uploaded: list[int]
) -> None:
    (home / "a").write_text("file")
    assert run("deploy", "--yes").exit_code == 0
    sent = json.loads((home / SENT).read_text())
    del sent["files"]["a"]
    (home / SENT).write_text(json.dumps(sent))
    (home / "a").unlink()
    (home / "a").mkdir()
    (home / "a/b").write_text("below")
    # The service answers that files.a is both a file and a folder: it has a file of that name.
    again = run("deploy")
    assert again.exit_code == 0, again.output
    assert (len(uploaded), served(running)["a/b"]) == (2, b"below")


@pytest.mark.parametrize(
    "spoil",
    [
        forged,
        lambda sent, _: {**sent, "bundle": "0" * 64},
        lambda sent, _: {**sent, "bundle": 7},
        lambda sent, _: {**sent, "files": {**sent["files"], "../../etc/passwd": [False, "0" * 64]}},
        lambda sent, _: {**sent, "files": [1]},
        lambda sent, _: {**sent, "files": {"main.py": [1, 2, 3]}},
        lambda sent, _: [sent],
    ],
)
def test_wrong_state_of_the_folder_never_deploys_other_code(
    running: Running, home: Path, uploaded: list[int], spoil: Any
) -> None:
    assert run("deploy", "--yes").exit_code == 0
    (home / "main.py").write_text("print('changed')\n")
    (home / SENT).write_text(json.dumps(spoil(json.loads((home / SENT).read_text()), home)))
    again = run("deploy")
    assert again.exit_code == 0, again.output
    assert (len(uploaded), served(running)["main.py"]) == (2, b"print('changed')\n")


def test_state_of_another_builder_is_not_used(running: Running, home: Path, uploaded: list[int]) -> None:
    assert run("deploy", "--yes").exit_code == 0
    assert run("deploy", "--name", "other").exit_code == 0
    assert run("delete", "other", "--yes").exit_code == 0
    assert run("deploy").exit_code == 0
    assert len(uploaded) == 3


def test_a_lost_answer_of_changes_is_resumed(
    running: Running, home: Path, uploaded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("deploy", "--yes").exit_code == 0
    (home / "main.py").write_text("print('changed')\n")
    with swallowing_proxy(running.url, 3, "PUT /api/v1/builders/") as proxy:
        monkeypatch.setenv("BUILDERD_URL", proxy.url)
        # What was sent is known of this address alone.
        sent = json.loads((home / SENT).read_text())
        (home / SENT).write_text(json.dumps({**sent, "service": proxy.url}))
        lost = run("deploy")
        assert (lost.exit_code, proxy.swallowed) == (5, 3)
        resumed = run("deploy")
        assert resumed.exit_code == 0, resumed.output
    assert "Resuming the deployment whose answer did not arrive." in resumed.stderr
    assert (len(uploaded), builders(running)) == (1, {"my-app": 2})


def answer(running: Running, status: int) -> None:
    """Have apps answer `GET /` with this status."""
    testers = running.service.application.testers
    assert isinstance(testers, FakeTesters)
    testers.visits = deque([Visit(status, 0.01)])


def test_a_version_that_fails_a_check_is_a_failed_deploy(running: Running, home: Path) -> None:
    assert run("deploy", "--yes").exit_code == 0
    (home / "main.py").write_text("print('other')\n")
    answer(running, 500)
    failed = run("deploy")
    assert (failed.exit_code, failed.stdout) == (1, "")
    assert "Error: qa: GET / was answered 500" in failed.stderr
    assert "Version 1 serves on, at http://" in failed.stderr
    assert failed.stderr.endswith("Next: builderd qa my-app --version 2\n")
    as_json = json.loads(run("deploy", "--json").stdout)
    assert (as_json["code"], as_json["stage"], as_json["next"]) == (
        "qa_failed",
        "qa",
        ["builderd qa my-app --version 3"],
    )
    assert as_json["note"].startswith("Version 1 serves on")
    (home / "builder.toml").write_text('name = "my-app"\nrequire_qa = false\n')
    permitted = run("deploy")
    assert permitted.exit_code == 0
    assert "QA failed, which require_qa = false permits: GET / was answered 500" in permitted.stderr


def test_first_version_that_fails_leaves_no_url_and_no_file(running: Running, home: Path) -> None:
    answer(running, 500)
    assert run("deploy", "--yes").stdout == ""
    assert not (home / "builder.toml").exists()
    assert "nothing is served at http://" in run("status", "my-app").stdout
    answer(running, 200)
    assert run("deploy").exit_code == 0


@pytest.mark.parametrize("second", [False, True])
def test_a_version_that_crashes_after_its_answer_is_a_failed_deploy(
    running: Running, home: Path, monkeypatch: pytest.MonkeyPatch, second: bool
) -> None:
    deploy = ("deploy", "--yes", "--start", "python3 main.py")
    if second:
        assert run(*deploy).exit_code == 0
    (home / "main.py").write_text("print('other')\n")

    refresh = builder.Builder.refresh

    def crashed(app: builder.Builder) -> builder.Builder:
        engine, until = running.service.engine, time.monotonic() + 30
        while not any(one.type == "builder.restarting" for one in app.events()) and time.monotonic() < until:
            for sandbox in list(engine.known):
                running.loop.call_soon_threadsafe(partial(engine.end, sandbox, exit_code=3))
            time.sleep(0.1)
        return refresh(app)

    monkeypatch.setattr(builder.Builder, "refresh", crashed)
    failed = run(*deploy)
    assert (failed.exit_code, failed.stdout) == (1, "")
    assert "Error: start: It was up, and ended: exited with code 3, restart 1 of 5." in failed.stderr
    assert ("Version 1 is back, as version 3, at http://" in failed.stderr) is second


def test_options_are_written_into_the_file_and_detection_is_not(running: Running, home: Path) -> None:
    chosen = ("--port", "9000", "--start", "python3 main.py", "--env", "A=1", "--env", "B=2")
    assert run("deploy", "--yes", "--name", "mine", *chosen).exit_code == 0
    written = tomllib.loads((home / "builder.toml").read_text())
    assert written == {"name": "mine", "port": 9000, "entrypoint": "python3 main.py"}
    (home / "builder.toml").write_text('# why\nname = "mine"\nport = 9000 # here\n\n[resources]\nmemory = 2\n')
    made = json.loads(run("deploy", "--port", "9001", "--build", "", "--env", "B=3", "--json").stdout)
    assert (made["port"], made["env"]) == (9001, {"A": "1", "B": "3"})
    assert (home / "builder.toml").read_text() == (
        '# why\nname = "mine"\nport = 9001\nbuild = ""\n\n[resources]\nmemory = 2\n'
    )
    # Another builder of the same folder changes nothing.
    assert run("deploy", "--name", "other", "--port", "9002").exit_code == 0
    assert "9002" not in (home / "builder.toml").read_text()


def test_a_wrong_first_guess_is_corrected(running: Running, home: Path) -> None:
    assert run("deploy", "--yes").exit_code == 0
    (home / "main.py").rename(home / "server.py")
    assert json.loads(run("deploy", "--json").stdout)["entrypoint"] == "python3 server.py"


def test_another_folder_of_the_same_name_is_asked_about(
    running: Running, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("deploy", "--yes").exit_code == 0
    other, copied = home.parent / "other/my-app", home.parent / "copied/my-app"
    other.mkdir(parents=True)
    (other / "main.py").write_text("print('another')\n")
    shutil.copytree(home, copied)
    for folder in (other, copied):
        monkeypatch.chdir(folder)
        for words in (("deploy", "--yes"), ("deploy",), ("deploy", "--name", "my-app", "--yes")):
            refused = run(*words)
            assert refused.exit_code == 4, refused.output
            assert f"my-app was deployed from {home}" in refused.stderr
            assert refused.stderr.endswith(
                "Next: builderd deploy . --replace\nNext: builderd deploy . --name my-app-new\n"
            )
    assert builders(running) == {"my-app": 1}
    assert run("deploy", "--replace").exit_code == 0
    # A folder that moved, and one from elsewhere whose file names the builder, are its own.
    moved = home.parent / "moved"
    copied.rename(moved)
    monkeypatch.chdir(moved)
    assert run("deploy", "--yes").exit_code == 0
    (home.parent / "config/builderd/folders.json").unlink()
    assert run("deploy", "--yes").exit_code == 0
    (home.parent / "config/builderd/folders.json").unlink()
    monkeypatch.chdir(other)
    assert "no builder.toml here names it" in run("deploy", "--yes").stderr


def test_another_kind_is_refused_with_what_to_do(running: Running, home: Path) -> None:
    assert run("deploy", "--yes").exit_code == 0
    (home / "builder.toml").write_text('name = "my-app"\njob_type = "worker"\n')
    refused = json.loads(run("deploy", "--json").stdout)
    assert "my-app is of the kind always_on, which cannot change to worker" in refused["reason"]
    assert refused["next"] == [
        "builderd deploy . --type worker --name my-app-new",
        "builderd delete my-app && builderd deploy . --type worker",
    ]
    assert builders(running) == {"my-app": 1}


def test_nothing_is_resumed_that_was_not_begun(running: Running, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise NoAnswer("no connection") from httpx2.ConnectError("refused")

    with monkeypatch.context() as patch:
        patch.setattr("builderd.client._sync.account.Builders.create", unreachable)
        assert run("deploy", "--yes").exit_code == 5
    again = run("deploy")
    assert (again.exit_code, "Resuming" in again.stderr) == (0, False), again.output
