"""Host names that users type, as the A-labels that DNS, HTTP and certificates use (RFC 5890)."""

from __future__ import annotations

import re
from collections.abc import Collection
from ipaddress import ip_address

import idna

#: RFC 1035: of a whole name in text, without the final dot.
MAX_HOST = 253
#: Begins a wildcard: all names with one label more than the rest.
WILDCARD = "*."
_HOST = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)+")
#: Names that lead nowhere in public DNS (RFC 6761, RFC 6762, RFC 9476).
_LOCAL = ("localhost", "local", "internal", "onion", "invalid", "alt")


def a_labels(text: str) -> str:
    """Return the host in lower case and A-labels, without a final dot. Raises ``ValueError`` with what is wrong.

    ``*.`` may stand before a name that has a dot itself.
    """
    if not text or len(text) > 4 * MAX_HOST:
        raise ValueError(f"must be a host name of 1 to {MAX_HOST} characters")
    if text.startswith(WILDCARD):
        return _wildcard(text.removeprefix(WILDCARD))
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


def _wildcard(text: str) -> str:
    if text.startswith(WILDCARD):
        raise ValueError("must have one * at most, as its first label")
    if "." not in text.removesuffix("."):
        raise ValueError("must be a wildcard of a name with at least one dot, such as *.shop.example.com")
    host = f"{WILDCARD}{a_labels(text)}"
    if len(host) > MAX_HOST:
        raise ValueError(f"must have at most {MAX_HOST} characters in all, as it stands in DNS")
    return host


def is_wildcard(host: str) -> bool:
    """Return True for a host such as ``*.shop.example.com``."""
    return host.startswith(WILDCARD)


def zone_of(host: str) -> str:
    """Return the host itself, or the name that a wildcard is below."""
    return host.removeprefix(WILDCARD)


def wildcard_over(host: str) -> str:
    """Return the wildcard that covers a host: in place of its first label, as certificates have it."""
    return f"{WILDCARD}{host.partition('.')[2]}"


def names_above(host: str) -> list[str]:
    """Return the host's zone, each name above it, and the wildcards of all of these."""
    labels = zone_of(host).split(".")
    names = [".".join(labels[start:]) for start in range(len(labels))]
    return [*names, *(f"{WILDCARD}{name}" for name in names)]


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
        return f"{WILDCARD if is_wildcard(host) else ''}{idna.decode(zone_of(host))}" if "xn--" in host else host
    except idna.IDNAError:
        return host


def refusal(host: str, reserved: Collection[str], preview_domain: str) -> str | None:
    """Return why the host cannot be a custom domain of this service, or None."""
    if host in reserved:
        return "is the service's own host"
    zone = zone_of(host)
    if zone == preview_domain or zone.endswith(f".{preview_domain}"):
        return f"lies in {preview_domain}, where every builder has its preview already"
    for own in (*sorted(reserved), preview_domain):
        if host == wildcard_over(own):
            return f"covers {own}, a host of the service: add each name by itself"
    if host.rpartition(".")[2] in _LOCAL:
        return f"ends with .{host.rpartition('.')[2]}, which leads nowhere on the internet"
    return None
