"""``builderd token``: create, list and revoke API tokens, also while the service runs."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import click

from builderd.bootstrap import tokens
from builderd.bootstrap.configuration import load
from builderd.cli import options
from builderd.cli.command_group import CommandGroup
from builderd.domain.tokens import Scope

SPAN = re.compile(r"(\d+)([mhdw])")
UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Expiry(click.ParamType[datetime]):
    """A span (``30d``, ``12h``, ``45m``, ``2w``) or a time such as ``2026-01-31T12:00:00Z``, converted to UTC."""

    name = "expiry"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        text = str(value)
        span = SPAN.fullmatch(text)
        try:
            if span is not None:
                return datetime.now(UTC) + timedelta(**{UNITS[span[2]]: int(span[1])})
            moment = datetime.fromisoformat(text)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
        except (ValueError, OverflowError):
            self.fail(f"{text!r} is neither a span such as 30d nor a time such as 2026-01-31T12:00:00Z", param, ctx)


@click.group(cls=CommandGroup)
def token() -> None:
    """Create, list and revoke API tokens."""


@token.command()
@options.data_dir
@options.config
@click.option("--tenant", required=True, help="The token's tenant; created if it does not exist.")
@click.option("--name", default="cli", show_default=True, help="The token's name in events.")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice([scope.value for scope in Scope]),
    multiple=True,
    default=[Scope.WRITE.value],
    show_default=True,
    help="May be given more than once.",
)
@click.option("--expires", type=Expiry(), help="30d, 12h, or a time.  [default: never]")
def create(
    data_dir: Path | None,
    config: Path | None,
    tenant: str,
    name: str,
    scopes: tuple[str, ...],
    expires: datetime | None,
) -> None:
    """Create a token. Its secret is on the last line of the output, and is not shown again.

    Creates the data directory and the database where they are missing.
    """
    settings = load(config, data_dir=data_dir)
    wanted = tokens.TokenRequest(tenant, name, frozenset(Scope(scope) for scope in scopes), expires)
    made, secret = asyncio.run(tokens.make_token(settings, wanted, partial(click.echo, err=True)))
    until = f"until {made.expires_at:%Y-%m-%d %H:%M} UTC" if made.expires_at else "until it is revoked"
    click.echo(f"Token {name!r} of tenant {tenant!r} ({', '.join(sorted(made.scopes))}), good {until}:", err=True)
    click.echo(secret)


@token.command()
@options.data_dir
@options.config
@click.option("--tenant", required=True, help="Whom the link signs in; created if it does not exist.")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice([scope.value for scope in Scope]),
    multiple=True,
    default=[Scope.WRITE.value],
    show_default=True,
    help="May be given more than once.",
)
@click.option("--url", help="Where browsers reach the service.  [default: public_url, or the address it listens on]")
def link(data_dir: Path | None, config: Path | None, tenant: str, scopes: tuple[str, ...], url: str | None) -> None:
    """Print a link that signs a browser in to the web pages, once, within 10 minutes.

    It is on the last line of the output. Its sessions end when the token named "sign-in link" is revoked.
    """
    settings = load(config, data_dir=data_dir)
    wanted = frozenset(Scope(scope) for scope in scopes)
    made = asyncio.run(tokens.make_link(settings, tenant, wanted, partial(click.echo, err=True)))
    click.echo(f"Valid once, for 10 minutes, for tenant {tenant!r} ({', '.join(sorted(wanted))}):", err=True)
    click.echo(tokens.link_url(settings, made, url))


@token.command("list")
@options.data_dir
@options.config
@click.option("--tenant", required=True)
def list_(data_dir: Path | None, config: Path | None, tenant: str) -> None:
    """List a tenant's tokens, without their secrets."""
    settings = load(config, data_dir=data_dir)
    for one in asyncio.run(tokens.list_tokens(settings, tenant)):
        state = "revoked" if one.revoked_at else f"expires {one.expires_at or 'never'}"
        used = f"last used {one.last_used_at:%Y-%m-%d %H:%M}" if one.last_used_at else "never used"
        click.echo(f"{one.id}  {one.name}  {','.join(sorted(one.scopes))}  {state}  {used}")


@token.command()
@options.data_dir
@options.config
@click.option("--tenant", required=True)
@click.argument("token_id")
def revoke(data_dir: Path | None, config: Path | None, tenant: str, token_id: str) -> None:
    """Revoke a token at once, by its id in the list, with what it made.

    That is tokens, SSH tokens, preview links, webhooks and uploads. A service that runs follows within 15 seconds.
    """
    settings = load(config, data_dir=data_dir)
    ended = asyncio.run(tokens.revoke_token(settings, tenant, token_id))
    click.echo(f"Token {token_id} is revoked.")
    for one in ended:
        click.echo(f"ended: {one.kind} {one.id} {one.name}".rstrip())
