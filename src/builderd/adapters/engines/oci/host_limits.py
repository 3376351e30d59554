"""What the kernel lets root of the host have, of which each sandbox takes a part: there must be enough for all of them.

The kernel counts what a user namespace takes for the user who made it as well. By default, root has 128 instances of
inotify: one sandbox can take them all, and under control groups of version 2 each shim needs one.
"""

from __future__ import annotations

import logging
from pathlib import Path

from builderd.adapters.engines.oci.launcher import INOTIFY
from builderd.adapters.engines.oci.slots import MAX_SLOTS

#: Beside what sandboxes may take: for their shims and for the host's own.
_OWN = {"max_inotify_instances": 2 * MAX_SLOTS, "max_inotify_watches": 1 << 20}
#: inotify(7): the same numbers as those of the initial user namespace, which take a capability more to write.
_FILES = {"max_inotify_instances": "max_user_instances", "max_inotify_watches": "max_user_watches"}
_FOLDER = Path("/proc/sys/fs/inotify")

log = logging.getLogger(__name__)


def raise_host_limits(folder: Path = _FOLDER) -> None:
    """Idempotent; what is higher already stays. Where the host forbids it, its sandboxes share what there is."""
    for name, each in INOTIFY.items():
        wanted, file = MAX_SLOTS * each + _OWN[name], folder / _FILES[name]
        try:
            if int(file.read_text()) < wanted:
                file.write_text(str(wanted))
        except OSError as error:
            log.warning("sandboxes can take all of %s from each other and from the host: %s", file, error)
