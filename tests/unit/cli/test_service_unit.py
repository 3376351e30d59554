"""The unit keeps apps running over a restart, and no path or option can smuggle a directive into it."""

import configparser
import os
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from builderd.bootstrap.data_directory import lock
from builderd.cli import service_unit
from builderd.cli.group import builderd as main
from builderd.cli.service_unit import ServiceUnit, install_service, quote, render


def unit(
    name: str = "builderd", executable: str = "/opt/b/bin/builderd", data_dir: str = "/var/lib/b", *options: str
) -> ServiceUnit:
    return ServiceUnit(name, Path(executable), Path(data_dir), options)


def directives(text: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    return parser


def test_a_restart_ends_the_service_alone() -> None:
    service = directives(render(unit()))["Service"]
    assert service["KillMode"] == "process"
    assert service["Restart"] == "always"


def test_an_app_out_of_memory_does_not_stop_the_service() -> None:
    service = directives(render(unit()))["Service"]
    assert service["OOMPolicy"] == "continue"
    assert service["TasksMax"] == "infinity"


def test_unit_starts_at_boot_after_network_and_data() -> None:
    text = directives(render(unit(data_dir="/srv/b")))
    assert text["Unit"]["After"] == "network-online.target"
    assert text["Unit"]["RequiresMountsFor"] == "/srv/b"
    assert text["Install"]["WantedBy"] == "multi-user.target"


def test_nothing_gives_the_service_a_mount_namespace_of_its_own() -> None:
    keys = directives(render(unit()))["Service"].keys()
    assert not [key for key in keys if key.startswith(("Private", "Protect", "ReadOnly", "Inaccessible", "Temporary"))]


def test_the_command_has_absolute_paths_and_the_given_options() -> None:
    text = render(unit("b", "/opt/b/bin/builderd", "/srv/b", "--host", "::1", "--port", "8080"))
    command = directives(text)["Service"]["ExecStart"]
    assert command == "/opt/b/bin/builderd serve --data-dir /srv/b --host ::1 --port 8080"


@pytest.mark.parametrize(
    ("word", "quoted"),
    [
        ("/plain/path-1.2", "/plain/path-1.2"),
        ("with space", '"with space"'),
        ('a"b', '"a\\"b"'),
        ("a\\b", '"a\\\\b"'),
        ("50%h", "50%%h"),
        ("a;b", '"a;b"'),
        ("é", '"é"'),
        ("", '""'),
    ],
)
def test_words_are_quoted_as_systemd_reads_them(word: str, quoted: str) -> None:
    assert quote(word) == quoted


def test_specifiers_and_variables_in_a_path_are_taken_literally() -> None:
    text = render(unit(executable="/opt/$x/builderd", data_dir="/srv/%h/$HOME"))
    assert "ExecStart=/opt/$x/builderd serve --data-dir /srv/%%h/$$HOME\n" in text
    assert "RequiresMountsFor=/srv/%%h/$HOME\n" in text


@pytest.mark.parametrize("hostile", ["/srv/a\nExecStartPre=/bin/evil", "/srv/a\rb", "/srv/a\x7f"])
def test_a_path_cannot_add_a_directive(hostile: str) -> None:
    with pytest.raises(ValueError, match="control character"):
        render(unit(data_dir=hostile))


@pytest.mark.parametrize("name", ["", "a b", "../a", "a/b", "a\nb", "-a", "a@b", "a%b"])
def test_a_unit_name_is_plain(name: str) -> None:
    with pytest.raises(ValueError, match="unit name"):
        render(unit(name))


@pytest.mark.parametrize(("executable", "data_dir"), [("builderd", "/srv"), ("/bin/builderd", "srv")])
def test_relative_paths_are_refused(executable: str, data_dir: str) -> None:
    with pytest.raises(ValueError, match="not absolute"):
        render(unit("b", executable, data_dir))


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A virtual environment with the console script in it; the path of that script."""
    script = tmp_path / "venv" / "bin" / "builderd"
    script.parent.mkdir(parents=True)
    script.touch()
    monkeypatch.setattr(sys, "executable", str(script.with_name("python")))
    return script


def test_the_command_line_writes_the_unit(environment: Path, tmp_path: Path) -> None:
    words = ["--unit-dir", str(tmp_path), "--name", "mine", "--data-dir", str(tmp_path / "d"), "--preview-port", "81"]
    result = CliRunner().invoke(install_service, words)
    assert result.exit_code == 0, result.output
    command = directives((tmp_path / "mine.service").read_text())["Service"]["ExecStart"]
    assert command == f"{environment} serve --data-dir {tmp_path}/d --preview-port 81"


@pytest.mark.usefixtures("environment")
def test_the_data_directory_may_be_a_variable_as_for_every_other_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUILDERD_DATA_DIR", str(tmp_path / "d"))
    result = CliRunner().invoke(install_service, ["--unit-dir", str(tmp_path)])
    assert result.exit_code == 0, result.output
    command = directives((tmp_path / "builderd.service").read_text())["Service"]["ExecStart"]
    assert command.endswith(f" serve --data-dir {tmp_path}/d")


SYSTEMCTL = """#!/bin/sh
echo "$@" >>{folder}/asked
case $1 in
show) echo {before} ;;
restart) exit {restarted} ;;
esac
"""
JOURNALCTL = "#!/bin/sh\necho Cannot listen on 127.0.0.1:8080\n"


def systemd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, before: str = "active", restarted: int = 0
) -> Callable[[], list[str]]:
    """One whose units are in the state ``before``, and start with that result. What it was asked to change."""
    folder = tmp_path / "systemd"
    folder.mkdir()
    texts = {
        "systemctl": SYSTEMCTL.format(folder=folder, before=before, restarted=restarted),
        "journalctl": JOURNALCTL,
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(service_unit, "SYSTEMD_RUNS", folder)
    monkeypatch.setattr(service_unit, "SYSTEM_UNITS", folder)
    return lambda: [line for line in (folder / "asked").read_text().splitlines() if not line.startswith("show")]


@pytest.mark.usefixtures("environment")
def test_failed_start_of_the_unit_shows_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    systemd(tmp_path, monkeypatch, before="inactive", restarted=1)
    result = CliRunner().invoke(main, ["install-service", "--data-dir", str(tmp_path / "new"), "--now"])
    assert result.exit_code == 1
    assert "builderd does not start" in result.output
    assert "Cannot listen on 127.0.0.1:8080" in result.output


@pytest.mark.usefixtures("environment")
def test_long_start_of_the_unit_is_reported_and_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    systemd(tmp_path, monkeypatch, before="inactive")
    control = tmp_path / "systemd/systemctl"
    until_noted = f"restart) until [ -e {tmp_path}/noted ]; do sleep 0.01; done"
    control.write_text(control.read_text().replace("restart) exit 0", until_noted))
    monkeypatch.setattr(service_unit, "NOTE_SECONDS", 0)
    echo = click.echo

    def note(text: str) -> None:
        echo(text)
        if "still starting" in text:
            (tmp_path / "noted").touch()

    monkeypatch.setattr(click, "echo", note)
    result = CliRunner().invoke(main, ["install-service", "--data-dir", str(tmp_path / "new"), "--now"])
    assert result.exit_code == 0, result.output
    still, runs = result.output.index("journalctl -fu builderd"), result.output.index("it runs; its log")
    assert still < runs


def test_unit_counts_as_started_once_it_listens() -> None:
    service = directives(render(unit()))["Service"]
    assert (service["Type"], service["TimeoutStartSec"]) == ("notify", "infinity")


@pytest.mark.usefixtures("environment")
def test_unit_is_not_started_beside_another_service_of_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = systemd(tmp_path, monkeypatch, before="inactive")
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    with lock(data_dir):
        result = CliRunner().invoke(main, ["install-service", "--data-dir", str(data_dir), "--now"])
    assert result.exit_code == 1
    assert f"A service is already running on {data_dir}: stop it first." in result.output
    assert "restart builderd.service" not in asked()
    result = CliRunner().invoke(main, ["install-service", "--data-dir", str(data_dir), "--now"])
    assert result.exit_code == 0, result.output
    assert "restart builderd.service" in asked()


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("now", [True, False])
def test_installing_restarts_a_running_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: bool) -> None:
    asked = systemd(tmp_path, monkeypatch)
    result = CliRunner().invoke(install_service, ["--data-dir", str(tmp_path), *(["--now"] if now else [])])
    assert result.exit_code == 0, result.output
    restart = ["restart builderd.service"] if now else []
    assert asked() == ["daemon-reload", "enable builderd.service", *restart]
    assert ("systemctl restart builderd" in result.output) is not now


@pytest.mark.usefixtures("environment")
def test_unit_says_that_commands_do_not_see_its_settings(tmp_path: Path) -> None:
    told = CliRunner().invoke(install_service, ["--unit-dir", str(tmp_path), "--name", "mine"]).output
    assert "set -a; . /etc/default/mine; set +a" in told
    assert "builderd.toml" in told


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("words", [["--name", "a b"], ["--data-dir", "/a\nb"], ["--unit-dir", "/nowhere/at/all"]])
def test_the_command_line_says_what_is_wrong_and_writes_nothing(words: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(install_service, ["--unit-dir", str(tmp_path), *words])
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert not list(tmp_path.glob("*.service"))


def test_missing_console_script_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    result = CliRunner().invoke(install_service, ["--unit-dir", str(tmp_path)])
    assert result.exit_code == 1
    assert "does not exist" in result.output


@pytest.mark.usefixtures("environment")
def test_a_started_unit_prints_a_link_for_the_only_tenant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    systemd(tmp_path, monkeypatch)
    install = ["install-service", "--data-dir", str(tmp_path / "data"), "--now", "--port", "8123"]
    without = CliRunner().invoke(main, install)
    assert "builderd token link --tenant" in without.output

    def token(tenant: str) -> None:
        words = ["token", "create", "--data-dir", str(tmp_path / "data"), "--tenant", tenant]
        assert CliRunner().invoke(main, words).exit_code == 0

    token("acme")
    result = CliRunner().invoke(main, install)
    assert result.exit_code == 0, result.output
    assert "as tenant 'acme'" in result.output
    assert result.output.splitlines()[-1].startswith("http://127.0.0.1:8123/sign-in/once/bdl_")

    token("other")
    assert "/sign-in/once/" not in CliRunner().invoke(main, install).output
