"""``builderd setup``, ``backup``, ``restore``, ``down``, ``doctor`` and ``base``."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import click

from builderd.bootstrap import machine, state
from builderd.cli import options
from builderd.core.resources import GB
from builderd.engine.inventory import BuilderStorage, Inventory
from builderd.settings import Settings


@click.command()
@options.as_root
def down(settings: Settings) -> None:
    """Stop all sandboxes and previews and remove what they use on the host. Data is kept."""
    # Imported here: `setup` needs none of the server's packages, which take minutes on an emulated machine.
    from builderd.bootstrap import run as service  # noqa: PLC0415

    asyncio.run(service.take_down(settings, click.echo))


@click.command()
@options.with_settings
def doctor(settings: Settings) -> None:
    """Run preflight checks, and show storage by tenant. Exits with 1 when the service cannot run on this machine."""
    checks = machine.run_preflight_checks(settings)
    for check in checks:
        mark = "ok  " if check.found else ("MISS" if check.vital else "lack")
        click.echo(f"{mark}  {check.name:<24} {check.detail}")
        if not check.found:
            click.echo(f"      {'':<24} {check.cost}")
    packages = [check.cost for check in checks if not check.found and "apt-get install" in check.cost]
    if packages:
        browser = " --with-browser" if any("chromium" in cost for cost in packages) else ""
        click.echo(f"\nTo install all packages named above: builderd setup{browser}")
    try:
        lines = asyncio.run(machine.describe_database(settings))
    except Exception as error:
        lines = [f"database: cannot be read: {error}"]
    for line in lines:
        click.echo(f"\n{line}")
    try:
        inventory, code = asyncio.run(machine.load_inventory(settings)), asyncio.run(machine.describe_space(settings))
    except Exception as error:  # printed too, so that the checks above are seen
        inventory, code = None, [f"storage: cannot be read: {error}"]
    for line in ("", *(usage_lines(inventory) if inventory is not None else ()), *code):
        click.echo(line)
    if any(check.vital and not check.found for check in checks):
        raise SystemExit(1)


@click.group()
def base() -> None:
    """The base root file system that all sandboxes of this machine share."""


@base.command()
@options.as_root
def build(settings: Settings) -> None:
    """Build it now, if it is missing, rather than at the first start of the service."""
    click.echo(machine.build_base(settings, click.echo))


SHOWN_KEY = 12


def usage_lines(inventory: Inventory) -> Iterator[str]:
    """Yield the report's lines: tenants with their builders, bundles, layers, bases, other disks and totals."""
    for tenant, users in groupby(inventory.users, key=lambda user: user.tenant):
        yield from _tenant(tenant, list(users), inventory)
    if not inventory.users:
        yield "No builders."
    unused = [size for name, size in inventory.bundles.items() if name not in inventory.used_bundles]
    size = sum(inventory.bundles.values())
    yield f"bundles: {len(inventory.bundles)}, {_gb(size)}; of no use any more: {len(unused)}, {_gb(sum(unused))}"
    if (stored := inventory.stored) is None:
        yield "The store is not mounted or not readable: start the service and run this as root to see sizes."
        return
    yield f"layers: {len(stored.layers)}, {_gb(sum(layer.bytes for layer in stored.layers))}"
    for layer in sorted(stored.layers, key=lambda one: -one.bytes):
        names = {f"{user.tenant}/{user.name}" for user in inventory.users if layer.key in user.layers}
        seen = ", a sandbox runs on it" if layer.seen else ""
        asked = f"asked for {layer.asked_at:%Y-%m-%d %H:%M}"
        yield f"  {layer.key[:SHOWN_KEY]}  {_gb(layer.bytes):>9}  {', '.join(sorted(names)) or 'unused'}{seen}, {asked}"
    for base in stored.bases:
        use = ", ".join(word for word, is_so in (("ours", base.own), ("sandboxes run on it", base.seen)) if is_so)
        asked = f"asked for {base.asked_at:%Y-%m-%d %H:%M}"
        yield f"base {base.name}: {_gb(base.bytes)}, {use or 'unused'}, {asked}"
    claimed = {disk for user in inventory.users for disk in user.disks}
    for disk in (one for one in stored.disks if one.id not in claimed):
        yield f"disk {disk.id}: {_gb(disk.bytes)}, of no builder: a copy for a backup, a restore, a report, or a rest"
    scratch = f"scratch of {stored.scratch} sandboxes: {_gb(stored.scratch_bytes)}"
    yield f"download cache: {_gb(stored.cache_bytes)}; {scratch}"


