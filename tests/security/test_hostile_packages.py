"""Hostile wheels and source archives, from a local index, attack the host, the cache and other tenants."""

from __future__ import annotations

import io
import socket
import stat
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.integration.oci.package_index import Distribution, serve, source, wheel
from tests.integration.oci.stores import quiet
from tests.integration.oci.test_builds import ALICE, HELLO, INDEX_PORT, MALLORY, Workshop, workshop

from builderd.core.errors import InstallFailed

pytestmark = pytest.mark.root

__all__ = ["workshop"]

SPECIAL = {"link": stat.S_IFLNK | 0o777, "device": stat.S_IFBLK | 0o666, "setuid": stat.S_IFREG | 0o6755}


def raw_wheel(name: str, add: Callable[[zipfile.ZipFile], None]) -> Distribution:
    """Return a wheel of version 1 with entries that ``zipfile`` does not write by itself."""
    content = io.BytesIO(wheel(name, {f"{name}.py": "GREETING = 'mine'\n"}).content)
    with zipfile.ZipFile(content, "a") as archive:
        add(archive)
    return Distribution(name, f"{name}-1-py3-none-any.whl", content.getvalue())


def add_special(archive: zipfile.ZipFile) -> None:
    for name, mode in SPECIAL.items():
        entry = zipfile.ZipInfo(f"special/{name}")
        entry.create_system, entry.external_attr = 3, mode << 16
        archive.writestr(entry, "/etc/shadow")


def add_climbing(archive: zipfile.ZipFile) -> None:
    archive.writestr("/build/store/cache/MARK", "MARKED")
    archive.writestr("climbing-1.data/data/../../../cache/MARK", "MARKED")
    archive.writestr("climbing-1.data/scripts/../../../../cache/MARK", "#!python\nMARKED")
    scripts = "".join(f"{place}/MARK = climbing:main\n" for place in ("../../../cache", "/build/store/cache"))
    archive.writestr("climbing-1.dist-info/entry_points.txt", f"[console_scripts]\n{scripts}")


def add_lines(archive: zipfile.ZipFile) -> None:
    archive.writestr("lines/line\nbreak.py", "")


def add_clash(archive: zipfile.ZipFile) -> None:
    """Names that are one on other file systems, and the file of another package."""
    for name in ("clash/Name.py", "clash/name.py", "hello.py", "clash/\x1b[31mred.py"):
        archive.writestr(name, "GREETING = 'POISON'\n")


def add_many(archive: zipfile.ZipFile) -> None:
    for number in range(5_000):
        archive.writestr(f"many/files/{number}", "")


HOSTILE = {"special": add_special, "climbing": add_climbing, "lines": add_lines, "clash": add_clash, "many": add_many}


def special_files(folder: Path) -> list[Path]:
    """Return what is neither a plain file nor a folder nor a link, or has a special mode."""
    modes = [(path, path.lstat().st_mode) for path in folder.rglob("*")]
    plain = (stat.S_ISREG, stat.S_ISDIR, stat.S_ISLNK)
    return [path for path, mode in modes if mode & 0o7000 or not any(is_kind(mode) for is_kind in plain)]


async def test_hostile_wheels_write_only_into_their_layer(workshop: Workshop) -> None:
    victim = await workshop.install("hello", HELLO, tenant=ALICE)
    root = workshop.machine.store.root
    wheels = [raw_wheel(name, add) for name, add in HOSTILE.items()]
    with serve(workshop.machine.addresses.gateway, INDEX_PORT, *wheels, HELLO) as index:
        plans = {name: workshop.plan(f"{name}\nhello", index) for name in HOSTILE}
        outcomes = {name: await workshop.layers.build_layer(plan, quiet) for name, plan in plans.items()}
    assert [name for name in ("special", "climbing", "many") if outcomes[name].ok] == ["special", "many"]
    assert "must resolve to a file within" in outcomes["climbing"].output[-1]
    assert not list(root.rglob("MARK"))
    assert special_files(root / "layers") == []
    site = workshop.packages(plans["special"])
    assert not (site / "special/link").is_symlink(), "a link is unpacked as a file with its target as the content"
    again = await workshop.install("hello==1", HELLO, tenant=ALICE)
    assert again.key != victim.key
    for layer in (victim, again):
        assert (workshop.packages(layer) / "hello.py").read_text() == "GREETING = 'hello'\n"


def lying_wheel(name: str) -> Distribution:
    """Return a wheel whose list of files names the host's, the cache's and another package's, and not its own."""
    honest = zipfile.ZipFile(io.BytesIO(wheel(name, {f"{name}.py": "GREETING = 'mine'\n"}).content))
    content, info = io.BytesIO(), f"{name}-1.dist-info"
    places = ("/etc/shadow", "../../../../../../cache/x", "hello.py", "../../../bin/python", f"{info}/RECORD")
    with zipfile.ZipFile(content, "w") as archive:
        for entry in honest.namelist():
            if entry != f"{info}/RECORD":
                archive.writestr(entry, honest.read(entry))
        archive.writestr(f"{info}/RECORD", "".join(f"{place},sha256=AAAA,9\n" for place in places))
        archive.writestr(f"{info}/direct_url.json", '{"url": "file:///etc", "dir_info": {"editable": true}}')
    return Distribution(name, f"{name}-1-py3-none-any.whl", content.getvalue())


@pytest.mark.slow
async def test_a_wheel_that_lies_about_its_files_changes_no_other(workshop: Workshop) -> None:
    victim = await workshop.install("hello", HELLO, tenant=ALICE)
    plan = await workshop.install("lies\nhello", lying_wheel("lies"), HELLO)
    assert await workshop.run(plan, "/venv/bin/python", "-c", "import hello, lies; print(hello.GREETING)") == ["hello"]
    again = await workshop.install("hello==1", HELLO, tenant=ALICE)
    for layer in (victim, again):
        assert (workshop.packages(layer) / "hello.py").read_text() == "GREETING = 'hello'\n"


