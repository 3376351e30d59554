"""Instance of one run, as the document that Incus is given. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from builderd.core.errors import ValidationFailed
from builderd.dependencies.model import APP, NODE_MODULES, app_folder
from builderd.engine.incus.image import INIT
from builderd.engine.incus.network import mac
from builderd.engine.oci.runtime.creation import MASKED, OOM_SCORE
from builderd.engine.oci.storage.base import APP_UID

#: Prefix of the service's own keys, which Incus keeps and does not read.
OWN = "user.builderd."
#: Ids of an instance's own user namespace.
IDS = 65536


@dataclass(frozen=True, slots=True)
class Volume:
    """Custom volume of an instance, and where it is mounted."""

    name: str
    path: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Instance:
    """Parameters of an instance. ``address`` None: no network; ``routed`` False: no way out of the subnet.

    ``binds`` are pairs: a folder of the instance (of a volume, say), and where it is seen too; a missing one is left
    out. ``hidden`` are folders that nobody sees. ``own`` are the service's own keys. ``root_bytes`` limits what is
    written outside of volumes. ``folders`` are folders of this machine, by their paths inside.
    """

    name: str
    image: str
    pool: str
    cpu: float
    memory_bytes: int
    processes: int
    root_bytes: int
    volumes: tuple[Volume, ...] = ()
    binds: tuple[tuple[str, str], ...] = ()
    hidden: tuple[str, ...] = ()
    network: str = ""
    address: str | None = None
    gateway: str = ""
    prefix: int = 16
    routed: bool = True
    hostname: str = ""
    own: Mapping[str, str] = field(default_factory=dict)
    folders: Mapping[str, str] = field(default_factory=dict)
    denied: str = ""


def document(instance: Instance, project: str, *, start: bool = True) -> dict[str, Any]:
    """Return the body of ``POST /1.0/instances``."""
    return {
        "name": instance.name,
        "type": "container",
        "source": {"type": "image", "alias": instance.image},
        "start": start,
        "profiles": [],
        "ephemeral": False,
        "config": {
            # A member that comes back starts nothing: the service decides.
            "boot.autostart": "false",
            "cluster.evacuate": "stop",
            "limits.cpu.allowance": f"{max(int(instance.cpu * 100), 1)}ms/100ms",
            "limits.memory": str(instance.memory_bytes),
            "limits.memory.swap": "false",
            "limits.processes": str(instance.processes),
            "security.idmap.isolated": "true",
            "security.idmap.size": str(IDS),
            "security.nesting": "false",
            "security.privileged": "false",
            "security.guestapi": "false",
            "security.syscalls.deny_default": "true",
            "security.syscalls.deny_compat": "true",
            "security.syscalls.deny": instance.denied or denied_calls(),
            "raw.lxc": _joined([*_raw(instance), *_stop_hooks(project, instance.name)]),
            **{f"{OWN}{name}": value for name, value in instance.own.items()},
        },
        "devices": devices(instance),
    }


def devices(instance: Instance) -> dict[str, dict[str, str]]:
    """Return the devices: root, volumes, folders, and the one network interface."""
    found: dict[str, dict[str, str]] = {
        "root": {"type": "disk", "path": "/", "pool": instance.pool, "size": str(instance.root_bytes)}
    }
    for number, volume in enumerate(instance.volumes):
        found[f"volume{number}"] = volume_device(instance.pool, volume)
    for number, (path, folder) in enumerate(instance.folders.items()):
        found[f"folder{number}"] = {"type": "disk", "source": folder, "path": path, "shift": "true"}
    if instance.address:
        found["eth0"] = {
            "type": "nic",
            "network": instance.network,
            "name": "eth0",
            "hwaddr": mac(instance.address),
            "ipv4.address": instance.address,
            "security.mac_filtering": "true",
            "security.ipv4_filtering": "true",
            "security.port_isolation": "true",
        }
    return found


def volume_device(pool: str, volume: Volume) -> dict[str, str]:
    """Return the device of a volume."""
    device = {"type": "disk", "pool": pool, "source": volume.name, "path": volume.path}
    return device | ({"readonly": "true"} if volume.read_only else {})


def _raw(instance: Instance) -> list[str]:
    lines = [
        f"lxc.init.cmd = {INIT}",
        f"lxc.proc.oom_score_adj = {OOM_SCORE}",
        "lxc.signal.halt = SIGTERM",
        "lxc.signal.stop = SIGKILL",
        "lxc.mount.auto =",
        "lxc.mount.auto = proc:mixed sys:ro cgroup:ro:force",
        "lxc.mount.entry = tmpfs run tmpfs rw,nosuid,nodev,mode=755,size=16m 0 0",
        "lxc.mount.entry = tmpfs dev/shm tmpfs "
        f"rw,nosuid,nodev,mode=1777,size={instance.memory_bytes // 2},create=dir 0 0",
        f"lxc.hook.mount = {_hook(instance)}",
        *(f"lxc.mount.entry = {_mask(path)},optional 0 0" for path in MASKED),
        # Version 1 counts no buffers of sockets as memory; version 2 does, and LXC leaves this out.
        f"lxc.cgroup.memory.kmem.tcp.limit_in_bytes = {max(instance.memory_bytes // 4, 16 << 20)}",
    ]
    if instance.hostname:
        lines.append(f"lxc.uts.name = {instance.hostname}")
    if instance.address:
        lines.append(f"lxc.net.0.ipv4.address = {instance.address}/{instance.prefix}")
        if instance.routed:
            lines.append(f"lxc.net.0.ipv4.gateway = {instance.gateway}")
    return lines


def _stop_hooks(project: str, name: str) -> list[str]:
    """Return the hooks after the instance's end: Incus's own alone, and not that of lxcfs before it.

    lxcfs, which Debian's Incus brings along, waits for half a second there, for the sake of reboots. The monitor that
    runs hooks is Incus's program, and a newer one takes these arguments too: it ends instances that an older started.
    """
    call = f'exec /proc/$PPID/exe callhook "${{INCUS_DIR:-/var/lib/incus}}" {shlex.join([project, name])} stop'
    return ["lxc.hook.post-stop =", f"lxc.hook.post-stop = /bin/sh -c {shlex.quote(call)}"]


def _mask(path: str) -> str:
    """Return the mount that covers a file or folder of ``/proc``, which describes the host."""
    target = path.lstrip("/")
    return f"tmpfs {target} tmpfs ro,size=4k" if path in _MASKED_FOLDERS else f"/dev/null {target} none bind"


def _joined(lines: list[str]) -> str:
    """Return the lines as one text. A line end in a value would be another key of LXC: it is refused."""
    if any(character in line for line in lines for character in "\n\r\0"):
        raise ValidationFailed({"root": ["must not contain a line end"]})
    return "\n".join(lines)


def _hook(instance: Instance) -> str:
    """Return the command that makes the binds, before the instance's first program runs and outside of its root.

    No program of an app runs on the disk then, so that a link cannot come up between a test and a mount.
    """
    steps = [
        'cd "$LXC_ROOTFS_MOUNT"',
        *(f"umount -l {path} 2>/dev/null || true" for path in _UNWANTED),
        "rm -rf dev/fuse dev/net",
    ]
    steps += [_bind(source.lstrip("/"), target.lstrip("/")) for source, target in instance.binds]
    # The control groups stay within reach of ``entry``, which counts kills for memory.
    steps += ["mkdir -m 700 run/cgroup", "mount --rbind sys/fs/cgroup run/cgroup", _COVER_SYS]
    steps += [f"mount -t tmpfs -o ro,mode=0,size=4k tmpfs {path.lstrip('/')}" for path in instance.hidden]
    return f"/bin/sh -ec {shlex.quote('; '.join(steps))}"


def _bind(source: str, target: str) -> str:
    shown = shlex.quote(target)
    mount = f"mount --bind {source} {shown}"
    if source in (f"{DISK}/app"[1:], f"{DISK}/home"[1:]):
        return f"[ -d {source} ] || {{ mkdir {source}; chown {APP_UID}:{APP_UID} {source}; }}; {mount}"
    if source == f"{TOOL_DISK}/app"[1:]:
        # A disk that a backup is brought back to is empty; a tool that reads has it read-only.
        make = f"[ -d {source} ] || {{ mkdir {source} && chown {APP_UID}:{APP_UID} {source}; }} 2>/dev/null || true"
        return f"{make}; if [ -d {source} ]; then {mount}; fi"
    if target.startswith(f"{APP}/"[1:]):
        return _bind_in_app(source, target, mount)
    return f"if [ -d {source} ]; then {mount}; fi"


def _bind_in_app(source: str, target: str, mount: str) -> str:
    """Bind over an empty folder of the app, through no link; an app may have packages of its own there."""
    parents = [target[:end] for end, character in enumerate(target) if character == "/"]
    real = " && ".join(f"[ -d {shlex.quote(path)} ] && [ ! -L {shlex.quote(path)} ]" for path in parents)
    shown = shlex.quote(target)
    make = f"[ -e {shown} ] || [ -L {shown} ] || {{ mkdir {shown}; chown {APP_UID}:{APP_UID} {shown}; }}"
    empty = f'[ -d {shown} ] && [ ! -L {shown} ] && [ -z "$(ls -A {shown})" ]'
    return f"if [ -d {source} ] && {real}; then {make}; if {empty}; then {mount}; fi; fi"


#: Folders among those of ``/proc`` that are masked; the others are files.
_MASKED_FOLDERS = {f"/proc/{name}" for name in ("acpi", "asound", "bus", "driver", "fs", "irq", "scsi", "tty")}
_COVER_SYS = "mount -t tmpfs -o ro,mode=555,size=4k tmpfs sys"

#: Mounts that Incus makes in every container.
_UNWANTED = ("dev/fuse", "dev/net/tun", "sys/fs/fuse/connections", "sys/kernel/debug", "sys/kernel/tracing")

#: Where an app's volumes are mounted; what is seen of them is bound elsewhere.
DISK, LAYER_PATH = "/disk", "/layer"
#: Where a tool's disk is mounted; the tool sees its folder ``app`` alone, at ``/disk``.
TOOL_DISK = "/mnt/disk"
LAYER_BINDS = ((f"{LAYER_PATH}/venv", "/venv"), (f"{LAYER_PATH}/{NODE_MODULES}", f"/{NODE_MODULES}"))


def mirror(root: str) -> tuple[str, str]:
    """Return the bind of the layer's Node packages into the folder of an app, where frameworks look for them."""
    return f"{LAYER_PATH}/{NODE_MODULES}", f"{app_folder(root)}/{NODE_MODULES}"


