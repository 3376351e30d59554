"""The system call filter, judged as the kernel would judge a call."""

from __future__ import annotations

from typing import Any

import pytest

from builderd.engine.oci.runtime.seccomp import REFUSED, make_seccomp

#: The parts of the common profile that matter here.
PROFILE = {
    "defaultErrnoRet": 38,
    "syscalls": [
        {
            "names": ["read", "copy_file_range", "clone", "clone3", "unshare", "mount", "ioctl", "ptrace"],
            "action": "SCMP_ACT_ALLOW",
        },
        {"names": ["socketcall", "socketpair", "keyctl", "memfd_create", "prctl"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["bpf"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_AUDIT_WRITE"]}},
        {"names": ["arch_prctl"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64"]}},
        {"names": ["arm_only"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["arm64"]}},
        {"names": ["vm86"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
    ],
}
ALLOW, ERRNO = "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"


def matches(condition: dict[str, Any], arguments: tuple[int, ...]) -> bool:
    value = arguments[condition["index"]]
    match condition["op"]:
        case "SCMP_CMP_EQ":
            return bool(value == condition["value"])
        case "SCMP_CMP_MASKED_EQ":
            return bool(value & condition["value"] == condition["valueTwo"])
    raise AssertionError(condition["op"])


def judge(call: str, *arguments: int, machine: str = "x86_64", clones: bool = False) -> tuple[str, int | None]:
    """Return the filter's answer: its action, and the error number of a refusal."""
    seccomp = make_seccomp(PROFILE, machine, clones=clones)
    for rule in seccomp["syscalls"]:
        if call in rule["names"] and all(matches(condition, arguments) for condition in rule.get("args", ())):
            return rule["action"], rule.get("errnoRet")
    return seccomp["defaultAction"], seccomp["defaultErrnoRet"]


@pytest.mark.parametrize("call", sorted(REFUSED))
def test_unneeded_system_calls_are_refused(call: str) -> None:
    assert judge(call, 0, 0, 0, 0, 0) == (ERRNO, 1)


def test_a_new_namespace_is_refused_and_a_thread_is_not() -> None:
    thread, user_namespace = 0x0003_D0F00, 0x1000_0000
    assert judge("clone", thread)[0] == ALLOW
    for flag in (0x20000, 0x0200_0000, 0x0400_0000, 0x0800_0000, user_namespace, 0x2000_0000, 0x4000_0000):
        assert judge("clone", thread | flag)[0] == ERRNO
    assert judge("clone3", 0) == (ERRNO, 38), "so that libc falls back to clone"


@pytest.mark.parametrize(
    ("family", "protocol", "action"),
    [
        (1, 0, ALLOW),
        (2, 0, ALLOW),
        (10, 6, ALLOW),
        (16, 0, ALLOW),
        (16, 9, ERRNO),
        (17, 0, ERRNO),
        (38, 0, ERRNO),
        (40, 0, ERRNO),
    ],
    ids=["unix", "inet", "inet6", "route", "audit", "packet", "kernel-crypto", "vsock"],
)
def test_only_everyday_families_of_sockets_are_open(family: int, protocol: int, action: str) -> None:
    assert judge("socket", family, 1, protocol)[0] == action


@pytest.mark.parametrize("family", [2, 10])
@pytest.mark.parametrize("flags", [0, 0o2004000], ids=["plain", "closed on exec and not blocking"])
def test_internet_sockets_are_limited_to_tcp_and_udp(family: int, flags: int) -> None:
    for kind, protocol in ((1, 0), (1, 6), (2, 0), (2, 17)):
        assert judge("socket", family, kind | flags, protocol)[0] == ALLOW
    for kind, protocol in ((1, 262), (2, 136), (1, 132), (5, 132), (6, 33), (2, 115)):
        assert judge("socket", family, kind | flags, protocol) == (ERRNO, 93), "as where the kernel has none"
    for kind, protocol in ((5, 0), (6, 0), (1, 1 << 32 | 262), (2, 1 << 32 | 136)):
        assert judge("socket", family, kind | flags, protocol)[0] == ERRNO
    assert judge("socket", family, 3 | flags, 1) == (ERRNO, 1)
    assert judge("socket", 16, 3 | flags, 9) == (ERRNO, 93), "groupadd goes on without audits"


HIGH = 1 << 32


@pytest.mark.parametrize("high", [0, HIGH])
def test_no_program_attaches_filters_and_all_other_options_pass(high: int) -> None:
    refused = {number for number in range(128) if judge("setsockopt", 3, high | 1, high | number)[0] != ALLOW}
    assert refused == {26, 50, 51, 52}
    assert judge("setsockopt", 3, high | 1, high | 26) == (ERRNO, 92)
    levels = {level for level in range(512) if judge("setsockopt", 3, high | level, high | 26)[0] != ALLOW}
    assert levels == {1}, "26 of IPv6 is IPV6_V6ONLY"
    assert {option for option in range(128) if judge("prctl", high | option)[0] != ALLOW} == {22}
    assert judge("prctl", high | 22, 2) == (ERRNO, 22)
    assert judge("prctl", 0x53564D41)[0] == ALLOW, "glibc names its heaps"
    assert judge("seccomp", 1, 0, 0) == (ERRNO, 38)


@pytest.mark.parametrize("request_", [0x4004_9409, 0x4020_940D, 0xC018_9436])
def test_only_builds_make_files_that_share_blocks_and_apps_copy_as_on_any_file_system(request_: int) -> None:
    assert judge("ioctl", 3, request_) == (ERRNO, 95)
    assert judge("copy_file_range", 3) == (ERRNO, 38)
    assert judge("ioctl", 3, request_, clones=True)[0] == ALLOW
    assert judge("copy_file_range", 3, clones=True)[0] == ALLOW


@pytest.mark.parametrize("request_", [0x5000_940E, 0x5000_9418, 0x5000_940F, 0x4010_9429, 0xFFFF_FFFF_5000_940E])
def test_ioctls_of_btrfs_by_which_a_disk_leaves_its_quota_are_refused(request_: int) -> None:
    assert judge("ioctl", 3, request_)[0] == ERRNO


def test_calls_of_other_machines_and_of_privileged_programs_are_left_out() -> None:
    assert judge("arm_only")[0] == ERRNO
    assert judge("arm_only", machine="aarch64")[0] == ALLOW
    assert judge("arch_prctl")[0] == ALLOW
    assert judge("bpf", 0)[0] == ERRNO
    assert make_seccomp(PROFILE, "x86_64")["architectures"] == ["SCMP_ARCH_X86_64"]
