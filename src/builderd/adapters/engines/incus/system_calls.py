"""System calls that are denied to apps, as a policy of LXC (``security.syscalls.deny``), version 2. Pure.

The kernel ignores the upper 32 bits of most arguments, and a filter compares all 64: a comparison for equality alone
would let ``1 << 32 | 40`` pass as another number than 40.
"""

from __future__ import annotations

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
