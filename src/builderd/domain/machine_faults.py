"""Machine faults: exceptions that a full disk, a used-up limit or a dead helper raises, as one error with its cure.

The callers of adapters let such exceptions pass. The HTTP door, the reconciler and the backups ask ``machine_fault``
what they mean, so that no adapter needs a handler of its own.
"""

from __future__ import annotations

import errno
import ssl
from collections.abc import Iterator, Mapping

from builderd.domain.errors import BuilderdError, EngineUnavailable, MachineFault, NoCapacity

#: By errno: what is wrong with the machine, and what its operator can do. See errno(3).
_CURES: Mapping[int, tuple[str, str]] = {
    errno.ENOSPC: ("a disk of the service is full", "free space there (df -h, df -i, builderd doctor)"),
    errno.EDQUOT: ("a disk quota of the service is used up", "raise the quota or free space (builderd doctor)"),
    errno.EIO: ("a disk of the service does not read or write", "look at its health (dmesg, smartctl -a)"),
    errno.EROFS: ("a file system of the service is read-only", "see dmesg for the reason, repair it, mount it anew"),
    errno.EMFILE: ("the service has too many files open", "raise its limit (LimitNOFILE= of its unit, ulimit -n)"),
    errno.ENFILE: ("the machine has too many files open", "raise fs.file-max, or end what holds them"),
    errno.ENOMEM: ("the machine is out of memory", "end something, or give it more memory (free -m)"),
    errno.EAGAIN: ("the machine starts no more processes or threads", "raise TasksMax= of the unit, or kernel.pid_max"),
}
#: Raised by ``threading`` for EAGAIN of pthread_create(3).
_NO_THREAD = "can't start new thread"
#: When the caller may try again, in seconds.
RETRY_AFTER = 30


def machine_fault(error: BaseException) -> MachineFault | None:
    """Return the fault of the machine that caused this exception, None for an error of the program or its input.

    An error with a code is never a machine fault, even if one caused it: a builder's full disk is its owner's affair.
    """
    for cause in _causes(error):
        if isinstance(cause, BuilderdError):
            return cause if isinstance(cause, MachineFault) else None
        number = _errno_of(cause)
        if number in _CURES:
            what, cure = _CURES[number]
            return MachineFault(
                f"The machine is at fault, not the request: {what} ({errno.errorcode[number]}). "
                f"Its operator can fix it: {cure}. Then try again.",
                retry_after=RETRY_AFTER,
            )
    return None


def is_by_machine(error: BaseException) -> bool:
    """Return True for a failure through the machine: a fault, a full machine, an engine that does not answer.

    It says nothing about what was worked on, and no tenant pays for it.
    """
    return isinstance(error, (NoCapacity, EngineUnavailable)) or machine_fault(error) is not None


def helper_died(what: str, how: str) -> MachineFault:
    """Return the error of a helper process that ended before its work was done, through no fault of its input."""
    return MachineFault(
        f"The machine is at fault, not the request: {what} {how}. Try again; if it happens again, see the service log "
        "and dmesg (the kernel kills processes when memory runs out).",
        retry_after=RETRY_AFTER,
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        # Libraries such as httpcore hide what they wrap (``from None``), which is still there.
        cause = cause.__cause__ or cause.__context__


def _errno_of(error: BaseException) -> int:
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    if isinstance(error, RuntimeError) and str(error) == _NO_THREAD:
        return errno.EAGAIN
    if isinstance(error, ssl.SSLError):
        # Its errno is a number of OpenSSL's: EOF in the middle of a record (SSL_ERROR_SYSCALL) would read as EIO.
        return 0
    return (error.errno or 0) if isinstance(error, OSError) else 0