def _tenant(tenant: str, users: list[BuilderStorage], inventory: Inventory) -> Iterator[str]:
    disks = {disk.id: disk for disk in (inventory.stored.disks if inventory.stored else ())}
    own = [disks[disk] for user in users for disk in user.disks if disk in disks]
    sizes = f", disks {_gb(sum(disk.bytes for disk in own))} of {_gb(sum(disk.limit_bytes for disk in own))}"
    yield f"tenant {tenant}: {len(users)} builders{sizes if own else ''}"
    for user in users:
        own_disks = [disks[disk] for disk in user.disks if disk in disks]
        size = "+".join(f"{_gb(disk.bytes)} of {_gb(disk.limit_bytes)}" for disk in own_disks) or "-"
        layer = user.layer[:SHOWN_KEY] if user.layer else "none"
        versions = f"v{user.version} ({user.versions} kept)"
        yield f"  {user.name:<24} {user.status:<9} {versions:<12} disk {size:<22} layer {layer:<12} {user.id}"


def _gb(size: int) -> str:
    return f"{size / GB:.2f} GB"


#: Names the Debian packages. ``script/setup`` of a checkout runs it, too.
PACKAGES = Path(__file__).parents[1] / "debian_packages.sh"


@click.command()
@click.option("--with-browser", is_flag=True, help="Install Chromium too, with which QA looks at pages.")
@options.as_root
def setup(with_browser: bool, settings: Settings) -> None:
    """Install Debian packages and the base root file system, which the service needs on this machine.

    Run it as often as you like, and after each upgrade: what is there is left as it is. Services that
    the packages bring are not started.
    """
    # bash by name: an installed wheel keeps no executable bits.
    done = subprocess.run(["bash", str(PACKAGES), *(["--with-browser"] if with_browser else [])], check=False)
    if done.returncode != 0:
        raise click.ClickException(
            "the Debian packages are not all installed: mend what is said above, and run it again"
        )
    click.echo(f"base root file system: {machine.build_base(settings, click.echo)}")
    click.echo("This machine is set up. Start the service: builderd install-service --now")


passphrase_file = click.option(
    "--passphrase-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file with the passphrase that seals the keys; asked for if not given.",
)
without_keys = click.option("--without-keys", is_flag=True, help="Leave the keys out: you store them elsewhere.")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@options.with_settings
@passphrase_file
@without_keys
def backup(folder: Path, settings: Settings, passphrase_file: Path | None, without_keys: bool) -> None:
    """Back up the service's own state to FOLDER: the database, the files of versions, and the keys, sealed.

    Works while the service runs. The apps' disks are not in it: store their backups on another machine
    (backup.repository).
    """
    passphrase = None if without_keys else _passphrase(passphrase_file, new=True)
    manifest = state.back_up(settings, folder, passphrase, click.echo)
    size = sum(count for _, count in manifest.files.values())
    click.echo(f"{folder} has the state of {manifest.created_at}: {len(manifest.files)} files, {size:,} bytes.")
    if passphrase is None:
        click.echo("The keys are not in it: without the vault's key, its stored secrets cannot be read.")
    if state.is_local(settings):
        click.echo("The apps' backups are on this machine only: see backup.repository in docs/settings.md.")


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@options.with_settings
@passphrase_file
@without_keys
def restore(folder: Path, settings: Settings, passphrase_file: Path | None, without_keys: bool) -> None:
    """Restore the state in FOLDER into a data directory without a database.

    Never run the original service and the restored one at the same time.
    """
    passphrase = None if without_keys else _passphrase(passphrase_file, new=False)
    manifest = state.restore(settings, folder, passphrase, click.echo)
    click.echo(f"Restored the state of {manifest.created_at}. Start the service with `builderd serve`.")
    click.echo("Apps whose disks are missing get their newest backup when they start.")


def _passphrase(file: Path | None, *, new: bool) -> str:
    if file is not None:
        return file.read_text().strip()
    text: str = click.prompt("Passphrase", hide_input=True, confirmation_prompt=new)
    return text
