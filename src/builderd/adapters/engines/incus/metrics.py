"""Usage of running instances, from Incus's metrics of one member: OpenMetrics text. Pure.

Names and units: https://linuxcontainers.org/incus/docs/main/reference/provided_metrics/. Incus does not escape the
values of labels, so a line counts only where all of it is as expected.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from builderd.adapters.engines.incus.errors import RETRY_SECONDS
from builderd.adapters.engines.incus.reports import PREFIX
from builderd.domain.errors import EngineUnavailable

#: The last line; without it the text was cut off.
_END = b"# EOF\n"
_LINE = (
    rb"^incus_(cpu_seconds_total|memory_MemTotal_bytes|memory_MemFree_bytes|network_receive_bytes_total"
    rb"|network_transmit_bytes_total|procs_total)"
    rb'\{(cpu="[0-9]{1,5}",mode="(?:system|user)",|device="eth0",|)name="(%b[0-9A-Za-z]{1,64})",project="%b",'
    rb'type="container"\} (-?[0-9]{1,19}(?:\.[0-9]{1,19})?(?:e[+-][0-9]{2})?)$'
)
_CPU, _NETWORK = rb"cpu_seconds_total", (rb"network_receive_bytes_total", rb"network_transmit_bytes_total")
_TOTAL, _FREE, _PROCESSES = rb"memory_MemTotal_bytes", rb"memory_MemFree_bytes", rb"procs_total"
#: Greater values are no counts of a machine.
_GREATEST = float(1 << 63)


@dataclass(frozen=True, slots=True)
class InstanceMetrics:
    """CPU seconds and network bytes since the instance's start; present memory (bytes) and processes."""

    cpu_seconds: float
    memory_bytes: int
    network_in_bytes: int
    network_out_bytes: int
    processes: int


@dataclass(slots=True)
class _Found:
    cpu: dict[bytes, float] = field(default_factory=dict)
    values: dict[bytes, float] = field(default_factory=dict)
    is_contradictory: bool = False


def parse_metrics(text: bytes, project: str) -> Mapping[str, InstanceMetrics | None]:
    """Return the metrics of the sandboxes' instances of a project that run, by name.

    None stands for an instance with a part of its values, or with one twice: it started or ended meanwhile, or a line
    is not Incus's. Raises ``EngineUnavailable`` for a text without its end.
    """
    if not text.endswith(_END):
        raise EngineUnavailable("Incus's metrics were cut off.", retry_after=RETRY_SECONDS)
    line = re.compile(_LINE % (re.escape(PREFIX.encode()), re.escape(project.encode())), re.MULTILINE)
    found: dict[bytes, _Found] = {}
    for kind, labels, name, value in line.findall(text):
        _note(found.setdefault(name, _Found()), kind, labels, float(value))
    return {name.decode(): _metrics(one) for name, one in found.items()}


def _note(found: _Found, kind: bytes, labels: bytes, value: float) -> None:
    prefix = b"cpu=" if kind == _CPU else b"device=" if kind in _NETWORK else b""
    if not labels.startswith(prefix) or (labels and not prefix):
        return
    values, key = (found.cpu, labels) if kind == _CPU else (found.values, kind)
    # Free memory may be negative: the kernel lets an app exceed its limit while it reclaims.
    lowest = -_GREATEST if kind == _FREE else 0.0
    found.is_contradictory |= key in values or not lowest <= value <= _GREATEST
    values[key] = value


def _metrics(found: _Found) -> InstanceMetrics | None:
    values = found.values
    if found.is_contradictory or not found.cpu or len(values) < len({_TOTAL, _FREE, _PROCESSES, *_NETWORK}):
        return None
    received, sent = (int(values[kind]) for kind in _NETWORK)
    memory = max(int(values[_TOTAL] - values[_FREE]), 0)
    return InstanceMetrics(sum(found.cpu.values()), memory, received, sent, int(values[_PROCESSES]))
