"""Debian packages on the real engine: installed from the mirrors, by their own scripts, in the build sandbox alone."""

from __future__ import annotations

import pytest
from tests.acceptance.live_service import TINY_APP, LiveService
from tests.acceptance.scenarios import run

pytestmark = [pytest.mark.root]

FILES = {"main.py": TINY_APP, "requirements.txt": "# none\nsix\n", "apt.txt": "figlet # a banner\n"}


def test_packages_are_there_with_what_their_scripts_made(service: LiveService) -> None:
    with service.deployed("apt", FILES, "python3 main.py", packages=["sl"]) as data:
        assert data["packages"] == ["sl"]
        # figlet's script makes it by update-alternatives.
        look = (
            "figlet hi; test -L /etc/alternatives/figlet && python3 -c 'import six' && dpkg -s sl"
            " && stat -c '%u %a' /usr/bin/figlet-figlet /usr && ! find /usr /bin -xdev -perm /6000 -type f | grep ."
        )
        code, output = run(service, data["uuid"], look)
        assert (code, output.splitlines()[-2:]) == (0, ["0 755", "0 755"]), output
        assert "Status: install ok installed" in output


@pytest.mark.parametrize(
    ("files", "packages", "why"),
    [
        ({}, ["figlet", "ffmepg", "libmagic1"], "E: Debian has no package ffmepg: names like it are ffmpeg"),
        ({"Aptfile": "sl\n:repo:deb http://x y\n"}, [], "Aptfile, line 2: ':repo:deb' is no name of a Debian package"),
    ],
)
def test_packages_that_cannot_be_installed_are_named(
    service: LiveService, files: dict[str, str], packages: list[str], why: str
) -> None:
    body = {"name": "lacks", "entrypoint": "x", "files": {"a": "", **files}, "packages": packages}
    answer = service.call("POST", "/builders", json=body)
    service.call("DELETE", f"/builders/{answer.json()['data']['uuid']}")
    assert (answer.status_code, answer.json()["code"]) == (422, "install_failed")
    assert why in answer.json()["message"]
