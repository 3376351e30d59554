"""Deploy the zoo on a service of its own and print its table: ``python -m tests.acceptance.zoo [OPTIONS] [NAME …]``.

Needs root, as every real sandbox does. ``--load N`` deploys each app twice, its layers as they are: first on the
machine as it is, then beside N endless loops of its own, and prints a table of each. ``--only-loaded`` leaves out the
first half: each app is deployed cold and cached beside the loops. Without both each app is deployed cold, cached, and
with a new version.
``BUILDERD_ZOO_ROWS`` names a file to which each row is appended, ``BUILDERD_SCREENSHOTS`` a folder for pictures.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from pathlib import Path

from tests.acceptance.live_service import LiveService, live_service
from tests.acceptance.zoo.animals import ANIMALS
from tests.acceptance.zoo.app import ZooApp
from tests.acceptance.zoo.keeper import Row, busy, cold_and_cached, measure, warm
from tests.acceptance.zoo.table import markdown


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    options = _options()
    chosen = [app for app in ANIMALS if not options.names or app.name in options.names]
    with (
        tempfile.TemporaryDirectory(prefix="bd.") as folder,
        live_service(Path(folder, "d")) as service,
    ):
        plain: list[Row] = []
        if not options.only_loaded:
            way = warm if options.load else measure
            plain = [_row(service, app, way, busy_loops=0) for app in chosen]
            _print("As it is" if options.load else "", plain)
        loaded: list[Row] = []
        if options.load:
            way = cold_and_cached if options.only_loaded else warm
            with busy(options.load):
                loaded = [_row(service, app, way, busy_loops=options.load) for app in chosen]
            _print(f"Beside {options.load} loops", loaded)
    return 0 if all(row.verdict == "up" for row in (*plain, *loaded)) else 1


def _print(title: str, rows: Collection[Row]) -> None:
    sys.stdout.write(f"{title}\n\n{markdown(rows)}\n" if title else markdown(rows))
    sys.stdout.flush()


def _row(service: LiveService, app: ZooApp, way: Callable[[LiveService, ZooApp], Row], *, busy_loops: int) -> Row:
    begun = time.monotonic()
    try:
        row = way(service, app)
    except Exception as error:
        row = Row(app.name, app.kind, verdict=f"{type(error).__name__}: {error}".replace("\n", " ")[:2000])
    seconds = time.monotonic() - begun
    sys.stderr.write(f"{row} in {seconds:.0f} s, {busy_loops} loops\n")
    return row


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.acceptance.zoo")
    parser.add_argument("names", nargs="*", metavar="NAME", help="apps; all without one")
    parser.add_argument("--load", type=int, default=0, metavar="N", help="also beside N endless loops")
    parser.add_argument("--only-loaded", action="store_true", help="beside these loops alone; needs --load")
    options = parser.parse_args()
    if options.only_loaded and not options.load:
        parser.error("--only-loaded needs --load N")
    return options


if __name__ == "__main__":
    sys.exit(main())
