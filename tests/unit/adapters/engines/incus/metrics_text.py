"""Metrics as Incus 6.0 writes them, for tests."""

from __future__ import annotations

from collections.abc import Iterable

#: Lines of one instance: name of the metric, its labels before ``name``, its value.
VALUES = (
    ("cpu_seconds_total", 'cpu="0",mode="system",', "0.25"),
    ("cpu_seconds_total", 'cpu="0",mode="user",', "1.25"),
    ("cpu_seconds_total", 'cpu="1",mode="user",', "5e-05"),
    ("cpu_effective_total", "", "2"),
    ("disk_read_bytes_total", 'device="loop7",', "1.323008e+06"),
    ("filesystem_size_bytes", 'device="/dev/loop7",fstype="btrfs",mountpoint="/app",', "4.294967296e+09"),
    ("memory_Cached_bytes", "", "135168"),
    ("memory_MemFree_bytes", "", "1.24217728e+08"),
    ("memory_MemTotal_bytes", "", "1.34217728e+08"),
    ("memory_RSS_bytes", "", "9.961472e+06"),
    ("network_receive_bytes_total", 'device="lo",', "1"),
    ("network_receive_bytes_total", 'device="eth0",', "7"),
    ("network_transmit_bytes_total", 'device="eth0",', "8"),
    ("procs_total", "", "4"),
)


def line(kind: str, labels: str, value: str, name: str, project: str = "builderd") -> str:
    return f'incus_{kind}{{{labels}name="{name}",project="{project}",type="container"}} {value}\n'


def instance(name: str, project: str = "builderd", *, without: str = "none") -> str:
    return "".join(line(*one, name, project) for one in VALUES if without not in "".join(one))


def metrics(instances: Iterable[str]) -> bytes:
    """Return the answer of a member with these instances (``instance``), in parts by kind as Incus writes them."""
    lines = sorted("".join(instances).splitlines())
    server = ("# TYPE incus_go_heap_objects gauge", "incus_go_heap_objects 135012", "incus_uptime_seconds 3.5")
    return "\n".join([*lines, *server, "# EOF\n"]).encode()
