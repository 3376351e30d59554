"""Program that makes its process look like one on macOS, without what only Linux has, and then uses the client.

It shows that the client neither imports, opens nor calls such a thing. Whether it works on a Mac, only a Mac can show.
"""

from __future__ import annotations

import asyncio
import asyncio.base_futures
import json
import os
import platform
import select
import selectors
import signal
import socket
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

# Other packages choose by the platform when they are imported: these are Linux's.
import anyio._backends._asyncio
import click.testing
import httpx2
import pydantic  # noqa: F401
import truststore  # noqa: F401

#: Linux's folders of the kernel and of running services.
FOLDERS = ("/proc/", "/sys/", "/run/", "/dev/shm", "/etc/os-release")
OS = (
    *("sched_", "pidfd_", "memfd_", "eventfd", "epoll_", "timerfd_", "splice", "copy_file_range", "posix_fadvise"),
    *("posix_fallocate", "getrandom", "setns", "unshare", "getxattr", "setxattr", "listxattr", "removexattr"),
    *("setresuid", "setresgid", "getresuid", "getresgid", "fdatasync", "pipe2", "O_PATH", "O_TMPFILE", "O_DIRECT"),
    *("O_LARGEFILE", "O_NOATIME", "O_RSYNC", "MFD_", "CLONE_", "EFD_", "P_PIDFD", "RWF_", "SPLICE_", "GRND_"),
)
SOCKET = ("AF_NETLINK", "AF_PACKET", "AF_VSOCK", "AF_ALG", "AF_CAN", "SO_PEERCRED", "SO_BINDTODEVICE", "SOCK_CLOEXEC")
SIGNALS = ("SIGPWR", "SIGSTKFLT", "SIGPOLL", "SIGRTMIN", "SIGRTMAX", "sigtimedwait", "sigwaitinfo")
MODULES = {"spwd", "nis", "ossaudiodev", "builderd.linux"}
#: Programs that a Mac has, too. click asks bash for its version.
PROGRAMS = {"ssh", "git", "less", "man", "open", "bash"}


class LinuxOnly(BaseException):
    """Use of something that only Linux has; no handler of errors catches it."""


def take_away() -> None:
    """Make this process look like one on macOS."""
    for module, names in ((os, OS), (socket, SOCKET), (signal, SIGNALS)):
        for name in [name for name in vars(module) if name.startswith(names)]:
            delattr(module, name)
    if hasattr(os, "process_cpu_count"):  # calls sched_getaffinity where the platform has it
        os.process_cpu_count = os.cpu_count
    selectors.DefaultSelector = selectors.PollSelector  # type: ignore[assignment, misc]
    del select.epoll
    tempfile._O_TMPFILE_WORKS = False  # type: ignore[attr-defined]
    sysconfig.get_config_vars()  # read from a module that is named after the platform
    sys.platform = "darwin"
    platform.system = lambda: "Darwin"
    sys.addaudithook(refuse)


def refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """Raise ``LinuxOnly`` for a Linux folder, module, address or program. Called by the interpreter (PEP 578)."""
    if event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], str | bytes | os.PathLike):
        if os.fsdecode(arguments[0]).startswith(FOLDERS):
            raise LinuxOnly(f"{event} {arguments[0]!r}")
    elif event == "import" and arguments[0] in MODULES:
        raise LinuxOnly(f"import {arguments[0]}")
    elif event == "socket.__new__" and arguments[1] not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        raise LinuxOnly(f"socket of family {arguments[1]}")
    elif event == "socket.bind" and isinstance(arguments[1], str | bytes) and os.fsencode(arguments[1])[:1] == b"\0":
        raise LinuxOnly("an abstract address of a socket")
    elif event in ("subprocess.Popen", "os.exec", "os.posix_spawn"):
        program = os.fsdecode(arguments[0])
        if Path(program).name not in PROGRAMS:
            raise LinuxOnly(f"program {program}")


def command(*words: str, code: int = 0, stderr: str = "", stdin: str | None = None) -> str:
    """Run a command of the client and return what it prints. Exits where its exit code or message is another one."""
    from builderd.cli.group import builderd

    done = click.testing.CliRunner().invoke(builderd, list(words), prog_name="builderd", input=stdin)
    if done.exit_code != code or stderr not in done.stderr:
        raise SystemExit(f"{words}: exit code {done.exit_code}\n{done.output}\n{done.exception!r}")
    return done.stdout


def use_commands(url: str, token: str) -> None:
    command("login", url, "--token-stdin", stdin=f"{token}\n")
    assert list(Path.home().glob("Library/Application Support/builderd*/**/contexts.json"))
    command("doctor", "--client")
    command("deploy", "--yes")
    Path("large.bin").write_bytes(os.urandom(9_000_000))  # an upload
    command("deploy")
    Path("main.py").write_text("print('changed')\n")
    command("deploy")
    assert json.loads(command("status", "--json"))["version"] == 3
    job = command("run", "--name", "job", "../job", "--", "python3", "job.py", code=4)
    assert job == "from the job\n"
    plain = "whoami|logs -n 5|exec . -- true|env set . A=1|files list .|cp .:main.py copy.py|versions|rollback --to 1"
    for words in f"{plain}|events|metrics|spending|completion bash|man|schema|delete --yes|logout".split("|"):
        command(*words.split())
    for words in ("token list", "down", "doctor"):
        command(*words.split(), code=1, stderr="which is one with Linux")


def use_sdk(url: str, token: str) -> None:
    from builderd import AsyncBuilderd, Builderd

    with Builderd(url, token) as client:
        app = client.deploy(".", "sdk", entrypoint="python3 main.py")
        app.files.write("note.txt", b"hello")
        assert app.files.read("note.txt") == b"hello"

    async def asynchronous() -> None:
        async with AsyncBuilderd(url, token) as client:
            app = await client.builders.get("sdk")
            await app.deploy(".")
            await app.delete()

    asyncio.run(asynchronous())


if __name__ == "__main__":
    assert anyio
    assert httpx2
    take_away()
    use_commands(*sys.argv[1:])
    use_sdk(*sys.argv[1:])
    sys.stdout.write("done\n")