def bomb(name: str, megabytes: int) -> Distribution:
    """Return a wheel that grows a thousandfold when it is unpacked."""
    content = io.BytesIO(wheel(name, {}).content)
    with zipfile.ZipFile(content, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open(f"{name}/zeros", "w", force_zip64=True) as file:
            for _ in range(megabytes):
                file.write(bytes(1 << 20))
    return Distribution(name, f"{name}-1-py3-none-any.whl", content.getvalue())


@pytest.mark.slow
async def test_a_wheel_that_grows_when_unpacked_ends_at_its_tenants_limit(workshop: Workshop) -> None:
    """Nothing of it stays: not in the layers, and not in the cache that tenants share."""
    bombs = bomb("bomb", 400), HELLO
    with serve(workshop.machine.addresses.gateway, INDEX_PORT, *bombs) as index:
        plan = replace(workshop.plan("bomb", index), tenant=MALLORY, limit_bytes=50 << 20)
        with pytest.raises(InstallFailed, match=r"tenant\.layers"):
            await workshop.layers.build_layer(plan, quiet)
        assert not workshop.layers.has(plan.key)
        assert (await workshop.layers.build_layer(workshop.plan("hello", index, ALICE), quiet)).ok


ATTACK = """
import errno, fcntl, os, socket, time

CACHE, LAYER = "/build/store/cache", "/build/store/layer"

def tried(what):
    try:
        return what() or "done"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))

def dial(host, port):
    with socket.create_connection((host, port), 2):
        return "connected"

def fork_bomb():
    children = []
    try:
        while len(children) < 5000:
            child = os.fork()
            if not child:
                time.sleep(1000)
                os._exit(0)
            children.append(child)
    except OSError as error:
        return [len(children), errno.errorcode[error.errno]]
    finally:
        for child in children:
            os.kill(child, 9)
        # Else they count as processes until this one ends, and the installer cannot start a thread.
        for child in children:
            os.waitpid(child, 0)

def setuid():
    path = LAYER + "/venv/setuid"
    with open(path, "w") as file:
        file.write("#!/bin/sh")
    os.chmod(path, 0o6755)
    return oct(os.stat(path).st_mode)

def attack():
    gateway = next(line.split()[2] for line in open("/proc/net/route") if line.split()[1] == "0" * 8)
    gateway = socket.inet_ntoa(bytes.fromhex(gateway)[::-1])
    if not os.fork():
        os.setsid()
        os.closerange(0, 100)
        if not os.fork():
            time.sleep(1000)
        os._exit(0)
    inside = os.open(LAYER + "/venv", os.O_RDONLY)
    caps = bytes.fromhex("0100000200200000002000000000000000000000")
    return {
        "setuid": tried(setuid),
        "capability": tried(lambda: os.setxattr(LAYER + "/venv/setuid", "security.capability", caps)),
        "trusted": tried(lambda: os.setxattr(LAYER + "/venv", "trusted.overlay.opaque", b"y")),
        "overlay": tried(lambda: os.setxattr(LAYER + "/venv", "user.overlay.opaque", b"y")),
        "acl": tried(lambda: os.setxattr(LAYER + "/venv", "system.posix_acl_access", b"\\2\\0\\0\\0")),
        "device": tried(lambda: os.mknod(LAYER + "/venv/device", 0o60666, os.makedev(7, 0))),
        "whiteout": tried(lambda: os.mknod(LAYER + "/venv/whiteout", 0o20000, 0)),
        "owner": tried(lambda: os.chown(LAYER + "/venv/setuid", 12345, 12345)),
        "outside": tried(lambda: os.chown(LAYER + "/venv/setuid", 100000, 100000)),
        "immutable": tried(lambda: fcntl.ioctl(inside, 0x40086602, b"\\x10" + bytes(7))),
        "loopback": tried(lambda: dial("127.0.0.1", %(port)d)),
        "gateway": tried(lambda: dial(gateway, %(port)d)),
        "metadata": tried(lambda: dial("169.254.169.254", 80)),
        "private": tried(lambda: dial("10.255.255.254", 80)),
        "abstract": [line for line in open("/proc/net/unix") if "@" in line],
        "forks": fork_bomb(),
    }
"""


async def test_hostile_sdist_gets_no_privileges_and_no_host_access(workshop: Workshop) -> None:
    with socket.create_server(("0.0.0.0", 0)) as host:
        plan = await workshop.install("evil", source("evil", ATTACK % {"port": host.getsockname()[1]}))
    report = workshop.report(plan)
    refused = ("capability", "trusted", "device", "owner", "immutable")
    assert {name: report[name] for name in refused} == dict.fromkeys(refused, "EPERM")
    assert report["outside"] == "EINVAL"
    assert report["loopback"] == "ECONNREFUSED"
    for place in ("gateway", "metadata", "private"):
        assert report[place] in ("timed out", "EHOSTUNREACH", "ENETUNREACH", "ECONNREFUSED")
    assert report["abstract"] == []
    children, error = report["forks"]
    assert (children < 512, error) == (True, "EAGAIN")
    told = await workshop.run(plan, "/bin/sh", "-c", "grep ' /venv ' /proc/mounts; grep NoNewPrivs /proc/self/status")
    assert "nosuid" in told[0], "a setuid file of the layer gives nobody any rights"
    assert told[1].split() == ["NoNewPrivs:", "1"]
