"""Seccomp profile of sandboxes: the containers' common profile without what no app needs. Pure.

The common profile (``/usr/share/containers/seccomp.json``) is made for containers with privileges: it allows every
process to make a user namespace and mount inside it. Sandboxes have no privileges, so these rules are removed here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

PROFILE = "/usr/share/containers/seccomp.json"

Rule = dict[str, Any]

_EPERM = 1
_EINVAL = 22
_ENOSYS = 38
_ENOPROTOOPT = 92
_EPROTONOSUPPORT = 93
_EOPNOTSUPP = 95

#: Namespaces and mounts, other processes' memory, keys, and kernel parts with a history of holes.
REFUSED = frozenset(
    {
        *("mount", "umount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree", "open_tree_attr", "fsopen"),
        *("fsconfig", "fsmount", "fspick", "mount_setattr", "statmount", "listmount", "unshare", "setns"),
        *("ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "pidfd_getfd", "kcmp"),
        *("keyctl", "add_key", "request_key"),
        *("bpf", "perf_event_open", "userfaultfd", "fanotify_init", "fanotify_mark"),
        *("io_uring_setup", "io_uring_enter", "io_uring_register"),
        *("kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "reboot", "syslog", "acct"),
        *("swapon", "swapoff", "quotactl", "name_to_handle_at", "open_by_handle_at", "lookup_dcookie"),
        *("modify_ldt", "uselib", "vm86", "vm86old", "iopl", "ioperm"),
    }
)

#: Allowed with some arguments only; their rules are made below.
_JUDGED = frozenset(
    {
        *("clone", "clone3", "copy_file_range", "ioctl", "prctl", "seccomp", "setsockopt"),
        *("socket", "socketcall", "socketpair"),
    }
)

#: CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET of sched.h.
_NAMESPACE_FLAGS = 0x7E02_0000

#: Families of sockets that are open, of socket.h; no vsock to a hypervisor, no kernel crypto, no packets.
_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
_NETLINK_ROUTE, _NETLINK_AUDIT = 0, 9
#: The type of a socket without its flags (SOCK_TYPE_MASK of linux/net.h).
_TYPE_BITS = 0xF
_STREAM, _DATAGRAM, _RAW = 1, 2, 3
#: Types and protocols of internet sockets that are open: TCP, UDP and ping. Protocol 0 is the default of the type.
_INTERNET = ((_STREAM, 0), (_STREAM, 6), (_DATAGRAM, 0), (_DATAGRAM, 17), (_DATAGRAM, 1), (_DATAGRAM, 58))
#: DCCP, L2TP, SCTP, UDP-Lite and MPTCP: refused as by a kernel that lacks them, so that programs fall back to TCP.
_RARE = (33, 115, 132, 136, 262)

#: The type byte of btrfs' own ioctls, by which a disk could leave its quota (a subvolume of one's own).
_BTRFS = 0x94
#: FICLONE, FICLONERANGE and FIDEDUPERANGE, of the same type byte: files that share their blocks. What btrfs notes of
#: each share counts for no disk.
_CLONE_IOCTLS = (0x4004_9409, 0x4020_940D, 0xC018_9436)

#: Calls that attach a filter program. The kernel keeps the machine code of all of them in one pool of the host
#: (``net.core.bpf_jit_limit``), charges it to no one, and may start no sandbox when it is used up: docs/adr/0027.
_PR_SET_SECCOMP = 22
_SOL_SOCKET = 1
_SO_ATTACH_FILTER, _SO_ATTACH_BPF, _SO_ATTACH_REUSEPORT_CBPF, _SO_ATTACH_REUSEPORT_EBPF = 26, 50, 51, 52
_ATTACHING = (_SO_ATTACH_FILTER, _SO_ATTACH_BPF, _SO_ATTACH_REUSEPORT_CBPF, _SO_ATTACH_REUSEPORT_EBPF)
#: Options of prctl and setsockopt, and levels of setsockopt, are below 2 to the power of these.
_PRCTL_BITS, _OPTION_BITS, _LEVEL_BITS = 7, 7, 9
#: Options of prctl with numbers of their own: PR_SET_PTRACER, PR_SET_VMA, PR_GET_AUXV.
_PRCTL_FAR = (0x5961_6D61, 0x5356_4D41, 0x4155_5856)

_ARCHITECTURES = {"x86_64": ("SCMP_ARCH_X86_64", "amd64"), "aarch64": ("SCMP_ARCH_AARCH64", "arm64")}


def make_seccomp(profile: Mapping[str, Any], machine: str, *, clones: bool = False) -> dict[str, Any]:
    """The ``linux.seccomp`` of an OCI bundle for a process without capabilities.

    ``clones`` lets it make files that share their blocks with others. That is for builds, which last some minutes; in
    an app, programs that copy read and write instead.

    ``profile`` is the parsed common profile, ``machine`` what uname calls the hardware (``x86_64``, ``aarch64``).
    Only the machine's native calls are allowed: the 32-bit ones reach the same kernel by less-tested ways.
    """
    architecture, name = _ARCHITECTURES[machine]
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": profile.get("defaultErrnoRet", _ENOSYS),
        "architectures": [architecture],
        "syscalls": [*_kept(profile["syscalls"], name), *_added(), *_copies(clones=clones)],
    }


def _kept(rules: Iterable[Mapping[str, Any]], architecture: str) -> list[Rule]:
    """Return the profile's rules for this architecture without capabilities, minus calls refused or filtered here."""
    kept = []
    for rule in rules:
        names = [name for name in rule["names"] if name not in REFUSED | _JUDGED]
        if names and _applies(rule, architecture):
            kept.append(_rule(names, rule["action"], rule.get("errnoRet"), rule.get("args") or ()))
    return kept


