"""Types of settings: bounds and forms that several sections share."""

from __future__ import annotations

import re
from decimal import Decimal
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, IPvAnyAddress, SecretStr
from pydantic_settings import NoDecode

Port = Annotated[int, Field(ge=1, le=65535)]
Price = Annotated[Decimal, Field(ge=0)]
Share = Annotated[Decimal, Field(ge=0, le=1)]
#: Leaves room for the label of a builder in the 253 characters of a host name (RFC 1035).
Domain = Annotated[str, Field(pattern=r"^[a-z0-9-]+(\.[a-z0-9-]+)*$", max_length=189)]


def not_empty(value: Any) -> Any:
    """Reject an empty path, which would mean the working directory."""
    if isinstance(value, str) and not value.strip():
        raise ValueError("is empty: name a folder, or unset it")
    return value


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


#: An HTTP URL without user and password.
SOURCE = re.compile(r"https?://[^\s/?#\\@]+(?:[/?#]\S*)?")


def _no_secret(url: str) -> str:
    if not SOURCE.fullmatch(url):
        raise ValueError(
            "must be http://host/… or https://host/… without a user and a password, since code of tenants can read "
            "it: let a proxy on this host add the credentials, and set the proxy's URL here"
        )
    return url


#: The URL of a package index, visible to all builds.
PackageSource = Annotated[str, AfterValidator(_no_secret)]

#: A list in TOML; separated by commas in a variable.
Networks = Annotated[tuple[IPv4Network, ...], NoDecode, BeforeValidator(_split)]
AnyNetworks = Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode, BeforeValidator(_split)]


def _resolver(text: str) -> str:
    address, _, port = text.rpartition(":")
    ip_address(address.strip("[]"))
    if not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ValueError(f"{text}: must be an address and a port, such as 192.0.2.53:53 or [2001:db8::53]:53")
    return text


#: ``address:port`` of a name server.
Resolver = Annotated[str, AfterValidator(_resolver)]
Resolvers = Annotated[tuple[Resolver, ...], NoDecode, BeforeValidator(_split)]
Addresses = Annotated[tuple[IPvAnyAddress, ...], NoDecode, BeforeValidator(_split)]
Secrets = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split)]

#: A name that Incus takes for projects, pools and networks; a network's is that of a link too.
IncusName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$", max_length=63)]
