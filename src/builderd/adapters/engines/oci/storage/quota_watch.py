"""Watch over the limits of a build's subvolumes while it runs.

A program that a limit stops often removes what it had written before it ends, and any program can print the words of
such an error. So the quota itself is asked, ten times a second.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from builderd.adapters.engines.oci.storage.quotas import Quota
from builderd.adapters.engines.oci.storage.too_large import FULL

INTERVAL = 0.1

log = logging.getLogger(__name__)


class QuotaWatch:
    """Context manager, which watches in a thread of its own. The subvolumes must exist, with their limits.

    Beside them it watches the limit above all limits, which acts while the store has too little room.
    """

    def __init__(self, quota: Quota, subvolumes: Iterable[Path]) -> None:
        self._quota = quota
        self._groups: dict[Path | None, int] = {subvolume: quota.group(subvolume) for subvolume in subvolumes}
        self._groups[None] = quota.total
        self._reached: set[Path | None] = set()
        self._ended = threading.Event()
        #: The last error, so that one that stays is logged once.
        self._failure = ""
        self._thread = threading.Thread(target=self._run, name="quota-watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def reached(self, *subvolumes: Path | None) -> bool:
        """Return True if one of these is at its limit, or was while it was watched; None is the limit above all."""
        self._look()
        return not self._reached.isdisjoint(subvolumes)

    def _run(self) -> None:
        while not self._ended.wait(INTERVAL):
            try:
                self._look()
                self._failure = ""
            except OSError as error:
                if str(error) != self._failure:
                    log.warning("quota not read, retrying seconds=%s error=%s", INTERVAL, error)
                self._failure = str(error)

    def _look(self) -> None:
        for subvolume, group in self._groups.items():
            if is_at_limit(self._quota, group):
                self._reached.add(subvolume)


def is_at_limit(quota: Quota, group: int) -> bool:
    """Return True if so little is left of a group's limit that writes fail. Without a limit: False."""
    limit = quota.limit_of(group)
    return limit > 0 and limit - quota.used(group) - quota.reserved(group) < min(FULL, limit // 4)
