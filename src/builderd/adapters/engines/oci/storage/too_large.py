"""Layers that are too large, and a store that is full: errors with the size, the limit and what would help."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from builderd.adapters.engines.oci.storage.store import Store
from builderd.domain.errors import BuilderdError, EngineUnavailable, InstallFailed, NoCapacity
from builderd.domain.resources import GB

#: Words by which programs name EDQUOT: the message of libc, and the code as Node.js and others have it.
_QUOTA_WORDS = ("disk quota exceeded", "edquot")


def over_tenant_limit(left: int, whole: int | None, *, is_app: bool, size: int | None = None) -> InstallFailed:
    """Return the error of a layer that its tenant has no room for. ``size`` is None if it was stopped at the limit."""
    subject = ("This build makes", "Have it make less") if is_app else ("These dependencies take", "Leave out packages")
    takes = f"more than {_gb(left)}" if size is None else _gb(size)
    of_all = "" if whole is None else f" of {_gb(whole)}"
    return InstallFailed(
        f"{subject[0]} {takes}, and {_gb(left)} is left of your limit for layers{of_all}. {subject[1]}, or delete "
        "builders that you no longer need (their layers go with them); the operator sets the limit (tenant.layers)."
    )


def over_layer_limit(most: int, *, is_app: bool) -> InstallFailed:
    """Return the error of a layer that is larger than any layer may be here."""
    subject, cure = (
        ("This build makes", "have it make less, or write what is large at run time onto the disk")
        if is_app
        else (
            "These dependencies take",
            "leave out what the app does not need (of torch, the wheels for the CPU alone)",
        )
    )
    return InstallFailed(
        f"{subject} more than {_gb(most)}, the most that a layer may have here (a quarter of the store, at most 10 "
        f"GB): {cure}."
    )


def little_room(size: int, most: int, *, is_app: bool) -> NoCapacity:
    """Return the error of a layer that the store has no room for now, though it is no larger than layers may be."""
    subject = "this build, which makes" if is_app else "these dependencies, which take"
    return NoCapacity(
        f"The machine's store has only {_gb(size)} for {subject} more (a layer may have {_gb(most)}). {_CURE}",
        retry_after=60,
    )


_CURE = (
    "Delete a builder that is not needed: stopping one frees nothing. Or its operator frees space (builderd doctor) or "
    "enlarges the store (store.size). Then try again."
)


def store_full(store: Store) -> BuilderdError:
    """Return the error of a write that the store of all disks and layers has no room for, or takes no more."""
    reason = store.failure_reason()
    if reason is None:
        return NoCapacity(f"The machine's store for apps and layers is full. {_CURE}", retry_after=60)
    return NoCapacity(reason, retry_after=60) if store.is_full() else EngineUnavailable(reason, retry_after=60)


@contextmanager
def full_store_named(store: Store) -> Iterator[None]:
    """Raise ``NoCapacity`` where the store itself had no room for a write of the service.

    Errors of other file systems pass: a full one beside the store is a machine fault.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) and _is_in(store, error):
            raise store_full(store) from error
        raise


def _is_in(store: Store, error: OSError) -> bool:
    """Return True if the write was to the store; a write to an open file names no path."""
    if isinstance(error.filename, str | bytes):
        path = error.filename if isinstance(error.filename, str) else error.filename.decode(errors="replace")
        return path.startswith(f"{store.root}/")
    return error.errno == errno.EDQUOT or store.is_full()


def names_quota(lines: Iterable[str]) -> bool:
    """Return True if a program's output says that a quota ended it: it may have removed what it had written since."""
    return any(word in line.lower() for line in lines for word in _QUOTA_WORDS)


def _gb(size: int) -> str:
    return f"{size / GB:.2f} GB"
