"""Identify this instance: its host, its boot, its data directory."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path
from socket import gethostname

from builderd.adapters.engines.oci.network.allocations import HOST_DIR
from builderd.bootstrap.data_directory import IDENTITY_FILE, identity
from builderd.domain.database_lease import Instance
from builderd.domain.ids import new_id
from builderd.linux import atomic_files
from builderd.linux.processes import boot_id
from builderd.settings import Settings

MACHINE_ID = Path("/etc/machine-id")
#: Key of the hash over the machine id, which must not be shown to others (machine-id(5)).
_APPLICATION = b"builderd database lease"


def this_instance(settings: Settings) -> Instance:
    """Return the instance of this data directory, which must be locked."""
    return Instance(
        host_id=host_id(),
        host_name=gethostname(),
        data_dir=str(settings.data_dir.resolve()),
        identity=identity(settings.data_dir),
        boot_id=boot_id(),
    )


def host_id(machine_id: Path = MACHINE_ID, host_dir: Path = HOST_DIR) -> str:
    """Return 32 hex characters that stay the same over reboots; without a machine id, from a random stored one."""
    try:
        key = bytes.fromhex(machine_id.read_text().strip())
    except (OSError, ValueError):  # a container may have none, or the word "uninitialized"
        key = b""
    return hmac.new(key or _stored_id(host_dir), _APPLICATION, hashlib.sha256).hexdigest()[:32]


def _stored_id(host_dir: Path) -> bytes:
    file = host_dir / "host-id"
    if not file.exists() or not file.read_bytes():
        host_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        atomic_files.replace(file, new_id().encode(), durable=True)
    return file.read_bytes()


def is_copy(instance: Instance, owner: Instance) -> bool:
    """Return True when the owner's data directory still exists on this host with our identity: one was copied."""
    if instance.host_id != owner.host_id or instance.data_dir == owner.data_dir:
        return False
    try:
        there = (Path(owner.data_dir) / IDENTITY_FILE).read_text()
    except OSError:
        return False  # the directory was moved
    return there == instance.identity
