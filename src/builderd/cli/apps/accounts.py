"""``builderd login``, ``logout``, ``context`` and ``whoami``."""

from __future__ import annotations

import os
import sys
from urllib.parse import urlsplit

import click

from builderd.cli.apps import contexts
from builderd.cli.apps.session import Columns, NotSignedIn, Session, command

DEFAULT_URL = "http://127.0.0.1:8080"
LOOPBACK = {"127.0.0.1", "localhost", "::1"}


@command("login [URL]")
@click.option("--token-stdin", is_flag=True, help="Read the token from standard input.")
@click.option("--name", metavar="NAME", help="What to call the service.  [default: its host]")
def login(session: Session, url: str | None, token_stdin: bool, name: str | None) -> None:
    """Sign in to a service and keep the token.

    The token is asked for without echo, or read from standard input or BUILDERD_TOKEN. The operator of the
    service makes one with `builderd token create --tenant NAME`.
    """
    url = url or os.environ.get("BUILDERD_URL") or DEFAULT_URL
    if "://" not in url:
        url = f"{'http' if urlsplit(f'//{url}').hostname in LOOPBACK else 'https'}://{url}"
    chosen = url.rstrip("/")
    token = _token(session, chosen, token_stdin)
    context = contexts.Context(name or urlsplit(chosen).netloc, chosen, token, session.ca)
    from builderd.client._sync.client import Builderd  # noqa: PLC0415 (help needs no HTTP)

    with Builderd(chosen, token, ca=session.ca) as client:
        who = client.tokens.current()
    with contexts.changed() as known:
        known.put(context)
    session.result(
        {"context": context.name, "url": chosen, "token": who},
        f"Signed in to {chosen} with the token {who.name!r} ({', '.join(who.scopes)}).",
    )


def _token(session: Session, url: str, from_stdin: bool) -> str:
    if from_stdin:
        typed = sys.stdin.readline().strip()
        if not typed:
            raise NotSignedIn("standard input has no token")
        return typed
    given = os.environ.get("BUILDERD_TOKEN")
    return given or session.ask(f"Token for {url}", f"builderd login {url} --token-stdin <token-file", hidden=True)


@command("logout [NAME]")
def logout(session: Session, name: str | None) -> None:
    """Forget a service and its token on this machine. The token itself stays valid: see `builderd tokens revoke`."""
    with contexts.changed() as known:
        gone = name or known.current
        if gone not in known.known:
            raise NotSignedIn(f"there is no context {gone!r}" if gone else "you are not signed in")
        known.remove(gone)
    session.result({"context": gone}, f"Signed out of {gone}.")


@command("whoami")
def whoami(session: Session) -> None:
    """Show the service in use and what its token may do."""
    url, _, _ = session.service()
    token = session.client.tokens.current()
    until = f"{token.expires_at:%Y-%m-%d %H:%M} UTC" if token.expires_at else "never"
    text = f"{url}\ntoken    {token.name}\nscopes   {', '.join(token.scopes)}\nexpires  {until}"
    session.result({"url": url, "token": token}, text)


context = click.Group("context", help="List, choose and forget services.")


@command("list", context)
def list_(session: Session) -> None:
    """List the services that you are signed in to."""
    known = contexts.load()
    rows = [{"name": name, "url": one["url"], "current": name == known.current} for name, one in known.known.items()]
    columns: Columns = {"": lambda row: "*" if row["current"] else "", "NAME": "{[name]}", "URL": "{[url]}"}
    session.table(rows, columns, "You are not signed in: run builderd login URL.")


@command("use NAME", context)
def use(session: Session, name: str) -> None:
    """Use a service from now on."""
    with contexts.changed() as known:
        if name not in known.known:
            raise NotSignedIn(f"there is no context {name!r}")
        known.current = name
    session.result({"context": name}, f"Using {name}.")


@command("rm NAME", context)
def rm(session: Session, name: str) -> None:
    """Forget a service."""
    with contexts.changed() as known:
        if name not in known.known:
            raise NotSignedIn(f"there is no context {name!r}")
        known.remove(name)
    session.result({"context": name}, f"Forgot {name}.")
