"""Choice of the port to which a preview leads, among those on which an app listens. Pure."""

from __future__ import annotations

from builderd.sandboxes.model import Listening, is_ipv6_only, is_loopback
from builderd.versions.model import Version

#: Ports of debuggers, hot reloading, databases and queues, which apps open beside the one for visitors.
NOT_FOR_VISITORS = frozenset(
    {4369, 5678, 9229, 9230, 24678, 35729, *(1433, 3306, 5432, 6379, 11211, 27017), *(2181, 5671, 5672, 9092)}
)
#: Ports that the kernel chooses for a socket without one (ip_local_port_range): on loopback, an app's own processes.
_CHOSEN_BY_KERNEL = range(32768, 61000)


def adoptable_ports(listening: Listening, version: Version) -> frozenset[int]:
    """Return the ports to which the preview may lead; none of an app that must listen on the port of its settings."""
    found = set[int]()
    for ip, port in listening.sockets if not version.settings.fixed_port else ():
        is_own = is_loopback(ip) and port in _CHOSEN_BY_KERNEL
        if port not in NOT_FOR_VISITORS and not is_own and not is_ipv6_only(ip):
            found.add(port)
    return frozenset(found)


def choose_port(listening: Listening, version: Version, *, is_settled: bool) -> int | None:
    """Return the port to which the preview is to lead, None while there is none or more than one.

    In this order: the port of the settings; the one on which this app or its framework is known to listen; the only
    one, if the ports have not changed lately (``is_settled``).
    """
    settings = version.settings
    if listening.reachable(settings.port):
        return settings.port
    ports = adoptable_ports(listening, version)
    for known in (settings.port, version.adopted_port, settings.known_port):
        if known in ports:
            return known
    return next(iter(ports)) if is_settled and len(ports) == 1 else None
