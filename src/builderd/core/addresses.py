"""Public and non-public IP addresses, and host names as DNS, HTTP and certificates use them (A-labels, RFC 5890).

Webhooks are sent to public addresses only, and the firewall of sandboxes is made from the same list: all of it but the
networks for documentation.

Source: the IANA registries of special-purpose addresses (RFC 6890 and its successors). An IPv6 address that embeds an
IPv4 address is classified by the embedded one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import idna

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

#: IPv4 networks that are not on the internet.
NON_PUBLIC = tuple(
    IPv4Network(network)
    for network in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
        *("169.254.0.0/16", "224.0.0.0/3"),  # the first has the metadata of clouds too, 169.254.169.254
        *("168.63.129.16/32", "100.100.100.200/32"),  # a cloud's own service at an address that looks public
    )
)
#: Networks for documentation (RFC 5737): nothing on the internet or nearby has these addresses. Webhooks refuse them as
#: mistakes. Sandboxes may use them, since the gateways of some sites map mirrors of package registries there.
DOCUMENTATION = tuple(IPv4Network(network) for network in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24"))
#: IPv4 networks that the firewall keeps sandboxes from.
NOT_FOR_SANDBOXES = tuple(network for network in NON_PUBLIC if network not in DOCUMENTATION)
#: Global unicast (RFC 4291); all other IPv6 addresses are non-public or unassigned.
_GLOBAL = IPv6Network("2000::/3")
#: The first has protocols of the IETF, Teredo among them.
_NEAR_6 = tuple(IPv6Network(network) for network in ("2001::/23", "2001:db8::/32", "3fff::/20"))
_MAPPED = IPv6Network("::ffff:0:0/96")
_NAT64 = IPv6Network("64:ff9b::/96")
_6TO4 = IPv6Network("2002::/16")


def is_public(address: Address) -> bool:
    """Return True for an address on the internet; of IPv6 only for known global unicast."""
    inner = embedded_ipv4(address)
    if inner is not None:
        return is_public(inner)
    if isinstance(address, IPv4Address):
        return not in_any_network(address, NON_PUBLIC)
    return address in _GLOBAL and not in_any_network(address, _NEAR_6)


def embedded_ipv4(address: Address) -> IPv4Address | None:
    """Return the IPv4 address inside a mapped (RFC 4291), NAT64 (RFC 6052) or 6to4 (RFC 3056) address, else None."""
    if not isinstance(address, IPv6Address):
        return None
    if address in _MAPPED or address in _NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    if address in _6TO4:
        return IPv4Address(int(address) >> 80 & 0xFFFF_FFFF)
    return None


def in_any_network(address: Address, networks: Iterable[Network]) -> bool:
    """Return True if one of the networks, IPv4 or IPv6, contains the address."""
    return any(address.version == network.version and address in network for network in networks)


def parse(text: str) -> Address | None:
    """Parse an address as the resolver writes it, without its zone (``%eth0``); None for any other text."""
    try:
        return ip_address(text.partition("%")[0])
    except ValueError:
        return None


def network_of(address: str) -> str:
    """Return an IPv4 address as it is, and the /64 of an IPv6 address: its user has 2^64 of them."""
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if not isinstance(ip, IPv6Address):
        return str(ip)
    return str(ip.ipv4_mapped or IPv6Network((ip, 64), strict=False))


#: RFC 1035: of a whole name in text, without the final dot.
MAX_HOST = 253
_HOST = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)+")
#: Names that lead nowhere in public DNS (RFC 6761, RFC 6762, RFC 9476).
_LOCAL = ("localhost", "local", "internal", "onion", "invalid", "alt")


def a_labels(text: str) -> str:
    """Return the host in lower case and A-labels, without a final dot. Raises ``ValueError`` with what is wrong."""
    if not text or len(text) > 4 * MAX_HOST:
        raise ValueError(f"must be a host name of 1 to {MAX_HOST} characters")
    if "*" in text:
        raise ValueError("must not be a wildcard: add each host by its own name, such as shop.example.com")
    if ":" in text or "/" in text or "@" in text:
        raise ValueError("must be a host name alone, such as shop.example.com: without scheme, port, path and user")
    if text != text.strip() or any(character.isspace() or not character.isprintable() for character in text):
        raise ValueError("must not contain spaces or control characters")
    host = _encoded(text)
    if len(host) > MAX_HOST:
        raise ValueError(f"must have at most {MAX_HOST} characters in all, as it stands in DNS")
    if is_address(host) or host.rpartition(".")[2].isdigit():
        raise ValueError("must be a host name, not an IP address")
    if not _HOST.fullmatch(host):
        raise ValueError("must be a host name with at least one dot, such as shop.example.com")
    return host


def names_above(host: str) -> list[str]:
    """Return the host and each name above it."""
    labels = host.split(".")
    return [".".join(labels[start:]) for start in range(len(labels))]


def _encoded(text: str) -> str:
    if "xn--" not in text.lower() and text.isascii():
        return text.removesuffix(".").lower()
    try:
        host = idna.encode(text.removesuffix("."), uts46=True, std3_rules=True).decode("ascii").lower()
        again = idna.encode(idna.decode(host)).decode("ascii")
    except (idna.IDNAError, ValueError) as error:
        raise ValueError(f"must be a valid international name (RFC 5891): {error}") from None
    # What decodes to a name that encodes to another is a forged A-label.
    if again != host:
        raise ValueError(f"must be a valid international name (RFC 5891): {host} stands for {again}")
    return host


def is_address(host: str) -> bool:
    """Return True for an IP address, in brackets or not."""
    try:
        ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def shown(host: str) -> str:
    """Return the host as people write it: ``xn--…`` labels in Unicode."""
    try:
        return idna.decode(host) if "xn--" in host else host
    except idna.IDNAError:
        return host


def refusal(host: str, reserved: Collection[str], preview_domain: str) -> str | None:
    """Return why the host cannot be a custom domain of this service, or None."""
    if host in reserved:
        return "is the service's own host"
    if host == preview_domain or host.endswith(f".{preview_domain}"):
        return f"lies in {preview_domain}, where every builder has its preview already"
    if host.rpartition(".")[2] in _LOCAL:
        return f"ends with .{host.rpartition('.')[2]}, which leads nowhere on the internet"
    return None
