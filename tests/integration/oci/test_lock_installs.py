"""Locks that Poetry, Pipenv and uv really write, and a ``setup.py``: installed, in the versions of the lock."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.integration.oci.stores import quiet
from tests.integration.oci.test_builds import ALICE, Workshop, workshop

from builderd.code.model import BundleFile, make_bundle
from builderd.dependencies.installers.installers import UvInstaller

pytestmark = [pytest.mark.root, pytest.mark.slow]

__all__ = ["workshop"]

UV = str(Path(sys.executable).with_name("uv"))
POETRY = '[tool.poetry]\npackage-mode = false\n[tool.poetry.dependencies]\npython = ">=3.13"\nitsdangerous = "^2.1"\n'
#: The index as pip knows it: Poetry asks for more, which not every mirror of PyPI has.
POETRY += '[[tool.poetry.source]]\nname = "simple"\nurl = "https://pypi.org/simple/"\npriority = "primary"\n'
PIPFILE = (
    '[[source]]\nurl = "https://pypi.org/simple"\nverify_ssl = true\nname = "pypi"\n[packages]\nitsdangerous = "*"\n'
)
SETUP = "from setuptools import setup\nNEEDED = ['itsdangerous>=2.1,<3']\nsetup(name='x', install_requires=NEEDED)\n"
#: By what is locked: the files, the program that makes the lock, its command, and the lock.
LOCKS = {
    "poetry": ({"pyproject.toml": POETRY}, "poetry==2.5.1", "poetry lock", "poetry.lock"),
    "pipenv": ({"Pipfile": PIPFILE}, "pipenv==2026.10.3", "pipenv lock", "Pipfile.lock"),
    "pylock": ({"needs.in": "itsdangerous>=2.1\n"}, "", f"{UV} pip compile needs.in -o pylock.toml", "pylock.toml"),
    "setup.py": ({"setup.py": SETUP}, "", "", "setup.py"),
}


def locked(folder: Path, package: str, command: str) -> None:
    """Make the lock with the tool's own command."""
    if not command:
        return
    words = [UV, "tool", "run", "-p", sys.executable, "--from", package] if package else []
    env = {**os.environ, "HOME": str(folder), "PIPENV_IGNORE_VIRTUALENVS": "1", "NO_COLOR": "1"}
    done = subprocess.run(
        [*words, *command.split()], cwd=folder, env=env, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kind", LOCKS)
async def test_lock_of_a_real_tool_is_installed(workshop: Workshop, tmp_path: Path, kind: str) -> None:
    files, package, command, lock = LOCKS[kind]
    folder = tmp_path / "project"
    folder.mkdir()
    for path, text in files.items():
        (folder / path).write_text(text)
    locked(folder, package, command)
    names = [*{*files, lock} - {"needs.in"}]
    bundle = make_bundle([BundleFile(name, (folder / name).read_bytes()) for name in names])
    plan = UvInstaller("test").plan(bundle, workshop.machine.base.id, ALICE)
    assert plan is not None
    assert not plan.runs_foreign_code
    outcome = await workshop.layers.build_layer(plan, quiet)
    assert outcome.ok, outcome.output
    program = "import itsdangerous; from importlib.metadata import version; print(version('itsdangerous'))"
    (installed,) = await workshop.run(plan, "/venv/bin/python", "-c", program)
    assert re.fullmatch(r"2\.\d+\.\d+", installed)
    assert installed in (folder / lock).read_text() or kind == "setup.py"
