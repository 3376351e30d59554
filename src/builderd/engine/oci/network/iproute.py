"""Links, addresses and routes, by the program ``ip``. Standard library only, since the launcher uses it."""

from __future__ import annotations

import subprocess

IP = "/usr/sbin/ip"


def run_ip(*commands: str, descriptor: int | None = None) -> None:
    """Run commands of ``ip``, up to the first that fails: ``OSError``. One may name /proc/self/fd/``descriptor``."""
    passed = () if descriptor is None else (descriptor,)
    done = subprocess.run(
        [IP, "-batch", "-"],
        input="".join(f"{command}\n" for command in commands),
        capture_output=True,
        text=True,
        check=False,
        pass_fds=passed,
    )
    if done.returncode:
        raise OSError(0, f"ip: {' '.join(done.stderr.split())}")