#: System calls that no app needs: namespaces and mounts, other processes' memory, keys, kernel parts with a history of
#: holes.
_NEVER = (
    *("unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree", "open_tree_attr"),
    *("fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr", "statmount", "listmount"),
    *("ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "pidfd_getfd", "kcmp"),
    *("keyctl", "add_key", "request_key", "bpf", "perf_event_open", "userfaultfd", "fanotify_init", "fanotify_mark"),
    *("kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "reboot", "syslog", "acct"),
    *("swapon", "swapoff", "quotactl", "name_to_handle_at", "open_by_handle_at", "modify_ldt", "iopl", "ioperm"),
)
#: Programs fall back from these. copy_file_range shares blocks, which btrfs notes in metadata that counts for no disk.
_UNKNOWN = ("seccomp", "io_uring_setup", "io_uring_enter", "io_uring_register", "clone3", "copy_file_range")
#: CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET of sched.h.
_NAMESPACES = (0x2_0000, 0x200_0000, 0x400_0000, 0x800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000)
#: Families of sockets that are open: AF_UNIX, AF_INET, AF_INET6, AF_NETLINK (socket.h).
_UNIX, _INTERNET, _NETLINK = 1, (2, 10), 16
_FAMILIES = 46
#: Types of internet sockets that are open, SOCK_STREAM and SOCK_DGRAM; SOCK_RAW is not permitted, others are unknown.
_TYPES, _RAW, _TYPE_BITS = (1, 2), 3, 0xF
#: Protocols that are open: the type's default, ICMP and ICMPv6 (ping), TCP, UDP; the last is the greatest.
_PROTOCOLS = (0, 1, 6, 17, 58)
#: The type byte of btrfs' own ioctls, by which a disk could leave its quota, and that of every ioctl.
_BTRFS, _TYPE_BYTE = 0x9400, 0xFF00
#: SOL_SOCKET with SO_ATTACH_FILTER, SO_ATTACH_BPF, SO_ATTACH_REUSEPORT_CBPF and _EBPF; PR_SET_SECCOMP.
_SOL_SOCKET, _ATTACHING, _PR_SET_SECCOMP = 1, (26, 50, 51, 52), 22
#: Options by level (IPPROTO_IP, IPPROTO_IPV6) that join a multicast group (in.h): each is an entry in a table of the
#: bridge, which all apps of a member share. ENOBUFS is the kernel's own answer to a socket with too many.
_JOINING = {0: (35, 39, 42, 46), 41: (20, 42, 46)}
_EPERM, _EINVAL, _ENOSYS, _EPROTONOSUPPORT, _ENOBUFS = 1, 22, 38, 93, 105
_LOW_BITS = 0xFFFF_FFFF


def denied_calls() -> str:
    """Return the value of ``security.syscalls.deny`` for apps."""
    lines = [_deny(name, _EPERM) for name in _NEVER] + [_deny(name, _ENOSYS) for name in _UNKNOWN]
    lines += [_deny("clone", _EPERM, _masked(0, flag, flag)) for flag in _NAMESPACES]
    lines += _sockets()
    lines.append(_deny("ioctl", _EPERM, _masked(1, _BTRFS, _TYPE_BYTE)))
    lines += [_deny("setsockopt", _EPERM, _equal(1, _SOL_SOCKET), _equal(2, option)) for option in _ATTACHING]
    for level, options in _JOINING.items():
        lines += [_deny("setsockopt", _ENOBUFS, _equal(1, level), _equal(2, option)) for option in options]
    lines.append(_deny("prctl", _EINVAL, _equal(0, _PR_SET_SECCOMP)))
    return "\n".join(lines)


def _sockets() -> list[str]:
    closed = set(range(_FAMILIES)) - {_UNIX, *_INTERNET, _NETLINK}
    lines = [_deny(call, _EPERM, _equal(0, family)) for call in ("socket", "socketpair") for family in sorted(closed)]
    lines.append(_deny("socket", _EPROTONOSUPPORT, _equal(0, _NETLINK), _above(2, 0)))
    for family in _INTERNET:
        of_family = _equal(0, family)
        lines.append(_deny("socket", _EPERM, of_family, _masked(1, _RAW, _TYPE_BITS)))
        types = [kind for kind in range(_TYPE_BITS + 1) if kind not in (*_TYPES, _RAW)]
        lines += [_deny("socket", _EPROTONOSUPPORT, of_family, _masked(1, kind, _TYPE_BITS)) for kind in types]
        protocols = [number for number in range(_PROTOCOLS[-1]) if number not in _PROTOCOLS]
        lines += [_deny("socket", _EPROTONOSUPPORT, of_family, _equal(2, number)) for number in protocols]
        lines.append(_deny("socket", _EPROTONOSUPPORT, of_family, _above(2, _PROTOCOLS[-1])))
    return lines


def _deny(call: str, error: int, *conditions: str) -> str:
    return " ".join([call, "errno", str(error), *conditions])


def _masked(index: int, value: int, mask: int) -> str:
    return f"[{index},{value:#x},SCMP_CMP_MASKED_EQ,{mask:#x}]"


def _equal(index: int, value: int) -> str:
    """Return the condition that an argument's lower 32 bits are this value."""
    return _masked(index, value, _LOW_BITS)


def _above(index: int, value: int) -> str:
    """Return the condition that an argument is greater, also by its upper 32 bits."""
    return f"[{index},{value},SCMP_CMP_GT]"
