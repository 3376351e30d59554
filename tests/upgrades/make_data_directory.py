"""Make the data directory of an old builderd, small enough to store: run this file in a checkout of that revision.

    git worktree add /var/tmp/old fda38d1 && cd /var/tmp/old
    PYTHONPATH=src:. python …/tests/upgrades/make_data_directory.py …/tests/upgrades/0012

It needs root, as every service does. Written are the database as SQL, the files that the service keeps beside it, and
``known.json`` with what the test looks for. Left out is what lies on disks: an upgrade must find it where it is. The
secrets in it are those of a service that is gone.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from tests.acceptance.live_service import LiveService, live_service

KEPT = ("identity", "vault.key")
CANARY = "canary-of-an-old-credential"


def main(target: Path) -> None:
    """Fill the folder."""
    folder = Path(tempfile.mkdtemp(prefix="bd.old.", dir="/var/tmp"))
    data_dir = folder / "data"
    try:
        with live_service(data_dir) as service:
            known = _use(service)
            service.terminate()
            _store(data_dir, target)
        (target / "known.json").write_text(json.dumps(known, indent=1) + "\n")
    finally:
        shutil.rmtree(folder)


def _use(service: LiveService) -> dict[str, str]:
    """Make one row of most kinds: builders in each state, versions, a credential, a backup, a token."""
    service.call("PUT", "/credentials/mail", json={"values": {"API_KEY": CANARY}})
    up = service.create("up", env={"GREETING": "from the old version"}, credentials=["mail"], backup_interval_hours=24)
    service.call("PUT", f"/builders/{up['uuid']}", json={"env": {"GREETING": "from an old database"}})
    service.call("POST", f"/builders/{up['uuid']}/backups")
    stopped, deleted = service.create("stopped"), service.create("deleted")
    service.call("POST", f"/builders/{stopped['uuid']}/stop")
    service.call("DELETE", f"/builders/{deleted['uuid']}")
    service.wait_gone(deleted["uuid"])
    service.visit(up)
    return {"token": service.token, "up": up["uuid"], "stopped": stopped["uuid"], "canary": CANARY}


def _store(data_dir: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(data_dir / "builderd.db")) as connection:
        (target / "builderd.sql").write_text("\n".join(connection.iterdump()) + "\n")
    for name in KEPT:
        shutil.copyfile(data_dir / name, target / name)
    shutil.copytree(data_dir / "bundles", target / "bundles", dirs_exist_ok=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
