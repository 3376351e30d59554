"""Commands for apps, run against a service on fakes: the output contract, and a command for each call of the API."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
from click.testing import CliRunner, Result
from tests.threaded_service import Running
from tests.unit.client.openapi import OPERATIONS, Operation, operation_of

from builderd.cli.commands import APPS
from builderd.cli.group import builderd

#: Calls that no command makes.
EXEMPT: dict[Operation, str] = {
    ("GET", "/metrics"): "counters of the operator, with a token of their own",
    ("GET", "/api/v1/builders/{uuid}/qa/screenshots/{name}"): "made where a report has any; the fakes make none",
    ("DELETE", "/api/v1/uploads/{upload_id}"): "builderd api DELETE /uploads/ID; the service removes it by itself",
}
#: Commands that need a terminal or a program of the machine, or that run without a service.
ELSEWHERE = {"login", "logout", "context", "init", "schema", "mcp", "shell", "port-forward", "completion", "man"}


@dataclass
class Box:
    """A folder with an app, the service, and what was called."""

    running: Running
    folder: Path
    made: set[Operation | None] = field(default_factory=set)
    commands: set[str] = field(default_factory=set)

    def run(self, *words: str, code: int = 0, stdin: str | None = None) -> Result:
        result = CliRunner().invoke(builderd, list(words), input=stdin, prog_name="builderd")
        self.commands.add(words[0])
        told = f"{words}: {result.exit_code}\n{result.stdout}\n{result.stderr}\n{result.exception!r}"
        assert result.exit_code == code, told
        return result

    def json(self, *words: str, code: int = 0, stdin: str | None = None) -> Any:
        """Run with ``--json``: standard output is one JSON value, standard error is empty."""
        at = words.index("--") if "--" in words else len(words)
        result = self.run(*words[:at], "--json", *words[at:], code=code, stdin=stdin)
        assert result.stderr == ""
        return json.loads(result.stdout)


@pytest.fixture
def box(running: Running, home: Path, monkeypatch: pytest.MonkeyPatch) -> Box:
    found = Box(running, home)
    send = httpx2.Client.send

    def recorded(client: httpx2.Client, request: httpx2.Request, **options: Any) -> httpx2.Response:
        found.made.add(operation_of(request.method, request.url.path))
        return send(client, request, **options)

    monkeypatch.setattr(httpx2.Client, "send", recorded)
    return found


def test_each_command_keeps_the_contract_and_each_call_has_a_command(box: Box) -> None:
    # Deploying
    made = box.json("deploy", "--yes")
    uuid = made["uuid"]
    assert (made["name"], made["status"]) == ("my-app", "running")
    deployed = box.run("deploy")
    assert deployed.stdout.strip() == made["preview_url"]
    assert "review   ok" in deployed.stderr
    assert [file["path"] for file in box.json("deploy", "--list")["files"]] == ["main.py"]
    assert [one["version"] for one in box.json("versions")] == [2, 1]
    assert box.json("rollback", "1")["version"] == 3

    # Looking
    assert [one["name"] for one in box.json("ps")] == ["my-app"]
    assert box.run("ps", "-q").stdout == "my-app\n"
    assert box.json("status", uuid)["uuid"] == uuid
    assert "https" not in box.run("status").stderr
    assert box.json("whoami")["token"]["scopes"] == ["admin"]
    assert box.run("logs", "-n", "5", "--search", "no such text").stdout == ""
    assert box.json("logs", "--density")["lines"] >= 0
    done = {"exit_code": 0, "output": "", "stderr": "", "truncated": False, "hint": ""}
    assert box.json("exec", "--", "true") == box.json("exec", "my-app", "--", "true") == done
    types = [json.loads(line)["type"] for line in box.run("events", "--json").stdout.splitlines()]
    assert types[0] == "builder.created"
    assert box.run("events", "my-app", "--type", "version.*").exit_code == 0
    assert box.json("metrics")["step_seconds"] == 900
    assert all(check["ok"] for check in box.json("doctor", "--client"))
    assert box.json("api", "GET", "/builders", "-q", "status=running")["meta"]["total"] == 1
    for path in ("/healthz", "/readyz"):
        box.run("api", "GET", path)

    # Changing
    assert box.json("env", "set", "A=1", "B=x=y", "PORT=8000") == {"A": "1", "B": "x=y"}
    assert "is the app's port, 8000" in box.run("env", "set", "PORT=1", code=1).stderr
    assert box.run("env", "list").stdout == "A=1\nB=x=y\n"
    (box.folder / ".env").write_text("# c\nexport C='3'\n\n")
    assert box.json("env", "import", ".env") == {"A": "1", "B": "x=y", "C": "3"}
    assert box.json("env", "unset", "A", "C") == {"B": "x=y"}
    assert box.json("clear-builds") == {"results": 0, "bytes": 0}
    assert box.json("scale", "--memory", "2")["resources"]["memory"] == 2
    assert box.json("auto-stop", "15")["auto_stop_interval"] == 15
    assert box.json("stop")["status"] == "stopped"
    assert box.json("start")["status"] == "running"
    assert box.json("restart")["status"] == "running"
    assert box.json("service-token")["service_token"] != made["service_token"]

    assert {one["name"] for one in box.json("diff", "--from", "1")["settings"]} >= {"env", "resources"}
    assert "env: {} -> {'B': 'x=y'}" in box.run("diff", "1", "7").stdout
    assert box.run("diff", "my-app", "1", "2").stdout == box.run("diff", "--from", "1", "--to", "2").stdout
    box.run("diff", "1", "2", "--to", "3", code=2)
    assert box.run("diff", "my-app", "--from", "1", "--patch").stdout.startswith("From version 1 to version ")

    # Files
    (box.folder / "local").write_text("text")
    assert box.json("cp", "local", "my-app:data/") == {"files": 1}
    assert [one["name"] for one in box.json("files", "list", "my-app", "data")] == ["local"]
    assert [one["name"] for one in box.json("files", "ls", "/app/data")] == ["local"]
    assert box.run("files", "cat", "data/local").stdout == "text"
    assert box.json("cp", ".:/app/data", "fetched") == {"files": 1}
    assert (box.folder / "fetched/local").read_text() == "text"
    assert box.json("cp", ".:data/local", "one") == {"files": 1}
    assert (box.folder / "one").read_text() == "text"
    assert box.json("files", "archive", "my-app", "all.tar.zst")["bytes"] > 0
    box.json("files", "rm", "my-app", "data", "-r")

    # Gates
    assert box.json("review", "my-app")["passed"] is True
    assert box.json("review", "my-app", "--again")["passed"] is True
    assert box.json("review", "my-app", "--format", "sarif")["version"] == "2.1.0"
    wrong = box.json("review", "my-app", "--accept", "f" * 32, "--reason", "right", code=1)
    assert wrong["status"] == "error"
    assert box.json("qa")["qa_passed"] is True
    box.json("qa", "--again")
    assert "<testsuite" in box.run("qa", "--format", "junit").stdout

    # Keeping
    backup = box.json("backups", "take")["id"]
    assert [one["id"] for one in box.json("backups", "list")] == [backup]
    assert len(box.json("backups", "list", "--all")) == 1
    box.json("backups", "restore", backup, "--builder", "my-app")
    assert box.json("backups", "restore", backup, "--as", "second")["name"] == "second"
    box.json("backups", "rm", backup, "--builder", "my-app")
    another = box.run("backups", "take", "second").stdout.strip()
    box.json("backups", "rm", another)
    lease = box.run("leases", "take", "--seconds", "60", "--reason", "import").stdout.strip()
    assert [one["reason"] for one in box.json("leases", "list")] == ["import"]
    box.json("leases", "renew", "my-app", lease)
    box.json("leases", "end", "my-app", lease)

    added = box.json("domains", "add", "Bücher.Example.com")
    assert (added["host"], added["name"]) == ("xn--bcher-kva.example.com", "bücher.example.com")
    assert "bücher.example.com" in box.run("domains", "list").stdout
    assert box.json("domains", "check", "bücher.example.com", "--builder", "my-app")["txt"]["name"]
    box.json("domains", "remove", "BÜCHER.example.com.")
    assert box.json("domains", "list") == []

    assert box.json("open", "my-app", "--port", "3000")["url"].startswith("http://3000--my-app-")
    link = box.json("preview-links", "create", "my-app", "--port", "3000")
    assert link["url"].startswith("http://3000--my-app-")
    assert [one["id"] for one in box.json("preview-links", "list", "my-app")] == [link["id"]]
    box.json("preview-links", "revoke", "my-app", link["id"])

    # The tenant
    assert box.json("credentials", "set", "db", "PASSWORD=-", "--restart", stdin="secret\n")["variables"] == [
        "PASSWORD"
    ]
    assert box.json("credentials", "list")[0]["name"] == "db"
    assert box.json("credentials", "show", "db")["used_by"] == []
    box.json("credentials", "rm", "db", "--force")
    hook = box.json("webhooks", "create", "https://example.com/hook", "--event", "builder.*")
    assert hook["secret"]
    assert box.json("webhooks", "list")[0]["id"] == hook["id"]
    assert box.json("webhooks", "deliveries", hook["id"]) == []
    box.json("webhooks", "rm", hook["id"])
    assert box.json("spending")["vm_count"] == 2
    head, *rows = box.run("spending", "--csv").stdout.splitlines()
    assert (head.split(",")[:4], len(rows)) == (["uuid", "name", "hours", "per_hour"], 2)
    days = box.json("spending", "--by-day", "--since", "2026-01-30", "--until", "2026-02-01T00:00:01Z")["days"]
    assert [one["day"] for one in days] == ["2026-01-30", "2026-01-31", "2026-02-01"]
    table = box.run("spending", "--by-day", "--csv", "--since", "1d").stdout.splitlines()
    assert (table[0], len(table)) == ("day,hours,cost_EUR", 3)
    assert box.run("spending", "--by-day").stdout.splitlines()[-1].startswith("total 0.0")
    assert box.json("cap", "--set", "20")["monthly"] == 20
    assert box.json("cap")["applies"] == 20
    assert box.json("cap", "my-app", "--set", "5")["monthly"] == 5
    assert box.json("cap", "my-app", "--lift")["monthly"] is None
    assert box.json("cap", "my-app")["monthly"] is None
    token = box.json("tokens", "create", "ci", "--scope", "read", "--expires", "30d")
    assert token["scopes"] == ["read"]
    assert token["id"] in [one["id"] for one in box.json("tokens", "list")]
    assert box.json("tokens", "revoke", token["id"]) == {"revoked": token["id"], "ended": []}

    # Access
    assert box.run("ssh", "grant", "my-app").stdout.startswith("ssh -p 8022 bdssh_")
    box.json("ssh", "grant", "my-app", "--alone")
    box.json("ssh", "end", "my-app")

    # Running and deleting
    job = box.run("run", "--keep", "--name", "job", "--timeout", "3", ".", "--", "python3", "main.py", code=124)
    assert "Sending" in job.stderr
    box.json("delete", "second", "--yes", "--purge")
    box.run("delete", "job", "--yes")
    assert box.json("delete", "my-app", "--yes")["deleted"] == "my-app"

    upload = {
        ("POST", "/api/v1/uploads"),
        ("GET", "/api/v1/uploads/{upload_id}"),
        ("PUT", "/api/v1/uploads/{upload_id}"),
    }
    assert OPERATIONS - box.made - upload == set(EXEMPT)
    assert set(APPS) - box.commands == ELSEWHERE


def test_a_large_folder_is_uploaded(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builderd.client.folders.JSON_BYTES", 10)
    assert box.json("deploy", "--yes")["status"] == "running"
    assert ("PUT", "/api/v1/uploads/{upload_id}") in box.made
