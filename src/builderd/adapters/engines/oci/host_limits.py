"""What the kernel keeps for all sandboxes together, and one of them must not take all of: there has to be enough.

What a user namespace takes of inotify is counted for the user who made it as well, and by default root has 128
instances (under control groups of version 2 each shim needs one of them). All network namespaces share one table of
neighbours.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from builderd.adapters.engines.oci.launcher import INOTIFY
from builderd.adapters.engines.oci.slots import MAX_SLOTS

#: Least values by the file below ``/proc/sys``. Of inotify there is some for shims and for the host beside what
#: sandboxes may take. A sandbox costs two neighbours, its own and the bridge's; the limit that cannot be exceeded comes
#: first.
LEAST = {
    "fs/inotify/max_user_instances": MAX_SLOTS * (INOTIFY["max_inotify_instances"] + 2),
    "fs/inotify/max_user_watches": MAX_SLOTS * INOTIFY["max_inotify_watches"] + (1 << 20),
    "net/ipv4/neigh/default/gc_thresh3": 8192,
    "net/ipv4/neigh/default/gc_thresh2": 4096,
}

log = logging.getLogger(__name__)


def raise_host_limits(root: Path = Path("/proc/sys"), least: Mapping[str, int] = LEAST) -> None:
    """Idempotent; what is higher already stays. Where the host forbids it, its sandboxes share what there is."""
    for name, wanted in least.items():
        file = root / name
        try:
            if int(file.read_text()) < wanted:
                file.write_text(str(wanted))
        except OSError as error:
            log.warning("sandboxes may run short of %s, and keep it from each other: %s", name, error)
