"""Receiving side of a cluster's standbys: connections that they pass on to the service that works. Pure.

One port takes them all. Each begins with a PROXY header of version 2 that names the client, a secret that all services
of the cluster derive from their shared key, and the service that the client asked for. Without both, and from an
address that is no member's, a connection is closed; so nobody else can claim to be another client.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from builderd.adapters.previews.haproxy import answers
from builderd.adapters.previews.haproxy.answers import Form
from builderd.adapters.previews.haproxy.options import ProxyFiles, Receiving
from builderd.adapters.previews.haproxy.section import quoted, section

#: Types of the header's fields (TLVs), of those that are free for use (PROXY protocol, 2.2).
SECRET_FIELD, SERVICE_FIELD = 0xE0, 0xE1
#: Connections to the API and to the SSH gateway have at most one in so many of all.
PART = 2
#: Times that a connection to a service which is just being started is tried, a second apart.
TRIES = 5


class PassedOn(StrEnum):
    """Service that a client of a standby asked for."""

    API = "api"
    HTTP = "http"
    HTTPS = "https"
    SSH = "ssh"
    #: The list of routes, for the standby itself.
    ROUTES = "routes"


def bind(socket: Path, user: str | None, tls: str = "") -> str:
    """Return the line for the socket of visitors that a standby passes on; ``tls`` has its words for HTTPS."""
    return f"bind {quoted(f'unix@{socket}')} mode 600{f' user {user}' if user else ''} accept-proxy {tls}"


def from_proxy(networks: str) -> str:
    """Return the rules by which a trusted proxy is known in front of a standby, too: ``fc_src`` is empty there."""
    return f"""
        tcp-request session set-var(sess.peer) src
        acl from_proxy var(sess.peer),ipmask(32,128) -m ip {networks}
        """


def sections(receiving: Receiving, files: ProxyFiles, connections: int, *, chrooted: bool) -> tuple[str, ...]:
    """Return the frontend for standbys, and a backend for each service behind it.

    A field is looked at by a variable: an ACL on it alone never ends in HAProxy 3.0.11 where the value differs.
    """
    sockets = {
        PassedOn.API: files.passed_api_socket,
        PassedOn.HTTP: files.http_socket,
        PassedOn.HTTPS: files.https_socket,
        PassedOn.SSH: files.passed_ssh_socket,
        PassedOn.ROUTES: files.passed_routes_socket,
    }
    part = max(connections // PART, 1)
    paths = {one: f"/{path.name}" if chrooted else str(path) for one, path in sockets.items()}
    choices = "\n".join(f"use_backend passed_{one} if {{ var(sess.service) -m str {one} }}" for one in PassedOn)
    return (
        section(
            "defaults members",
            """
            mode tcp
            timeout connect 2s
            timeout client-hs 5s
            timeout client 24h
            timeout client-fin 30s
            timeout server 24h
            timeout server-fin 30s
            timeout queue 5s
            timeout http-request 15s
            timeout http-keep-alive 75s
            timeout tunnel 24h
            """,
        ),
        section(
            "frontend members from members",
            f"""
            bind {quoted(f"ipv4@{receiving.address}:{receiving.port}")} accept-proxy
            # Each has another connection behind it. Those that send no header must not keep visitors out.
            maxconn {part}
            # The address of the connection itself: it is looked up before the header is read.
            tcp-request connection reject if !{{ src,map_ip({quoted(files.members)}) -m found }}
            tcp-request session set-var(sess.secret) fc_pp_tlv({SECRET_FIELD})
            tcp-request session set-var(sess.service) fc_pp_tlv({SERVICE_FIELD})
            tcp-request session reject if !{{ var(sess.secret) -m str {receiving.secret} }}
            # Where the API does not listen, as during a restart, the answer is HTTP's.
            tcp-request content switch-mode http if {{ var(sess.service) -m str {PassedOn.API} }}
            {choices}
            """,
        ),
        *(
            section(
                f"backend passed_{one} from members",
                _http(files) if one is PassedOn.API else "",
                f"retries {TRIES}",
                f"server here {quoted(f'unix@{path}')} send-proxy-v2 maxconn {part}",
            )
            for one, path in paths.items()
        ),
    )


def _http(files: ProxyFiles) -> str:
    return f"""
        mode http
        option http-no-delay
        option abortonclose
        option http-server-close
        http-reuse never
        {answers.api_errors(files, Form.ENVELOPE)}
        """
