"""Host names that users type, as the A-labels that DNS, HTTP and certificates use (RFC 5890)."""

from __future__ import annotations

import re
from collections.abc import Collection
from ipaddress import ip_address

import idna

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
