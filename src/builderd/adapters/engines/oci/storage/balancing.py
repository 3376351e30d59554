"""Balancing of the store in use: keep device space out of half-empty chunks, and metadata in one copy.

A chunk goes back to the device only once it is empty. An app that fills its disk with metadata and deletes all but a
few files leaves chunks behind that no data may be written to, though others were promised that space. So whenever what
is promised might not fit, files are moved together by ``btrfs balance``.
"""

from __future__ import annotations

import logging
import re
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

from builderd.adapters.engines.oci.storage.space_info import SpaceInfo, read_space_info
from builderd.domain.resources import GB

log = logging.getLogger(__name__)

INTERVAL = 2.0
#: Chunks are emptied that are less full than this, in percent: the emptiest first.
USAGES = (0, 30, 60, 90)
#: Metadata chunks may hold so much free space, the smaller of both: ``df`` does not count it, and nor do new promises.
SPARE_SHARE, SPARE = 0.1, 2 * GB
#: Chunks of each kind that are emptied in one step.
CHUNKS = 2
#: After a step that frees less than ``WORTH``, the next one waits until chunks hold ``MORE`` free space.
WORTH, MORE = 16 << 20, 64 << 20
#: A conversion that failed, as it does in a store that is full, is tried again after so many rounds.
CONVERT_PAUSE = 30

_MOVED = re.compile(r"had to relocate (\d+)")


class Balancing:
    """Balancer of one store. ``promised``: bytes that may be written soon. ``converts``: the file system is our own.

    ``enlarge`` is called when a conversion lacks space; it returns True when it added some.
    """

    def __init__(self, root: Path, promised: Callable[[], int], *, converts: bool, enlarge: Callable[[], bool]) -> None:
        self._root = root
        self._promised = promised
        self._converts = converts
        self._enlarge = enlarge
        self._convert_pause = 0
        #: Free bytes in chunks that balancing could not release.
        self._stuck = 0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="balancing", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop between two chunks. Idempotent."""
        self._closed.set()
        if self._thread.is_alive():
            cancel_balance(self._root)
            self._thread.join()

    def _run(self) -> None:
        pause = INTERVAL
        while not self._closed.wait(pause):
            pause = INTERVAL
            try:
                # Until the space is there, apps get "disk quota exceeded" for what they were promised.
                if self.step():
                    pause = 0
            except Exception as error:
                log.warning("balancing failed, retrying error=%s", error)

    def step(self) -> bool:
        """Check the store once, and convert or gather chunks where needed. Return True when gathering freed space."""
        self._convert_pause = max(0, self._convert_pause - 1)
        info = read_space_info(self._root)
        if self._converts and needs_conversion(info):
            if not self._convert_pause:
                self._convert(info)
        elif free_in_chunks(info) > self._stuck and (kinds := nearly_full(info, self._promised())):
            return self._gather(info, kinds)
        return False

    def _convert(self, info: SpaceInfo) -> None:
        log.info("store: converting metadata to one copy root=%s bytes=%d", self._root, info.metadata.used)
        done = _balance(self._root, "-f", "-mconvert=single,soft", "-sconvert=single,soft")
        if done.returncode == 0:
            log.info("store: metadata has one copy root=%s", self._root)
            return
        self._convert_pause = 0 if self._enlarge() else CONVERT_PAUSE
        if not self._closed.is_set():
            log.warning("store: metadata not converted yet root=%s error=%s", self._root, done.stderr.strip())

    def _gather(self, info: SpaceInfo, kinds: list[str]) -> bool:
        """Empty some chunks; return True when that freed space."""
        for usage in USAGES:
            filters = [f"-{kind}usage={usage},limit={CHUNKS}" for kind in kinds]
            done = _balance(self._root, *filters)
            if self._closed.is_set():
                return False
            moved = _MOVED.search(done.stdout)
            if moved and int(moved.group(1)):
                break
        after = read_space_info(self._root)
        gained = after.unallocated - info.unallocated
        log.debug("store: chunks gathered root=%s usage=%d gained=%d", self._root, usage, gained)
        self._stuck = free_in_chunks(after) + MORE if gained < WORTH else 0
        return gained >= WORTH


def needs_conversion(info: SpaceInfo) -> bool:
    return info.metadata.copies > 1


def free_in_chunks(info: SpaceInfo) -> int:
    return info.data.free + info.metadata.free


def nearly_full(info: SpaceInfo, promised: int) -> list[str]:
    """Return the kinds of chunks ("d" data, "m" metadata) that hold free space the other kind may need. Pure."""
    unallocated = info.unallocated / info.metadata_ratio
    spare = min(SPARE, int(info.size * SPARE_SHARE))
    needs = {
        "d": info.data.free > WORTH and unallocated + info.metadata.free < promised,
        "m": info.metadata.free > spare or (info.metadata.free > WORTH and unallocated + info.data.free < promised),
    }
    return [kind for kind, needed in needs.items() if needed]


def cancel_balance(root: Path) -> None:
    """Cancel a running balance, also of an earlier service. Waits for the present chunk. Idempotent."""
    subprocess.run(["btrfs", "balance", "cancel", root], capture_output=True, check=False)


def _balance(root: Path, *filters: str) -> subprocess.CompletedProcess[str]:
    argv = ["btrfs", "balance", "start", *filters, str(root)]
    return subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
