"""Calls that deploy a folder, with a key that is kept beside it until they are answered."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

import click

from builderd.cli.apps.project import KnownCode, Pending, State, fingerprint
from builderd.cli.apps.session import Session
from builderd.client.errors import ApiError, BuilderdError, NotFound, Unavailable
from builderd.client.folders import Folder
from builderd.client.retries import ended_by_machine, new_key

if TYPE_CHECKING:
    from builderd.client._sync.builder import Builder


class Sending:
    """A folder's code on its way to the service; the same command resumes it."""

    def __init__(self, session: Session, folder: Folder, state: State) -> None:
        self._session = session
        self._folder = folder
        self._state = state

    def resumed(self, mark: str, what: str) -> Pending | None:
        """Return the unanswered call of the same code and settings, and say that it is resumed."""
        pending = self._state.pending(mark)
        if pending is not None:
            upload = not self._folder.fits_json and pending.upload_id is None and pending.stored is None
            self._session.say(
                "Resuming the upload that was interrupted."
                if upload
                else f"Resuming the {what} whose answer did not arrive."
            )
        return pending

    def send_code(self, pending: Pending) -> None:
        """Upload code that is too large for JSON, and write the call down before it is sent."""
        if not self._folder.fits_json and pending.upload_id is None:
            self._upload(pending)
        self._state.keep(pending)

    def changes(self, pending: Pending) -> dict[str, Any] | None:
        """Return what has changed since the code that the builder has, as the client takes it.

        None where all is sent: small code, code of which the service knows nothing, and large changes.
        """
        if self._folder.fits_json or pending.builder is None or pending.upload_url is not None:
            return None
        known = self._state.known_code(self._session.service()[0], pending.builder)
        if known is None or pending.stored not in (None, known.bundle):
            return None
        changed = self._folder.changed_since(known.files)
        if not changed.fits_json:
            return None
        if pending.stored is None:
            count = len(changed.files)
            self._session.say(f"  {count} changed: {size(changed.size)}. The service has the rest.")
        pending.stored = known.bundle
        removed = sorted(known.files.keys() - self._folder.digests.keys())
        stored = {"bundle": known.bundle, "remove": removed, "result": self._folder.bundle}
        return {"stored": stored, "files": changed.contents() or None}

    def know(self, builder: str | None) -> None:
        """Write down that the builder has this code. Small code is always sent as a whole."""
        if builder is not None and not self._folder.fits_json:
            service = self._session.service()[0]
            self._state.keep_known(KnownCode(service, builder, self._folder.bundle, self._folder.digests))

    def code(self, pending: Pending) -> dict[str, Any]:
        """Return the code as the client takes it."""
        return {"upload_id": pending.upload_id} if pending.upload_id else {"path": self._folder}

    def answered(self, pending: Pending) -> None:
        """Drop what resumes the call, its upload too: a tenant has only a few at a time."""
        self._state.forget()
        if pending.upload_id is not None:
            with suppress(BuilderdError):
                self._session.client.uploads.delete(pending.upload_id)

    def _upload(self, pending: Pending) -> None:
        """Upload the code. Its URL is kept first: after a kill, the same command goes on with the upload."""

        def begun(upload_url: str) -> None:
            pending.upload_url = upload_url
            self._state.keep(pending)

        pending.upload_id = self._session.client.uploads.send_folder(
            self._folder, self._progress, upload_url=pending.upload_url, on_begin=begun
        )

    def _progress(self, sent: int, total: int) -> None:
        if sys.stderr.isatty() and not self._session.as_json:
            click.echo(
                f"\r  upload   {size(sent)} of {size(total)}" + ("\n" if sent == total else ""), nl=False, err=True
            )


class Job(Sending):
    """A job of a folder. Used in a ``with`` block, which drops what resumes it where it ends without an exception.

    Of several at the same time in one folder only the first can be resumed: the others are jobs of their own.
    """

    def __init__(
        self, session: Session, folder: Folder, state: State, options: Mapping[str, Any], name: str | None
    ) -> None:
        super().__init__(session, folder, state)
        self._options = options
        self._name = name
        self._lock: IO[bytes] | None = None
        self._pending: Pending | None = None

    def __enter__(self) -> Self:
        self._lock = self._state.claim()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pending is not None and kind is None:
            self.answered(self._pending)
        if self._lock is not None:
            self._lock.close()

    def begin(self, made_up: str) -> Builder:
        """Return the job, which has begun now or by the same command before. ``made_up`` is the name of a new one."""
        create = self._session.client.builders.create
        if self._lock is None:
            return create(self._name or made_up, self._folder, **self._options)
        url, _, _ = self._session.service()
        mark = fingerprint(url, self._name, self._options, self._folder.bundle)
        pending = self.resumed(mark, "job")
        for attempt in (pending, None) if pending else (None,):
            self._pending = attempt or Pending(new_key(), mark, name=self._name or made_up)
            self.send_code(self._pending)
            try:
                name = self._pending.name or made_up
                key = self._pending.key
                builder = create(name, **self.code(self._pending), idempotency_key=key, **self._options)
                return self._session.client.builders.get(builder.uuid) if attempt else builder
            except ApiError as error:
                # With the same key, an outcome would be the answer again.
                if isinstance(error, Unavailable) and not ended_by_machine(error):
                    raise
                self.answered(self._pending)
                # It was deleted meanwhile: the same command begins another one.
                if attempt is None or not isinstance(error, NotFound):
                    raise
        raise AssertionError("unreachable")


def size(count: float) -> str:
    """Return a number of bytes for people."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
