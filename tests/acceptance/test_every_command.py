"""Every command and option of ``builderd --help``, called on a real service with ``--json`` and without."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
from click.core import ParameterSource
from click.testing import CliRunner, Result
from tests.acceptance.live_service import PATIENCE, TINY_APP, LiveService, free_port, live_service

from builderd.cli.commands import COMMANDS
from builderd.cli.group import builderd

pytestmark = [pytest.mark.root, pytest.mark.haproxy, pytest.mark.slow]

SRC = str(Path(__file__).parents[2] / "src")
FAILING = "raise RuntimeError('no database')\n"
JOB = """\
import os, sys
os.makedirs("out", exist_ok=True)
open("out/r.txt", "w").write(sys.stdin.read())
sys.exit(int(sys.argv[1]))
"""

#: Commands and options that other tests call, for they need what this service does not have.
ELSEWHERE = {
    "install-service": "systemd: tests/unit/cli/test_service_unit.py",
    "setup": "Debian's packages: tests/acceptance/test_wheel.py",
    "serve": "the service itself",
    "acme": "an authority: tests/acceptance/test_domains.py",
    "clock": "a clock that was ahead: tests/acceptance/test_wrong_clock.py",
    "cluster": "Incus on several machines: tests/unit/cli/test_commands.py",
}
#: Options that are the same in many commands, and tried with one.
COMMON = {"data_dir", "config", "context", "timeout", "ca"}
#: Commands whose output is that of the program they run.
NO_JSON = {"shell", "ssh connect", "port-forward"}


def _leaves(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from _leaves(inner, f"{path} {name}")
    if not isinstance(command, click.Group) or command.invoke_without_command:
        yield path, command


@dataclass
class Terminal:
    """A user's command line: folders of their own, and what was called with which options."""

    service: LiveService
    home: Path
    used: dict[str, set[str]] = field(default_factory=dict)

    def environment(self, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("BUILDERD_")}
        return {**kept, "PYTHONPATH": SRC, "HOME": str(self.home), "XDG_CONFIG_HOME": f"{self.home}/.config", **more}

    def run(self, *words: str, code: int = 0, stdin: str | None = None, cwd: str = "app", **more: str) -> Result:
        unset: dict[str, Any] = dict.fromkeys(("BUILDERD_URL", "BUILDERD_TOKEN"), "")
        with contextlib.chdir(self.home / cwd):
            done = CliRunner().invoke(
                builderd, list(words), env={**self.environment(), **unset, **more}, input=stdin, prog_name="builderd"
            )
        assert done.exit_code == code, f"{words}: {done.exit_code}\n{done.stdout}\n{done.stderr}\n{done.exception!r}"
        return done

    def json(self, *words: str, code: int = 0, **options: Any) -> Any:
        """Run with ``--json``: standard output is one JSON value, and standard error is empty."""
        at = words.index("--") if "--" in words else len(words)
        done = self.run(*words[:at], "--json", *words[at:], code=code, **options)
        assert done.stderr == "", done.stderr
        return json.loads(done.stdout)

    def both(self, *words: str, code: int = 0, **options: Any) -> tuple[str, Any]:
        """Run in both forms; return the text and the JSON value."""
        plain = self.run(*words, code=code, **options)
        if code:
            assert plain.stdout == "", plain.stdout
            assert plain.stderr
        return plain.stdout, self.json(*words, code=code, **options)

    def lines(self, *words: str, **options: Any) -> list[Any]:
        """Run a stream with ``--json``."""
        at = words.index("--") if "--" in words else len(words)
        return [
            json.loads(line) for line in self.run(*words[:at], "--json", *words[at:], **options).stdout.splitlines()
        ]

    @contextlib.contextmanager
    def process(self, *words: str, tty: bool = False) -> Iterator[subprocess.Popen[bytes]]:
        """A process of its own, whose output can be read while it runs; with ``tty`` its input is a terminal."""
        keyboard, ours = pty.openpty() if tty else (subprocess.DEVNULL, -1)
        # A shell that runs the tests in the background ignores the signal for all.
        argv = ["env", "--default-signal=INT", sys.executable, "-m", "builderd", *words]
        process = subprocess.Popen(
            argv,
            cwd=self.home / "app",
            env=self.environment(),
            stdin=ours if tty else keyboard,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        process.keyboard = keyboard  # type: ignore[attr-defined]
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            if tty:
                os.close(keyboard)
                os.close(ours)

    def interrupted(self, *words: str, until: Callable[[subprocess.Popen[bytes]], None]) -> None:
        """Run a command, wait for a state, press Ctrl-C: it ends with 130."""
        with self.process(*words) as process:
            until(process)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=PATIENCE)
            assert process.returncode == 130, errors
            assert b"Traceback" not in errors


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    for name, code in {"app": TINY_APP, "failing": FAILING, "job": JOB}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "main.py").write_text(code)
    with live_service(tmp_path / "data") as service:
        found = Terminal(service, tmp_path)
        invoke = click.Command.invoke

        def recorded(command: click.Command, context: click.Context) -> Any:
            path = " ".join(context.command_path.split()[1:])
            given = {
                name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
            }
            found.used.setdefault(path, set()).update(given)
            return invoke(command, context)

        monkeypatch.setattr(click.Command, "invoke", recorded)
        yield found


