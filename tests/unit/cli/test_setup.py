"""``builderd setup``: Debian's packages by the script of the wheel, then the base root file system."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from builderd.bootstrap import machine
from builderd.cli import service
from builderd.cli.group import builderd
from builderd.settings import Settings

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
    monkeypatch.setattr(service, "PACKAGES", script)

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
