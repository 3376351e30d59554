"""Files of a sandbox's root that come from this host: name servers, certificate authorities, its own name.

The files that are alike for all sandboxes lie in one folder, the topmost of the layers below a sandbox's root.
"""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

from builderd.adapters.engines.oci.network.network import resolv_conf
from builderd.adapters.engines.oci.network.resolvers import make_resolv_conf, parse_nameservers
from builderd.linux import atomic_files

log = logging.getLogger(__name__)

#: Mounted at the same path over the base's own: a host may trust authorities that the base does not have.
CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")


#: Home of the app's user, a mount of its own: what programs keep there is not among the files that an app serves.
HOME = "/home/app"


def write_host_files(folder: Path, base: Path) -> None:
    """Create or update the folder. Unchanged files are not written: a full store would refuse that."""
    etc = folder / "etc"
    (etc / "ssl/certs").mkdir(parents=True, exist_ok=True)
    (folder / HOME.lstrip("/")).mkdir(parents=True, exist_ok=True)
    _replace(etc / "passwd", (base / "etc/passwd").read_bytes().replace(b":/app:", f":{HOME}:".encode()))
    text = resolv_conf()
    _replace(etc / "resolv.conf", make_resolv_conf(parse_nameservers(text), text).encode())
    _replace(etc / "hosts", make_hosts("127.0.0.1", "build").encode())
    if CA_BUNDLE.exists():
        _replace(folder / str(CA_BUNDLE).lstrip("/"), CA_BUNDLE.read_bytes())
    for path in (folder, *folder.rglob("*")):
        set_mode(path, 0o755 if path.is_dir() else 0o644)


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