def first_byte(process: subprocess.Popen[bytes]) -> None:
    """Wait until the process has written something."""
    assert process.stdout is not None
    assert process.stdout.read(1)


def answers(port: int) -> Callable[[subprocess.Popen[bytes]], None]:
    """Wait until a port of this machine answers."""

    def wait(process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                assert httpx.get(f"http://127.0.0.1:{port}", trust_env=False).text == "hello"
                return
            time.sleep(0.1)
        raise AssertionError(f"nothing answers on {port}: {process.poll()}")

    return wait


def test_every_command_and_option_works_on_a_live_service(user: Terminal) -> None:
    sign_in(user)
    deploy(user)
    look(user)
    change(user)
    go_inside(user)
    keep(user)
    account(user)
    run_jobs(user)
    operate(user)
    fail(user)
    missing = {
        path: sorted(lacking)
        for path, command in (
            leaf
            for name in COMMANDS
            for leaf in _leaves(builderd.get_command(click.Context(builderd), name), name)  # type: ignore[arg-type]
        )
        if path.split()[0] not in ELSEWHERE
        if (lacking := {str(one.name) for one in command.params} - user.used.get(path, set()) - COMMON - exempt(path))
        or path not in user.used
    }
    assert missing == {}


def exempt(path: str) -> set[str]:
    """Return the parameters that a command need not be called with."""
    return {"as_json"} if path in NO_JSON else set()


def sign_in(user: Terminal) -> None:
    service = user.service
    admin = service.make_token("acme", "--scope", "admin", "--scope", "skip-gates")
    assert user.json("whoami", code=3)["next"] == ["builderd login URL"]
    assert user.run("ps", code=3).stderr.endswith("Next: builderd login URL\n")
    user.run("login", service.url, code=4)
    user.run("login", service.url, "--token-stdin", code=3, stdin="bd_wrong\n")
    user.run("login", service.url, "--token-stdin", code=3, stdin="")
    user.json("login", service.url, "--token-stdin", "--name", "other", stdin=service.token)
    user.run("login", service.url, "--token-stdin", "--name", "own", stdin=admin)
    text, found = user.both("context", "list")
    assert [one["current"] for one in found] == [False, True]
    assert "* " in text
    user.json("context", "use", "other")
    user.run("context", "use", "own")
    user.json("context", "use", "none", code=3)
    user.json("context", "rm", "other")
    text, found = user.both("whoami")
    assert found["token"]["scopes"] == ["admin", "skip-gates"]
    assert all(one["ok"] for one in user.both("doctor", "--client")[1])


def deploy(user: Terminal) -> None:
    assert user.json("deploy", code=4)["status"] == "action_required"
    assert user.json("init", "--name", "app", "--entrypoint", "python3 main.py")["name"] == "app"
    user.json("init", code=2)
    user.run("init", ".", "--force")
    user.json("schema")
    assert user.both("deploy", "--list")[1]["files"]
    (user.home / "app/.env").write_text("GREETING=hello\n")
    made = user.run("deploy", "--yes")
    state = user.json("status")
    assert made.stdout.strip() == state["preview_url"]
    assert user.service.visit(state).text == "hello"
    gates = ("--skip-review", "--skip-qa", "--fresh")
    settings = ("--build", "", "--release", "true", "--root", "", "--env-file", ".env")
    start = ("--entrypoint", "python3 main.py", "--timeout", "300")
    assert user.json("deploy", ".", "--name", "app", *gates, *settings, *start)["version"] == 2
    failed = user.run("deploy", "--yes", cwd="failing", code=1)
    assert failed.stderr.endswith("Next: builderd logs failing\n")
    assert "no database" in failed.stderr
    as_json = user.json("deploy", cwd="failing", code=1)
    assert (as_json["code"], as_json["next"]) == ("start_failed", ["builderd logs failing"])
    user.run("delete", "failing", "--yes", "--purge")


def look(user: Terminal) -> None:
    assert [one["name"] for one in user.both("ps", "--status", "running")[1]] == ["app"]
    assert user.both("ps", "-q")[0] == "app\n"
    user.both("ps", "--context", "own", "--timeout", "30", "--ca", "/etc/ssl/certs/ca-certificates.crt")
    user.both("status", "app")
    assert user.both("open")[0] == f"{user.json('open', 'app')['url']}\n"
    user.both("open", "app", "--port", "3000")
    for words in (["-n", "5"], ["--since", "1h"], ["--stream", "stdout"], ["-t"], ["--search", "GET"]):
        user.run("logs", "app", *words)
        user.lines("logs", "app", *words)
    user.both("logs", "app", "--density")
    assert next(one["type"] for one in user.lines("events")) == "builder.created"
    for words in (["--type", "version.*"], ["--since", "1h"], ["--after", "0"], ["-n", "3"]):
        user.run("events", "app", *words)
        assert len(user.lines("events", "app", *words)) > 0
    user.interrupted("events", "-f", "--after", "0", until=first_byte)
    user.interrupted("logs", "-f", "app", until=first_byte)
    user.used["logs"].add("follow")
    user.used["events"].add("follow")
    user.both("metrics", "app", "--hours", "2", "--step", "5m")
    assert [one["version"] for one in user.both("versions", "app")[1]] == [2, 1]
    user.both("diff", "app", "--from", "1", "--to", "2")
    user.both("diff", "app", "--patch")
    assert user.both("review", "app", "--version", "1")[1]["passed"]
    user.both("review", "app", "--again")
    for form in ("json", "sarif"):
        json.loads(user.run("review", "app", "--format", form).stdout)
    accept = ("--accept", "f" * 32, "--reason", "it is right", "--expires", "2030-01-01")
    refused = user.json("review", "app", *accept, code=1)
    assert refused["status"] == "error"
    user.both("review", ".", "--entrypoint", "python3 main.py")
    assert user.both("qa", "app", "--version", "2")[1]["version"] == 2
    user.both("qa", "app", "--again")
    user.run("qa", "app", "--format", "junit")
    user.both("qa", "app", "--screenshots", str(user.home / "shots"))


def change(user: Terminal) -> None:
    assert user.json("rollback", "app", "--to", "1")["version"] == 3
    user.run("rollback")
    user.run("env", "set", "app", "A=1", "B=2")
    assert user.json("env", "set", "app", "C=3")["C"] == "3"
    (user.home / "app/vars").write_text("D=4\n")
    user.json("env", "import", "app", "vars")
    assert user.json("env", "unset", "app", "A", "B", "C") == {"D": "4"}
    assert user.both("env", "list", "app")[0] == "D=4\n"
    user.json("scale", "app", "--cpu", "0.5", "--memory", "0.5", "--disk", "4")
    assert user.json("scale", "app", "--disk", "1", code=1)["next"] == ["builderd status app"]
    user.both("auto-stop", "app", "30")
    user.both("clear-builds", "app")
    for _ in user.both("stop", "app"), user.both("start", "app"), user.both("restart", "app"):
        pass
    user.both("service-token", "app")


def go_inside(user: Terminal) -> None:
    text = user.run("exec", "app", "--cwd", "/tmp", "--env", "A=b c", "--", "pwd; echo $A; exit 7", code=7).stdout
    assert text == "/tmp\nb c\n"
    as_json = json.loads(user.run("exec", "app", "-i", "--json", "--", "cat; exit 7", stdin="typed", code=7).stdout)
    assert (as_json["output"], as_json["exit_code"]) == ("typed", 7)
    user.run("exec", "app", "--limit", "1", "--", "sleep 60", code=124)
    user.run("exec", "app", "--timeout", "1", "--limit", "30", "--", "sleep 20", code=124)
    user.run("logs", "-f", "app", "--timeout", "1", code=124)
    user.run("exec", "app", "-t", "--", "true", code=2)
    user.run("shell", "app", code=2)
    for words in (["exec", "-it", "app", "--", "tty; exit 5"], ["shell", "app"]):
        with user.process(*words, tty=True) as process:
            if words[0] == "shell":
                first_byte(process)
                os.write(process.keyboard, b"tty; exit 5\n")  # type: ignore[attr-defined]
            printed, errors = process.communicate(timeout=PATIENCE)
            assert (process.returncode, b"/dev/pts/" in printed) == (5, True), (printed, errors)
    user.used["exec"].add("tty")
    assert user.both("ssh", "grant", "app", "--minutes", "10", "--alone")[0].startswith("ssh -p ")
    with user.process("ssh", "connect", "app", "echo", "inside; exit 6") as process:
        printed, errors = process.communicate(timeout=PATIENCE)
        assert (process.returncode, printed) == (6, b"inside\n"), errors
    user.used["ssh connect"] = {"name", "words"}
    user.both("ssh", "end", "app")
    port = free_port()
    user.interrupted("port-forward", "app", f"{port}:8000", until=answers(port))
    user.used["port-forward"] = {"name", "ports"}
    user.run("port-forward", "app", "none", code=2)
    (user.home / "app/local").write_text("text")
    user.both("cp", "local", "app:data/")
    user.both("cp", ".:data", "fetched")
    assert (user.home / "app/fetched/data/local").read_text() == "text"
    user.both("files", "list", "app", "data")
    assert user.both("files", "cat", "app", "data/local")[0] == "text"
    user.both("files", "archive", "app", "all.tar.zst")
    user.json("files", "rm", "app", "data", "-r")
    user.both("files", "rm", "app", "data", code=1)


def keep(user: Terminal) -> None:
    taken = user.run("backups", "take", "app").stdout.strip()
    second = user.json("backups", "take", "app")["id"]
    assert {one["id"] for one in user.both("backups", "list", "app")[1]} == {taken, second}
    user.both("backups", "list", "--all")
    user.json("backups", "restore", taken, "--builder", "app")
    user.run("backups", "restore", taken, "--as", "again")
    user.json("delete", "again", "--yes", "--purge")
    user.json("backups", "rm", taken, "--builder", "app")
    user.run("backups", "rm", second)
    user.run("backups", "rm", "none", code=1)
    lease = user.run("leases", "take", "app", "--seconds", "60", "--reason", "import").stdout.strip()
    user.both("leases", "list", "app")
    user.both("leases", "renew", "app", lease, "--seconds", "90")
    user.json("leases", "end", "app", lease)
    user.json("leases", "end", "app", user.json("leases", "take")["id"])
    user.both("leases", "end", "app", lease, code=1)
    for host in ("a.example.com", "b.example.com"):
        user.both("domains", "list", "app")
        user.json("domains", "add", host, "--builder", "app")
        user.both("domains", "check", host, "--builder", "app")
    user.json("domains", "remove", "a.example.com", "--builder", "app")
    user.run("domains", "remove", "b.example.com")
    link = user.json("preview-links", "create", "app", "--minutes", "5", "--port", "8000")
    user.run("preview-links", "create", "app")
    user.both("preview-links", "list", "app")
    user.json("preview-links", "revoke", "app", link["id"])


def account(user: Terminal) -> None:
    user.both("credentials", "set", "db", "PASSWORD=-", "--restart", stdin="secret\n")
    user.json("credentials", "set", "db", "PASSWORD", code=4)
    user.both("credentials", "list")
    user.both("credentials", "show", "db")
    user.json("credentials", "rm", "db", "--force")
    user.both("credentials", "rm", "db", code=1)
    hook = user.json("webhooks", "create", "https://example.com/hook", "--event", "builder.*")["id"]
    user.run("webhooks", "create", "https://example.com/second")
    user.both("webhooks", "list")
    user.both("webhooks", "deliveries", hook)
    user.json("webhooks", "rm", hook)
    user.both("spending")
    user.both("spending", "--since", "30d", "--until", "2030-01-01")
    user.both("spending", "--by-day")
    user.run("spending", "--csv")
    user.both("cap", "app", "--set", "5")
    user.both("cap", "app", "--lift")
    user.both("cap")
    token = user.json("tokens", "create", "ci", "--scope", "read", "--expires", "30d")
    user.both("tokens", "list")
    refused = user.json("ps", code=3, BUILDERD_URL=user.service.url, BUILDERD_TOKEN=token["secret"] + "x")
    assert refused["code"] == "unauthenticated"
    user.both("stop", "app", code=1, BUILDERD_URL=user.service.url, BUILDERD_TOKEN=token["secret"])
    user.json("tokens", "revoke", token["id"])
    (user.home / "app/body.json").write_text('{"interval": 0}')
    uuid = user.json("status", "app")["uuid"]
    user.run("api", "PUT", f"/builders/{uuid}/auto-stop", "-d", "@body.json", "-H", "X-Note: a")
    user.json("api", "GET", "/builders", "-q", "status=running")
    user.both("api", "GET", "/nowhere", code=1)
    for shell in ("bash", "zsh", "fish"):
        user.run("completion", shell)
    assert user.run("man", "env", "set").stdout.startswith(".TH BUILDERD-ENV-SET")
    user.run("mcp", "install", "claude-code", code=4)
    user.run("mcp", "install", "claude-code", "--yes", "--with-token")
    user.run("mcp", "--context", "own", stdin="")


def run_jobs(user: Terminal) -> None:
    words = ("--output", "out", "-i", ".", "--", "python3", "main.py")
    ran = user.run("run", *words, "0", cwd="job", stdin="given")
    assert (ran.stdout, (user.home / "job/out/r.txt").read_text()) == ("", "given")
    ended = user.lines("run", "--keep", "--name", "kept", ".", "--", "python3", "main.py", "9", cwd="job", code=9)
    assert ended[-1] == {"exit_code": 9, "status": "failed", "name": "kept"}
    user.run("run", "--timeout", "3", ".", "--", "sleep", "600", cwd="job", code=124)
    user.interrupted("run", str(user.home / "job"), "--", "sh", "-c", "echo begun; sleep 600", until=first_byte)
    for job in user.json("ps"):
        if job["name"] != "app":
            user.run("delete", job["name"], "--yes")


def operate(user: Terminal) -> None:
    """Commands for the operator, on the data directory of the service that runs."""
    at = ("--data-dir", str(user.service.data_dir))
    spare = ("--data-dir", str(user.home / "spare"))
    secret = user.run("token", "create", "--tenant", "other", "--name", "x", "--scope", "read", "--expires", "1d", *at)
    assert secret.stdout.splitlines()[-1].startswith("bd_")
    listed = user.run("token", "list", "--tenant", "other", *at).stdout
    assert " x " in listed
    user.run("token", "link", "--tenant", "other", "--scope", "read", "--url", "https://builderd.example", *at)
    user.run("token", "revoke", "--tenant", "other", listed.split()[0], *at)
    user.run("vault", "rotate", *at)
    user.run("base", "build", *at)
    user.run("doctor", *at)
    (user.home / "words").write_text("words of mine\n")
    (user.home / "words").chmod(0o600)
    user.run("backup", str(user.home / "state"), "--passphrase-file", str(user.home / "words"), *at)
    user.run("backup", str(user.home / "bare"), "--without-keys", *at)
    user.run("restore", str(user.home / "state"), "--passphrase-file", str(user.home / "words"), *spare)
    user.run("restore", str(user.home / "bare"), "--without-keys", "--data-dir", str(user.home / "third"))
    user.run("restore", str(user.home / "state"), "--passphrase-file", str(user.home / "words"), *at, code=1)
    user.run("down", *spare)


def fail(user: Terminal) -> None:
    """The exit codes that are left, and the end."""
    user.both("backups", "frobnicate", code=2)
    user.both("frobnicate", code=2)
    user.both("ps", "--what", code=2)
    user.both("status", "none", code=1)
    user.both("ps", code=5, BUILDERD_URL="http://127.0.0.1:9", BUILDERD_TOKEN="t")
    assert user.json("doctor", "--client", code=5, BUILDERD_URL="http://127.0.0.1:9", BUILDERD_TOKEN="t")
    assert user.json("delete", "app", code=4)["next"] == ["builderd delete app --yes"]
    user.run("delete", "app", "--yes")
    user.json("logout", "own")
    user.json("logout", code=3)