def _applies(rule: Mapping[str, Any], architecture: str) -> bool:
    includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
    if includes.get("caps"):
        return False
    if includes.get("arches") and architecture not in includes["arches"]:
        return False
    return architecture not in (excludes.get("arches") or ())


def _added() -> list[Rule]:
    no_namespaces = {"index": 0, "value": _NAMESPACE_FLAGS, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
    # All ioctls but those of btrfs: one rule for each bit in which a type byte can differ.
    bits = [1 << (8 + bit) for bit in range(8)]
    others = [{"index": 1, "value": bit, "valueTwo": bit & ~(_BTRFS << 8), "op": "SCMP_CMP_MASKED_EQ"} for bit in bits]
    return [
        _rule(sorted(REFUSED), "SCMP_ACT_ERRNO", _EPERM),
        _rule(["clone"], args=[no_namespaces]),
        # Its flags are behind a pointer, which a filter cannot follow: libc then falls back to clone.
        _rule(["clone3"], "SCMP_ACT_ERRNO", _ENOSYS),
        *_sockets(),
        *_filters(),
        *(_rule(["ioctl"], args=[other]) for other in others),
    ]


def _sockets() -> list[Rule]:
    """Return rules that allow; the default refuses all else, also numbers with upper 32 bits set."""
    rules = [_rule([call], args=[_equal(0, _AF_UNIX)]) for call in ("socket", "socketpair")]
    rules.append(_rule(["socket"], args=[_equal(0, _AF_NETLINK), _equal(2, _NETLINK_ROUTE)]))
    # Refused too, but as by a kernel without audits: groupadd, which scripts of packages run, goes on then.
    audit = [_equal(0, _AF_NETLINK), _equal(2, _NETLINK_AUDIT)]
    rules.append(_rule(["socket"], "SCMP_ACT_ERRNO", _EPROTONOSUPPORT, audit))
    for family in (_AF_INET, _AF_INET6):
        internet = _equal(0, family)
        rules += [_rule(["socket"], args=[internet, _type(kind), _equal(2, number)]) for kind, number in _INTERNET]
        rules += [
            _rule(["socket"], "SCMP_ACT_ERRNO", _EPROTONOSUPPORT, [internet, _equal(2, number)]) for number in _RARE
        ]
        rules.append(_rule(["socket"], "SCMP_ACT_ERRNO", _EPERM, [internet, _type(_RAW)]))
    return rules


def _type(kind: int) -> dict[str, Any]:
    return {"index": 1, "value": _TYPE_BITS, "valueTwo": kind, "op": "SCMP_CMP_MASKED_EQ"}


def _filters() -> list[Rule]:
    """Rules that keep a program from attaching filters, and answer as a kernel that has none."""
    rules = [_rule(["setsockopt"], args=[other]) for other in _all_but([_SOL_SOCKET], 1, _LEVEL_BITS)]
    sockets = _exactly(_SOL_SOCKET, 1)
    rules += [_rule(["setsockopt"], args=[sockets, other]) for other in _all_but(_ATTACHING, 2, _OPTION_BITS)]
    for option in _ATTACHING:
        rules.append(_rule(["setsockopt"], "SCMP_ACT_ERRNO", _ENOPROTOOPT, [sockets, _exactly(option, 2)]))
    rules += [_rule(["prctl"], args=[other]) for other in _all_but([_PR_SET_SECCOMP], 0, _PRCTL_BITS)]
    rules += [_rule(["prctl"], args=[_exactly(option, 0)]) for option in _PRCTL_FAR]
    rules.append(_rule(["prctl"], "SCMP_ACT_ERRNO", _EINVAL, [_exactly(_PR_SET_SECCOMP, 0)]))
    return [*rules, _rule(["seccomp"], "SCMP_ACT_ERRNO", _ENOSYS)]


def _all_but(refused: Iterable[int], index: int, bits: int) -> list[dict[str, Any]]:
    """Return conditions: one is true for each number below ``2 ** bits`` that is not refused, none for another.

    The kernel ignores the upper 32 bits of these arguments, and so do the conditions.
    """
    found: list[dict[str, Any]] = []

    def split(prefix: int, width: int) -> None:
        if all(number >> width != prefix for number in refused):
            mask = 0xFFFF_FFFF >> width << width
            found.append({"index": index, "value": mask, "valueTwo": prefix << width, "op": "SCMP_CMP_MASKED_EQ"})
        elif width:
            split(2 * prefix, width - 1)
            split(2 * prefix + 1, width - 1)

    split(0, bits)
    return found


def _exactly(number: int, index: int) -> dict[str, Any]:
    """Compare an argument with one number."""
    return {"index": index, "value": 0xFFFF_FFFF, "valueTwo": number, "op": "SCMP_CMP_MASKED_EQ"}


def _copies(*, clones: bool) -> list[Rule]:
    """Return the error rules for calls that share blocks, such as ``copy_file_range``."""
    if clones:
        allowed = [_rule(["ioctl"], args=[_equal(1, request)]) for request in _CLONE_IOCTLS]
        return [*allowed, _rule(["copy_file_range"])]
    refused = [_rule(["ioctl"], "SCMP_ACT_ERRNO", _EOPNOTSUPP, [_equal(1, request)]) for request in _CLONE_IOCTLS]
    return [*refused, _rule(["copy_file_range"], "SCMP_ACT_ERRNO", _ENOSYS)]


def _equal(index: int, value: int) -> dict[str, Any]:
    return {"index": index, "value": value, "valueTwo": 0, "op": "SCMP_CMP_EQ"}


def _rule(
    names: Sequence[str],
    action: str = "SCMP_ACT_ALLOW",
    errno: int | None = None,
    args: Iterable[Mapping[str, Any]] = (),
) -> Rule:
    rule: Rule = {"names": list(names), "action": action}
    if errno is not None:
        rule["errnoRet"] = errno
    if conditions := [dict(arg) for arg in args]:
        rule["args"] = conditions
    return rule
