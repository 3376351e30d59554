"""The unit keeps apps running over a restart, and no path or option can smuggle a directive into it."""

from __future__ import annotations

import configparser
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from builderd.bootstrap import machine
from builderd.bootstrap.data_directory import lock
from builderd.cli import machine as commands
from builderd.cli import service_unit
from builderd.cli.group import builderd
from builderd.cli.machine import usage_lines
from builderd.cli.service_unit import install_service, quote, render
from builderd.core.ids import BuilderId, DiskId
from builderd.core.resources import GB
from builderd.engine.inventory import (
    BuilderStorage,
    EngineInventory,
    Inventory,
    StoredBase,
    StoredDisk,
    StoredLayer,
)
from builderd.settings import Settings


def unit(
    name: str = "builderd", executable: str = "/opt/b/bin/builderd", data_dir: str = "/var/lib/b", *options: str
) -> str:
    return render(name, Path(executable), Path(data_dir), options)


def directives(text: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    return parser


def test_the_unit_starts_at_boot_once_it_listens_and_its_restart_ends_the_service_alone() -> None:
    text = directives(unit(data_dir="/srv/b"))
    expected = {
        "Unit": {"After": "network-online.target", "RequiresMountsFor": "/srv/b"},
        "Service": {
            "Type": "notify",
            "TimeoutStartSec": "infinity",
            "KillMode": "process",
            "Restart": "always",
            # An app out of memory does not stop the service.
            "OOMPolicy": "continue",
            "TasksMax": "infinity",
        },
        "Install": {"WantedBy": "multi-user.target"},
    }
    for section, values in expected.items():
        assert {name: text[section][name] for name in values} == values


def test_nothing_gives_the_service_a_mount_namespace_of_its_own() -> None:
    keys = directives(unit())["Service"].keys()
    assert not [key for key in keys if key.startswith(("Private", "Protect", "ReadOnly", "Inaccessible", "Temporary"))]


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
    text = unit(executable="/opt/$x/builderd", data_dir="/srv/%h/$HOME")
    assert "ExecStart=/opt/$x/builderd serve --data-dir /srv/%%h/$$HOME\n" in text
    assert "RequiresMountsFor=/srv/%%h/$HOME\n" in text


@pytest.mark.parametrize("hostile", ["/srv/a\nExecStartPre=/bin/evil", "/srv/a\rb", "/srv/a\x7f"])
def test_a_path_cannot_add_a_directive(hostile: str) -> None:
    with pytest.raises(ValueError, match="control character"):
        unit(data_dir=hostile)


@pytest.mark.parametrize("name", ["", "a b", "../a", "a/b", "a\nb", "-a", "a@b", "a%b"])
def test_a_unit_name_is_plain(name: str) -> None:
    with pytest.raises(ValueError, match="unit name"):
        unit(name)


@pytest.mark.parametrize(("executable", "data_dir"), [("builderd", "/srv"), ("/bin/builderd", "srv")])
def test_relative_paths_are_refused(executable: str, data_dir: str) -> None:
    with pytest.raises(ValueError, match="not absolute"):
        unit("b", executable, data_dir)


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
    texts = {"systemctl": SYSTEMCTL.format(folder=folder, before=before, restarted=restarted), "journalctl": JOURNALCTL}
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
    result = CliRunner().invoke(builderd, ["install-service", "--data-dir", str(tmp_path / "new"), "--now"])
    assert result.exit_code == 1
    assert "builderd does not start" in result.output
    assert "Cannot listen on 127.0.0.1:8080" in result.output


@pytest.mark.usefixtures("environment")
def test_unit_is_not_started_beside_another_service_of_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = systemd(tmp_path, monkeypatch, before="inactive")
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    with lock(data_dir):
        result = CliRunner().invoke(builderd, ["install-service", "--data-dir", str(data_dir), "--now"])
    assert result.exit_code == 1
    assert f"A service is already running on {data_dir}: stop it first." in result.output
    assert "restart builderd.service" not in asked()
    result = CliRunner().invoke(builderd, ["install-service", "--data-dir", str(data_dir), "--now"])
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
    without = CliRunner().invoke(builderd, install)
    assert "builderd token link --tenant" in without.output

    def token(tenant: str) -> None:
        words = ["token", "create", "--data-dir", str(tmp_path / "data"), "--tenant", tenant]
        assert CliRunner().invoke(builderd, words).exit_code == 0

    token("acme")
    result = CliRunner().invoke(builderd, install)
    assert result.exit_code == 0, result.output
    assert "as tenant 'acme'" in result.output
    assert result.output.splitlines()[-1].startswith("http://127.0.0.1:8123/sign-in/once/bdl_")

    token("other")
    assert "/sign-in/once/" not in CliRunner().invoke(builderd, install).output


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command with a script of packages that notes its arguments and exits with a code."""

    def build(_: Settings, say: Callable[[str], None]) -> str:
        say("making it")
        return "/base"

    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(machine, "build_base", build)
    script = tmp_path / "packages.sh"
    monkeypatch.setattr(commands, "PACKAGES", script)

    def invoke(*words: str, code: int = 0) -> tuple[int, str]:
        script.write_text(f"echo $# $@ >{tmp_path}/arguments; exit {code}\n")
        done = CliRunner().invoke(builderd, ["setup", "--data-dir", str(tmp_path / "data"), *words])
        return done.exit_code, done.output

    return invoke


def test_setup_installs_packages_and_makes_the_base(run: Run, tmp_path: Path) -> None:
    code, output = run()
    assert (code, output.splitlines()[:2]) == (0, ["making it", "base root file system: /base"])
    assert "builderd install-service --now" in output
    assert (tmp_path / "arguments").read_text() == "0\n"
    assert run("--with-browser")[0] == 0
    assert (tmp_path / "arguments").read_text() == "1 --with-browser\n"
    # Nothing of the service's own is made before it starts.
    assert not (tmp_path / "data").exists()


def test_setup_ends_where_packages_are_missing(run: Run) -> None:
    code, output = run(code=1)
    assert code == 1
    assert "run it again" in output
    assert "base" not in output


def test_setup_needs_root(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    code, output = run()
    assert code == 1
    assert "sudo builderd setup" in output
    assert not (tmp_path / "arguments").exists()


NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
KEY, OTHER = "a" * 64, "b" * 64
USERS = (
    BuilderStorage(
        "acme", BuilderId("1"), "api", "running", 3, 2, (DiskId("d1"),), KEY, frozenset({KEY}), frozenset({"x"})
    ),
    BuilderStorage(
        "acme", BuilderId("2"), "job", "stopped", 1, 1, (DiskId("d2"),), None, frozenset(), frozenset({"y"})
    ),
    BuilderStorage("zeta", BuilderId("3"), "web", "running", 1, 1, (DiskId("d3"),), KEY, frozenset({KEY}), frozenset()),
)
STORED = EngineInventory(
    layers=[StoredLayer(KEY, GB // 2, NOW, seen=True), StoredLayer(OTHER, GB, NOW, seen=False)],
    disks=[StoredDisk(DiskId(name), GB, 3 * GB) for name in ("d1", "d2", "d3", "stray")],
    bases=[StoredBase("5c1b", GB, NOW, seen=True, own=True), StoredBase("0old", GB, NOW, seen=False, own=False)],
    cache_bytes=2 * GB,
    scratch_bytes=0,
    scratch=3,
)
INVENTORY = Inventory(USERS, {"x": GB, "y": GB, "z": GB}, frozenset({"x", "y"}), STORED)


def test_usage_is_listed_by_tenant_builder_layer_base_bundle_and_stray() -> None:
    lines = list(usage_lines(INVENTORY))
    assert lines[0] == "tenant acme: 2 builders, disks 2.00 GB of 6.00 GB"
    assert lines[1].split()[:4] == ["api", "running", "v3", "(2"]
    assert "1.00 GB of 3.00 GB" in lines[1]
    assert KEY[:12] in lines[1]
    assert "layer none" in lines[2]
    assert lines[3].startswith("tenant zeta: 1 builders")
    text = "\n".join(lines)
    assert "layers: 2, 1.50 GB" in text
    assert "acme/api, zeta/web, a sandbox runs on it" in text
    assert f"{OTHER[:12]}    1.00 GB  unused" in text
    assert "base 5c1b: 1.00 GB, ours, sandboxes run on it" in text
    assert "base 0old: 1.00 GB, unused" in text
    assert "bundles: 3, 3.00 GB; of no use any more: 1, 1.00 GB" in text
    assert "disk stray: 1.00 GB, of no builder" in text


def test_without_the_store_it_says_how_to_see_more() -> None:
    text = list(usage_lines(replace(INVENTORY, stored=None)))
    assert text[-1].startswith("The store is not mounted")
    assert any(line.startswith("tenant acme: 2 builders") for line in text)
