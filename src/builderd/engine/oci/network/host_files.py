"""Files of a sandbox's root that come from this host: name servers, certificate authorities, its own name.

The files that are alike for all sandboxes lie in one folder, the topmost of the layers below a sandbox's root.
"""

from __future__ import annotations

import logging
import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

from builderd.engine.oci.network.network import make_resolv_conf, parse_nameservers, resolv_conf
from builderd.linux import atomic_files

log = logging.getLogger(__name__)

#: Mounted at the same path over the base's own: a host may trust authorities that the base does not have.
CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
#: For programs with a certificate bundle of their own; Node.js adds it to its own.
CA_ENVIRONMENT = {"SSL_CERT_FILE": str(CA_BUNDLE), "NODE_EXTRA_CA_CERTS": str(CA_BUNDLE)}


#: Home of the app's user, a mount of its own: what programs keep there is not among the files that an app serves.
HOME = "/home/app"
#: File inside with the limits of the disk.
DISK_LIMITS = "/run/limits/disk"
#: Folder of these files in the store.
FOLDER = "host-files"


def write_host_files(folder: Path, base: Path, programs: Sequence[Path] = ()) -> None:
    """Create or update the folder. Unchanged files are not written: a full store would refuse that.

    ``programs`` of the host, which need nothing beside them, are in ``/usr/local/bin`` of every sandbox.
    """
    etc = folder / "etc"
    (etc / "ssl/certs").mkdir(parents=True, exist_ok=True)
    (folder / HOME.lstrip("/")).mkdir(parents=True, exist_ok=True)
    _replace(etc / "passwd", (base / "etc/passwd").read_bytes().replace(b":/app:", f":{HOME}:".encode()))
    text = resolv_conf()
    _replace(etc / "resolv.conf", make_resolv_conf(parse_nameservers(text), text).encode())
    _replace(etc / "hosts", make_hosts("127.0.0.1", "build").encode())
    if CA_BUNDLE.exists():
        _replace(folder / str(CA_BUNDLE).lstrip("/"), CA_BUNDLE.read_bytes())
    binaries = folder / "usr/local/bin"
    binaries.mkdir(parents=True, exist_ok=True)
    for program in programs:
        _copy_program(program, binaries / program.name)
    file = folder / DISK_LIMITS.lstrip("/")
    try:
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    except OSError as error:  # the runtime makes it in each sandbox
        log.warning("mount point not made file=%s error=%s", file, error)
    python = folder / "usr/bin/python"
    python.parent.mkdir(exist_ok=True)
    if not python.is_symlink():
        python.symlink_to("python3")
    for path in (folder, *folder.rglob("*")):
        # A link among them leads to a file of the base, which would be one of this machine here.
        if not path.is_symlink():
            set_mode(path, 0o755 if path.is_dir() or path.parent == binaries else 0o644)


def _copy_program(program: Path, target: Path) -> None:
    """Copy a program unless it is there already. On failure sandboxes do without it."""
    status = program.stat()
    known = target.stat() if target.exists() else None
    if known is not None and (known.st_size, known.st_mtime_ns) == (status.st_size, status.st_mtime_ns):
        return
    new = target.with_name(f".{target.name}.new")
    try:
        shutil.copy2(program, new)
        new.replace(target)
    except OSError as error:
        new.unlink(missing_ok=True)
        log.warning("program not copied for sandboxes program=%s error=%s", program, error)


def _replace(file: Path, content: bytes) -> None:
    """Replace the file atomically. On failure sandboxes keep the file of the last start."""
    if file.exists() and file.read_bytes() == content:
        return
    try:
        atomic_files.replace(file, content, mode=0o644)
    except OSError as error:
        if not file.exists():
            raise
        log.warning("host file not renewed, keeping the old one file=%s error=%s", file, error)


def set_mode(path: Path, mode: int) -> None:
    """Change the permissions where they differ."""
    if stat.S_IMODE(path.stat().st_mode) != mode:
        path.chmod(mode)


def write_own_files(upper: Path, hostname: str, ip: str, uid: int) -> None:
    """Write a sandbox's hostname and hosts file into its upper layer. ``uid`` is the host's id of its root."""
    etc = upper / "etc"
    etc.mkdir(mode=0o755)
    for name, text in (("hosts", make_hosts(ip, hostname)), ("hostname", f"{hostname}\n")):
        (etc / name).write_text(text)
        os.chown(etc / name, uid, uid)
    os.chown(etc, uid, uid)


def make_hosts(ip: str, hostname: str) -> str:
    """Return the text of ``/etc/hosts``.

    With a line for 0.0.0.0: Python's ``http.server`` asks for its name before it listens, and would wait for DNS.
    """
    return f"127.0.0.1 localhost\n{ip} {hostname}\n0.0.0.0 any.invalid\n"
