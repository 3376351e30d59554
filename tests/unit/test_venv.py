"""script/venv: the environment is this checkout's own, and of this machine's Python, whatever was copied or moved."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "script/venv"
LOCK = "requirements/runtime.lock"

#: Stands in for Python: makes environments as it does, and writes down what was installed into which.
PYTHON = """#!/bin/bash
set -euo pipefail
case "$*" in
  -VV) cat "{home}/version" ;;
  "-m venv --clear .venv")
    rm -rf .venv
    mkdir -p .venv/bin
    cp "{home}/python" .venv/bin/python
    printf '#!%s/.venv/bin/python\\n' "$PWD" >.venv/bin/pip
    chmod +x .venv/bin/pip
    cp "{home}/version" .venv/of
    echo anew >>.venv/log
    ;;
  "-m pip --version") cmp -s "{home}/version" "${{0%/bin/python}}/of" ;;
  *install*) [ ! -e "{home}/failing" ] && echo installed >>"${{0%/bin/python}}/log" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    home, made = tmp_path / "usr", tmp_path / "checkout"
    home.mkdir()
    (home / "python").write_text(PYTHON.format(home=home))
    (home / "python").chmod(0o755)
    (home / "version").write_text("Python 3.13.5\n")
    for folder in ("script", "requirements"):
        (made / folder).mkdir(parents=True)
    text = SCRIPT.read_text()
    assert "python=/usr/bin/python3\n" in text
    (made / "script/venv").write_text(text.replace("python=/usr/bin/python3\n", f"python={home}/python\n"))
    (made / "pyproject.toml").write_text("[project]\n")
    (made / LOCK).write_text("one==1\n")
    (made / "requirements/dev.lock").write_text("one==1\ntwo==2\n")
    return made


def set_up(checkout: Path, lock: str = LOCK) -> list[str]:
    """Record of the commands run on its environment so far."""
    subprocess.run(["bash", checkout / "script/venv", lock], check=True, capture_output=True, timeout=60)
    return log(checkout)


def log(checkout: Path) -> list[str]:
    return (checkout / ".venv/log").read_text().split()


ANEW = ["anew", "installed", "installed", "installed"]


def test_current_environment_is_unchanged(checkout: Path) -> None:
    assert set_up(checkout) == ANEW
    assert set_up(checkout) == ANEW


def test_another_lock_or_project_file_is_installed_into_the_same_environment(checkout: Path) -> None:
    set_up(checkout)
    (checkout / LOCK).write_text("one==2\n")
    assert set_up(checkout) == [*ANEW, *ANEW[1:]]


def test_a_moved_checkout_gets_a_new_environment(checkout: Path) -> None:
    set_up(checkout)
    assert set_up(checkout.rename(checkout.with_name("moved"))) == ANEW


def test_a_new_python_gets_a_new_environment(checkout: Path, tmp_path: Path) -> None:
    set_up(checkout)
    (tmp_path / "usr/version").write_text("Python 3.14.0\n")
    assert set_up(checkout) == ANEW


def test_an_installation_that_failed_is_done_again(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "usr/failing").touch()
    with pytest.raises(subprocess.CalledProcessError):
        set_up(checkout)
    (tmp_path / "usr/failing").unlink()
    assert set_up(checkout) == ANEW
    assert set_up(checkout) == ANEW


def test_an_environment_that_is_a_link_is_not_touched(checkout: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "bin").mkdir(parents=True)
    (other / "log").write_text("of another checkout")
    (checkout / ".venv").symlink_to(other)
    assert set_up(checkout) == ["of", "another", "checkout"]
