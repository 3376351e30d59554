"""Incus's metrics are read strictly: a line counts only where all of it is as Incus writes it."""

from __future__ import annotations

import pytest
from builderd.adapters.engines.incus.metrics import InstanceMetrics, parse_metrics
from tests.unit.adapters.engines.incus.metrics_text import instance, line, metrics

from builderd.domain.errors import EngineUnavailable

USED = InstanceMetrics(
    cpu_seconds=1.50005, memory_bytes=10_000_000, network_in_bytes=7, network_out_bytes=8, processes=4
)


def test_instances_of_the_project_are_read() -> None:
    text = metrics(
        [
            instance("s-1"),
            instance("s-2"),
            instance("s-3", project="other"),
            instance("builderd-helper"),
            instance("build-4"),
        ]
    )
    assert parse_metrics(text, "builderd") == {"s-1": USED, "s-2": USED}


def test_member_without_instances_has_none() -> None:
    assert parse_metrics(metrics([]), "builderd") == {}


def test_project_is_no_pattern() -> None:
    assert parse_metrics(metrics([instance("s-1", project="builderd")]), "build.rd") == {}
    assert parse_metrics(metrics([instance("s-1", project="a.b+c")]), "a.b+c") == {"s-1": USED}


@pytest.mark.parametrize("text", [b"", b"\n", metrics([instance("s-1")])[:-1], metrics([instance("s-1")])[:300]])
def test_text_without_its_end_is_refused(text: bytes) -> None:
    with pytest.raises(EngineUnavailable, match="cut off"):
        parse_metrics(text, "builderd")


@pytest.mark.parametrize("without", ["cpu", "MemFree", "MemTotal", "receive", "transmit", "procs"])
def test_instance_with_a_part_of_its_values_is_unreadable(without: str) -> None:
    text = metrics([instance("s-1", without=without), instance("s-2")])
    assert parse_metrics(text, "builderd") == {"s-1": None, "s-2": USED}


def test_app_above_its_limit_uses_more_than_the_limit() -> None:
    text = metrics([instance("s-1", without="MemFree"), line("memory_MemFree_bytes", "", "-4096", "s-1")])
    found = parse_metrics(text, "builderd")["s-1"]
    assert found
    assert found.memory_bytes == 134_217_728 + 4096


@pytest.mark.parametrize(
    ("kind", "labels"),
    [("procs_total", ""), ("cpu_seconds_total", 'cpu="0",mode="user",'), ("memory_MemFree_bytes", "")],
)
def test_value_that_comes_twice_makes_its_instance_unreadable_alone(kind: str, labels: str) -> None:
    text = metrics([instance("s-1"), instance("s-2"), line(kind, labels, "3", "s-1")])
    assert parse_metrics(text, "builderd") == {"s-1": None, "s-2": USED}


@pytest.mark.parametrize(
    "value", ["nan", "NaN", "inf", "+Inf", "1e+999", "1e+99", "-1", "0x10", "1_000", "", " 4", "4 5", "٤", "9" * 400]
)
def test_value_that_is_no_count_makes_its_instance_unreadable(value: str) -> None:
    text = metrics([instance("s-1", without="procs"), line("procs_total", "", value, "s-1"), instance("s-2")])
    assert parse_metrics(text, "builderd") == {"s-1": None, "s-2": USED}


@pytest.mark.parametrize(
    "forged",
    [
        # A name of a network device that an app could make: 15 characters without white space and slash.
        'incus_network_receive_bytes_total{device="eth0",name="s",name="s-1",project="builderd",type="container"} 9',
        'incus_network_receive_bytes_total{device="eth0"}",name="s-1",project="builderd",type="container"} 9',
        'incus_network_receive_bytes_total{device="eth1",name="s-1",project="builderd",type="container"} 9',
        'incus_cpu_seconds_total{cpu="0",mode="idle",name="s-1",project="builderd",type="container"} 9',
        'incus_cpu_seconds_total{device="eth0",name="s-1",project="builderd",type="container"} 9',
        'incus_procs_total{device="eth0",name="s-1",project="builderd",type="container"} 9',
        'incus_procs_total{name="s-1",project="builderd",type="container"} 9 1700000000',
        ' incus_procs_total{name="s-1",project="builderd",type="container"} 9',
        '# HELP incus_procs_total{name="s-1",project="builderd",type="container"} 9',
        'incus_procs_total{name="s-1",project="builderd",type="virtual-machine"} 9',
        'incus_procs_total{name="S-1",project="builderd",type="container"} 9',
        'incus_procs_total{name="s-1/../s-2",project="builderd",type="container"} 9',
        'incus_procs_total{name="s-' + "1" * 65 + '",project="builderd",type="container"} 9',
        "\x00\xff\x85\u2028incus_procs_total{",
        "incus_procs_total{" * 1000,
    ],
)
def test_line_that_is_not_as_incus_writes_it_changes_nothing(forged: str) -> None:
    text = metrics([instance("s-1"), instance("s-2")])
    assert parse_metrics(forged.encode() + b"\n" + text, "builderd") == {"s-1": USED, "s-2": USED}


def test_text_of_many_megabytes_is_read_in_time() -> None:
    """Each line is looked at once: no input makes the pattern try again and again."""
    hostile = b'incus_cpu_seconds_total{cpu="0",mode="user",name="s-' + b"1" * 60 + b'",project="builderd' * 40_000
    assert parse_metrics(hostile + b"\n" + metrics([instance("s-1")]), "builderd") == {"s-1": USED}
