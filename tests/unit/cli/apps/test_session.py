"""The output contract: exit codes, errors as JSON, and nothing asked without a terminal."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.threaded_service import Running

from builderd.cli.apps.inside import _write
from builderd.cli.apps.session import Session, aligned, shown
from builderd.cli.apps.upkeep import sparkline
from builderd.cli.group import builderd, printable
from builderd.core.resources import Capacity


def run(*words: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(builderd, list(words), input=stdin, prog_name="builderd")


def told(result: Result) -> Any:
    """The one JSON value on standard output; standard error is empty."""
    assert result.stderr == ""
    return json.loads(result.stdout)


def test_without_a_service_the_exit_code_is_3(home: Path) -> None:
    plain, as_json = run("ps"), run("ps", "--json")
    assert (plain.exit_code, plain.stdout) == (3, "")
    assert plain.stderr == "Error: you are not signed in\nNext: builderd login URL\n"
    assert as_json.exit_code == 3
    assert told(as_json)["next"] == ["builderd login URL"]


def test_a_wrong_token_is_3_and_a_missing_scope_1(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUILDERD_TOKEN", "bd_wrong")
    assert run("ps").exit_code == 3
    monkeypatch.setenv("BUILDERD_TOKEN", running.service.read)
    refused = run("tokens", "list", "--json")
    assert (refused.exit_code, told(refused)["code"]) == (1, "forbidden")


def test_no_connection_is_5(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builderd.client._sync.transport.wait_before", lambda *_: 0)
    monkeypatch.setenv("BUILDERD_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("BUILDERD_TOKEN", "t")
    result = run("ps", "--json")
    assert (result.exit_code, told(result)["code"]) == (5, "no_answer")
    assert told(result)["next"] == ["builderd doctor --client"]
    checked = run("doctor", "--client", "--json")
    assert (checked.exit_code, told(checked)[-1]["ok"]) == (5, False)


def test_wrong_usage_is_2(home: Path) -> None:
    for words in (["cp", "a", "b"], ["ps", "--what"], ["nothing"], ["status"], ["scale", "x"]):
        assert run(*words).exit_code == 2, words
        as_json = run(words[0], "--json", *words[1:])
        assert as_json.exit_code == 2
        assert told(as_json)["code"] == "usage"


def test_every_error_is_one_json_object_on_request(running: Running, home: Path) -> None:
    assert run("deploy", "--yes").exit_code == 0
    for words, part in (
        (["files", "rm", "my-app", "nowhere"], "nowhere"),
        (["rollback", "my-app"], "no earlier version"),
        (["diff", "my-app"], "no earlier version"),
    ):
        refused = run(*words, "--json")
        assert (refused.exit_code, told(refused)["status"]) == (1, "error"), words
        assert part in told(refused)["message"]
        plain = run(*words)
        assert (plain.exit_code, plain.stdout) == (1, "")
    # Behind --, it is the command's own word.
    assert run("exec", "--limit", "0", "my-app", "--", "curl", "--json").stdout == ""


@pytest.mark.parametrize(
    "words",
    [
        ["exec", "my-app", "--env", "NAME", "--", "true"],
        ["exec", "my-app", "--env", "=x", "--", "true"],
        ["api", "GET", "/builders", "-q", "status"],
        ["env", "set", "my-app", "A"],
    ],
)
def test_a_variable_without_a_value_is_wrong_usage(running: Running, home: Path, words: list[str]) -> None:
    assert run("deploy", "--yes").exit_code == 0
    refused = run(*words)
    assert refused.exit_code == 2
    assert "is not NAME=VALUE" in refused.stderr


def test_an_unknown_command_names_commands_like_it() -> None:
    assert told(run("depoly", "--json"))["message"].endswith("No such command 'depoly'. Did you mean 'deploy'?")
    assert told(run("backups", "resotre", "--json"))["message"].endswith("Did you mean 'restore'?")


def test_ctrl_c_at_a_question_is_130(running: Running, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _: True)
    asked = run("deploy")
    assert (asked.exit_code, asked.stdout) == (130, "")
    assert "[Y/n]" in asked.stderr


def test_nothing_is_asked_without_a_terminal(running: Running, home: Path) -> None:
    plain = run("deploy")
    assert (plain.exit_code, plain.stdout) == (4, "")
    as_json = run("deploy", "--json")
    assert as_json.exit_code == 4
    assert told(as_json) == {
        "status": "action_required",
        "reason": "Start the code with `python3 main.py`?",
        "next": ["builderd deploy . --yes", "builderd deploy . --entrypoint 'COMMAND'"],
    }
    assert run("deploy", "--yes").exit_code == 0
    assert told(run("delete", "--json"))["next"] == ["builderd delete my-app --yes"]
    assert told(run("credentials", "set", "db", "PASSWORD", "--json"))["status"] == "action_required"
    assert running.service.engine.known


def test_an_error_advises_a_command_with_the_builders_name(running: Running, home: Path) -> None:
    assert run("deploy", "--yes").exit_code == 0
    (home / "requirements.txt").write_text("nothing")
    running.service.installer.refusal = "There is no package nothing."
    failed = run("deploy")
    assert (failed.exit_code, failed.stdout) == (1, "")
    assert failed.stderr.endswith("Next: builderd logs my-app --stream build\n")
    assert "There is no package nothing." in failed.stderr


def test_login_keeps_the_token_for_its_owner_alone(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BUILDERD_URL")
    monkeypatch.delenv("BUILDERD_TOKEN")
    assert run("login", running.url, "--token-stdin", stdin="bd_wrong\n").exit_code == 3
    assert run("context", "list", "--json").stdout == "[]\n"
    host = running.url.removeprefix("http://")
    assert run("login", host, "--token-stdin", stdin=f"{running.admin}\n").exit_code == 0
    from builderd.cli.apps.contexts import location

    assert location().stat().st_mode & 0o777 == 0o600
    assert run("login", host, "--name", "second", "--token-stdin", stdin=running.service.read).exit_code == 0
    assert told(run("whoami", "--json"))["token"]["scopes"] == ["read"]
    assert told(run("whoami", "--json", "--context", host))["token"]["scopes"] == ["admin"]
    assert run("context", "use", host).exit_code == 0
    assert [one["current"] for one in told(run("context", "list", "--json"))] == [True, False]
    assert run("logout").exit_code == 0
    assert run("context", "rm", "second").exit_code == 0
    assert run("ps").exit_code == 3
    assert run("ps", "--context", "second").exit_code == 3


def test_the_environment_wins_over_the_context(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("login", running.url, "--token-stdin", stdin=running.service.read).exit_code == 0
    assert told(run("whoami", "--json"))["token"]["scopes"] == ["admin"]


def test_a_contexts_token_is_not_sent_to_another_service(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("login", running.url, "--token-stdin", stdin=running.admin).exit_code == 0
    monkeypatch.delenv("BUILDERD_TOKEN")
    assert run("whoami").exit_code == 0
    monkeypatch.setenv("BUILDERD_URL", "http://127.0.0.1:9")
    refused = run("whoami")
    assert refused.exit_code == 3
    assert "BUILDERD_TOKEN is not set" in refused.stderr


def test_a_keyring_keeps_the_token_where_there_is_one(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    class Keyring:
        priority = 5

        def __init__(self) -> None:
            self.kept: dict[tuple[str, str], str] = {}

        def get_keyring(self) -> Keyring:
            return self

        def set_password(self, service: str, name: str, token: str) -> None:
            self.kept[service, name] = token

        def get_password(self, service: str, name: str) -> str:
            return self.kept[service, name]

        def delete_password(self, service: str, name: str) -> None:
            del self.kept[service, name]

    keyring = Keyring()
    monkeypatch.setitem(sys.modules, "keyring", keyring)
    monkeypatch.delenv("BUILDERD_URL")
    monkeypatch.delenv("BUILDERD_TOKEN")
    assert run("login", running.url, "--name", "here", "--token-stdin", stdin=running.admin).exit_code == 0
    from builderd.cli.apps.contexts import location

    assert running.admin not in location().read_text()
    assert told(run("whoami", "--json"))["token"]["scopes"] == ["admin"]
    assert run("logout").exit_code == 0
    assert keyring.kept == {}


@pytest.mark.parametrize(
    ("has", "advice"),
    [
        (Capacity(cpu=0.001, memory=256, disk=1000), ["builderd ps", "builderd stop NAME"]),
        (Capacity(cpu=64, memory=256, disk=0.1), ["builderd ps", "builderd delete NAME"]),
        (Capacity(cpu=0.001, memory=0.001, disk=0.1), ["builderd ps", "builderd delete NAME"]),
    ],
)
def test_a_full_machine_advises_what_frees_room(running: Running, home: Path, has: Capacity, advice: list[str]) -> None:
    running.service.engine.has = has
    as_json = run("deploy", "--yes", "--json")
    assert (as_json.exit_code, told(as_json)["code"]) == (1, "no_capacity")
    assert told(as_json)["next"] == advice
    plain = run("deploy", "--yes")
    assert plain.stderr.endswith("".join(f"Next: {step}\n" for step in advice))
    assert "doctor" not in plain.stderr


def test_waits_print_their_reason_and_end_on_standard_error(
    running: Running, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("builderd.client._sync.transport.sleep", slept.append)
    running.service.engine.ready = False
    plain = run("deploy", "--yes")
    assert (plain.exit_code, plain.stdout, slept) == (1, "", [5, 5])
    told_of = re.findall(r"Trying again in 5 s, at ..:..:..\. Ctrl-C ends the wait\.", plain.stderr)
    assert len(told_of) == 2
    assert plain.stderr.count("The engine is not ready yet: waiting to be prepared.") == 3
    as_json = run("deploy", "--yes", "--json")
    assert json.loads(as_json.stdout)["code"] == "engine_unavailable"
    waits = [json.loads(line) for line in as_json.stderr.splitlines()]
    assert [(one["status"], one["code"], one["seconds"]) for one in waits] == [("waiting", "engine_unavailable", 5)] * 2
    until = datetime.fromisoformat(waits[0]["until"])
    assert 0 < (until - datetime.now(UTC)).total_seconds() <= 5


def test_a_faulty_builder_toml_is_named(running: Running, home: Path) -> None:
    (home / "builder.toml").write_text('nmae = "x"\n')
    assert "'nmae', which is not known" in run("deploy").stderr
    (home / "builder.toml").write_text("name = \n")
    assert "is no TOML" in run("deploy").stderr


def test_the_settings_of_builder_toml_are_sent(running: Running, home: Path) -> None:
    (home / "builder.toml").write_text(
        'name = "named"\nentrypoint = "python3 main.py"\nauto_stop = 30\nport = 9000\nignore = ["*.txt"]\n'
        '[env]\nA = "1"\n[resources]\nmemory = 2\n'
    )
    (home / "left.txt").write_text("")
    made = json.loads(run("deploy", "--json").stdout)
    assert (made["name"], made["port"], made["auto_stop_interval"], made["env"]) == ("named", 9000, 30, {"A": "1"})
    assert made["resources"]["memory"] == 2
    (bundle,) = running.service.bundles.stored.values()
    assert {file.path for file in bundle.files} == {"main.py"}
    # From a folder below, too.
    below = home / "deep/er"
    below.mkdir(parents=True)
    shown = subprocess.run(
        [sys.executable, "-m", "builderd", "status", "--json"], cwd=below, capture_output=True, text=True, check=True
    )
    assert json.loads(shown.stdout)["name"] == "named"


def test_init_writes_the_name_and_shows_what_is_found(home: Path) -> None:
    assert "python3 main.py" in run("init").stderr
    assert "entrypoint" not in (home / "builder.toml").read_text()
    assert run("init").exit_code == 2
    assert json.loads(run("schema").stdout)["properties"]["entrypoint"]


def test_manual_page_has_all_commands_or_one(home: Path) -> None:
    assert ".SH builderd port-forward\n" in run("man").stdout
    assert "Usage: builderd env set" in run("man", "env", "set").stdout
    assert run("man", "nothing").exit_code == 2


def test_completion_names_commands_and_options(home: Path) -> None:
    environment = {"_BUILDERD_COMPLETE": "bash_complete", "COMP_WORDS": "builderd rollb", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "builderd"],
        env={**environment, "PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "rollback" in done.stdout


def test_no_color_is_respected(running: Running, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def colours(*words: str) -> bool:
        return "\x1b[" in CliRunner().invoke(builderd, list(words), color=True, prog_name="builderd").stdout

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert run("deploy", "--yes").exit_code == 0
    assert colours("ps")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colours("ps")


def table(width: int | None, *rows: tuple[str, str]) -> list[str]:
    return aligned(rows, {"NAME": lambda row: row[0], "TEXT": lambda row: row[1]}, width)[1:]


def test_a_table_fits_into_the_terminal() -> None:
    text = "the module is missing: add it to requirements.txt"
    assert table(40, ("my-app", text), ("b", "short")) == [
        "my-app  the module is missing: add it to",
        "        requirements.txt",
        "b       short",
    ]
    assert table(None, ("my-app", text)) == [f"my-app  {text}"]
    # Too few columns for words; and what nobody could copy in parts.
    assert table(20, ("my-app", text)) == [f"my-app  {text}"]
    url = f"http://{'a' * 60}.localhost:8081/"
    assert table(40, ("my-app", url), ("b", " " * 90)) == [f"my-app  {url}", "b"]


def test_a_sparkline_fits_into_the_terminal_and_keeps_the_peak() -> None:
    values = [0.0] * 95 + [8.0]
    assert sparkline(values) == "▁" * 95 + "█"
    assert sparkline(values, 40) == "▁" * 31 + "█"
    assert sparkline(values, 0) == "█"
    assert sparkline([1.0, 8.0], 40) == "▂█"


@pytest.mark.parametrize("hostile", ["\x1b[2J", "\x1b]0;title\x07", "a\rb", "\u202egnp.exe", "\x9b31m"])
def test_text_from_elsewhere_does_not_command_the_terminal(hostile: str) -> None:
    shown = printable(f"before {hostile} after\n\tnext")
    assert all(one.isprintable() or one in "\n\t" for one in shown)
    assert shown.startswith("before ")
    assert shown.endswith(" after\n\tnext")
    (line,) = aligned([(hostile,)], {"A": lambda row: row[0], "B": lambda _: ""})[1:]
    assert line.isprintable()


CLIPBOARD = "\x1b]52;c;ZXZpbA==\x07"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_colours_and_no_other_control() -> None:
    hostile = f"a\x1b[31mred\x1b[2J{CLIPBOARD}\x9d\r\n\tb\u202e"
    text = shown(hostile, Terminal())
    assert text.replace("\N{REPLACEMENT CHARACTER}", "") == "a\x1b[31mred[2J]52;c;ZXZpbA==\n\tb\x1b[0m"
    assert shown(hostile, io.StringIO()) == hostile


@pytest.mark.parametrize("is_terminal", [True, False])
def test_results_log_lines_messages_and_output_are_shown_so(monkeypatch: pytest.MonkeyPatch, is_terminal: bool) -> None:
    shows: tuple[Callable[[], None], ...] = (
        lambda: Session().result({}, CLIPBOARD),
        lambda: Session().row({}, CLIPBOARD),
        lambda: Session().say(CLIPBOARD),
        lambda: _write(sys.stdout, CLIPBOARD),
    )
    for show in shows:
        out = Terminal() if is_terminal else io.StringIO()
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", out)
        show()
        assert ("\x07" in out.getvalue()) is not is_terminal


def test_a_procfile_and_a_key_of_builder_toml_have_no_escapes_in_messages(home: Path) -> None:
    (home / "Procfile").write_text(f"web: python3 main.py {CLIPBOARD}\n")
    for words in (["init"], ["deploy"]):
        result = CliRunner().invoke(builderd, words, prog_name="builderd")
        assert "\x1b" not in result.output, words
        (home / "builder.toml").unlink(missing_ok=True)
    (home / "builder.toml").write_text('"\\u001b]52;c;ZXZpbA==\\u0007" = 1\n')
    result = CliRunner().invoke(builderd, ["deploy"], prog_name="builderd")
    assert "\x1b" not in result.output
    assert "is not known" in result.output
