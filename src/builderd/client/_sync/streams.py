"""Generated from ``_async`` by ``script/generate_client.py``: change that."""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from builderd.client._sync.transport import Transport
from builderd.client.errors import NoAnswer, TimedOut, Unavailable
from builderd.client.events import Event
from builderd.client.logs import RowDecoder
from builderd.client.waiting import sleep

T = TypeVar("T")

#: Seconds for which a broken stream is opened again, and between two attempts.
RECONNECT_SECONDS = 60.0
RECONNECT_INTERVAL = 1.0
#: Read timeout of long answers: a busy machine needs a minute to look 100,000 lines up.
ROWS_SECONDS = 300.0


class Stream(Generic[T]):
    """Entries that come as they happen. Iterate over it to its end, or in a ``with`` block, which closes it."""

    def __init__(self, entries: Iterator[T]) -> None:
        self._entries = entries

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[T]:
        return self._entries

    def close(self) -> None:
        """Close the connection."""
        generator: Any = self._entries
        generator.close()


def follow(
    transport: Transport,
    path: str,
    params: Mapping[str, Any],
    read: Callable[[Event], T],
    *,
    last_id: str = "",
    keep_start: bool = False,
) -> Iterator[T]:
    """Yield the entries of an event stream, each once, until the service ends it.

    A broken connection is opened again after the last entry. ``keep_start``: where there was no entry yet, after the
    time at which the stream began. Raises ``NoAnswer`` when that fails for a minute, and ``TimedOut`` after the
    client's ``timeout``.
    """
    query = {**params, "follow": True}
    opened, broken_at, deadline = False, 0.0, transport.deadline()
    while True:
        try:
            headers = {"Last-Event-ID": last_id} if last_id else {}
            with transport.events("GET", path, headers=headers, params=query, deadline=deadline) as events:
                opened, broken_at = True, 0.0
                if keep_start and not last_id and query.get("since") is None and events.date:
                    query["since"] = parsedate_to_datetime(events.date)
                for event in events:
                    if event is not None:
                        last_id = event.id or last_id
                        yield read(event)
        except TimedOut:
            raise
        except (NoAnswer, Unavailable) as error:
            now = time.monotonic()
            if opened and deadline is not None and now + RECONNECT_INTERVAL >= deadline:
                raise TimedOut("the time is over, and the stream was broken") from error
            broken_at = broken_at or now
            if not opened or now - broken_at > RECONNECT_SECONDS:
                raise
            sleep(RECONNECT_INTERVAL)
        else:
            return


def rows(transport: Transport, path: str, params: Mapping[str, Any], read: Callable[[Any], T]) -> Iterator[T]:
    """Yield the rows of a long answer as they arrive; few of them are held in memory."""
    decoder, text = RowDecoder(), codecs.getincrementaldecoder("utf-8")()
    with transport.stream("GET", path, params=params, read_seconds=ROWS_SECONDS) as response:
        for piece in response.iter_bytes():
            for row in decoder.feed(text.decode(piece)):
                yield read(row)
