"""``builderd token``, ``vault``, ``acme`` and ``clock``: API tokens, keys, own certificates, times of a wrong clock."""

from __future__ import annotations

import asyncio
from datetime import datetime
from functools import partial

import click

from builderd.bootstrap import tokens
from builderd.bootstrap.domains import look_again, rotate_account
from builderd.bootstrap.keys import rotate_vault
from builderd.bootstrap.machine import repair_clock
from builderd.cli import options
from builderd.cli.group import Expiry
from builderd.settings import Settings
from builderd.tokens.model import Scope


@click.group()
def vault() -> None:
    """Manage the key of stored secrets."""


@vault.command("rotate")
@options.with_settings
def rotate_key(settings: Settings) -> None:
    """Generate a new key and seal all stored secrets with it.

    When the key is a setting (vault.key), first set the new key there and move the old one to
    vault.previous_keys: the command then seals everything with the new key.
    """
    count = asyncio.run(rotate_vault(settings, click.echo))
    click.echo(f"{count} secrets are sealed with the new key. Keep a copy of it apart from your backups.")


@click.group()
def acme() -> None:
    """Manage the service's own certificates and its account at the certificate authority."""


@acme.command("rotate")
@options.with_settings
def rotate_account_key(settings: Settings) -> None:
    """Forget the account's key: the next order registers a new account with a new key.

    Certificates that were issued stay valid and are renewed by the new account, also while the service runs.
    An authority with external account binding may want new values of acme.eab_key_id and acme.eab_hmac_key.
    """
    if asyncio.run(rotate_account(settings)):
        click.echo(f"The account at {settings.acme.directory} is forgotten; the next order registers a new one.")
    else:
        click.echo(f"There is no account at {settings.acme.directory}: the first order registers one.")


@acme.command()
@options.with_settings
def check(settings: Settings) -> None:
    """Check the certificates of public_url and of the previews now, after records or the firewall were changed.

    The running service does it within 30 seconds: what is missing or could not be renewed is ordered. A time before
    which the authority wants no order is kept. The result is in builderd doctor, GET /readyz and the log.
    """
    for line in asyncio.run(look_again(settings)):
        click.echo(line)


@click.group()
def clock() -> None:
    """Mend what a wrong clock of this machine left."""


@clock.command()
@options.with_settings
@click.option("--yes", is_flag=True, help="Do not ask whether the machine's clock is right.")
def repair(settings: Settings, yes: bool) -> None:
    """Set times in the future to now, after the machine's clock was ahead. Stop the service first; apps go on.

    What is due later becomes due now, ends move with the beginning of their row, and what would be billed after now
    is not billed.
    """

    def confirm(now: datetime, later: int) -> None:
        click.echo(f"The machine's clock says {now:%Y-%m-%d %H:%M:%S} UTC. Times after it: {later}.")
        if not yes:
            click.confirm("Is the clock right, and shall they be set to it?", abort=True)

    changed = asyncio.run(repair_clock(settings, confirm))
    for column, count in sorted(changed.items()):
        click.echo(f"{count:>8}  {column}")
    click.echo("Start the service again.")


@click.group()
def token() -> None:
    """Create, list and revoke API tokens."""


scopes_option = click.option(
    "--scope",
    "scopes",
    type=click.Choice([scope.value for scope in Scope]),
    multiple=True,
    default=[Scope.WRITE.value],
    show_default=True,
    help="May be given more than once.",
)


@token.command()
@options.with_settings
@click.option("--tenant", required=True, help="The token's tenant; created if it does not exist.")
@click.option("--name", default="cli", show_default=True, help="The token's name in events.")
@scopes_option
@click.option("--expires", type=Expiry(), help="30d, 12h, or a time.  [default: never]")
def create(settings: Settings, tenant: str, name: str, scopes: tuple[str, ...], expires: datetime | None) -> None:
    """Create a token. Its secret is on the last line of the output, and is not shown again.

    Creates the data directory and the database where they are missing.
    """
    wanted = frozenset(Scope(scope) for scope in scopes)
    say = partial(click.echo, err=True)
    made, secret = asyncio.run(tokens.make_token(settings, say, tenant, name, wanted, expires))
    until = f"until {made.expires_at:%Y-%m-%d %H:%M} UTC" if made.expires_at else "until it is revoked"
    click.echo(f"Token {name!r} of tenant {tenant!r} ({', '.join(sorted(made.scopes))}), good {until}:", err=True)
    click.echo(secret)


@token.command()
@options.with_settings
@click.option("--tenant", required=True, help="Whom the link signs in; created if it does not exist.")
@scopes_option
@click.option("--url", help="Where browsers reach the service.  [default: public_url, or the address it listens on]")
def link(settings: Settings, tenant: str, scopes: tuple[str, ...], url: str | None) -> None:
    """Print a link that signs a browser in to the web pages, once, within 10 minutes.

    It is on the last line of the output. Its sessions end when the token named "sign-in link" is revoked.
    """
    wanted = frozenset(Scope(scope) for scope in scopes)
    made = asyncio.run(tokens.make_link(settings, tenant, wanted, partial(click.echo, err=True)))
    click.echo(f"Valid once, for 10 minutes, for tenant {tenant!r} ({', '.join(sorted(wanted))}):", err=True)
    click.echo(tokens.link_url(settings, made, url))


@token.command("list")
@options.with_settings
@click.option("--tenant", required=True)
def list_(settings: Settings, tenant: str) -> None:
    """List a tenant's tokens, without their secrets."""
    for one in asyncio.run(tokens.list_tokens(settings, tenant)):
        state = "revoked" if one.revoked_at else f"expires {one.expires_at or 'never'}"
        used = f"last used {one.last_used_at:%Y-%m-%d %H:%M}" if one.last_used_at else "never used"
        click.echo(f"{one.id}  {one.name}  {','.join(sorted(one.scopes))}  {state}  {used}")


@token.command()
@options.with_settings
@click.option("--tenant", required=True)
@click.argument("token_id")
def revoke(settings: Settings, tenant: str, token_id: str) -> None:
    """Revoke a token at once, by its id in the list, with what it made.

    That is tokens, SSH tokens, preview links, webhooks and uploads. A service that runs follows within 15 seconds.
    """
    ended = asyncio.run(tokens.revoke_token(settings, tenant, token_id))
    click.echo(f"Token {token_id} is revoked.")
    for one in ended:
        click.echo(f"ended: {one.kind} {one.id} {one.name}".rstrip())
