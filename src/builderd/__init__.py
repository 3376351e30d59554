"""builderd: one call turns code into a running, isolated app with a live URL.

The SDK's names are imported when they are first used: ``import builderd`` alone costs a millisecond.
"""

from __future__ import annotations

__version__ = "0.1.0"

TYPE_CHECKING = False
if TYPE_CHECKING:  # for type checkers and editors; `typing` itself would cost more than the rest
    from builderd.client._async.builder import AsyncBuilder as AsyncBuilder
    from builderd.client._async.client import AsyncBuilderd as AsyncBuilderd
    from builderd.client._sync.builder import Builder as Builder
    from builderd.client._sync.client import Builderd as Builderd
    from builderd.client.errors import ApiError as ApiError
    from builderd.client.errors import BuilderdError as BuilderdError
    from builderd.client.errors import BuildFailed as BuildFailed
    from builderd.client.errors import Conflict as Conflict
    from builderd.client.errors import DeploymentFailed as DeploymentFailed
    from builderd.client.errors import Forbidden as Forbidden
    from builderd.client.errors import InstallFailed as InstallFailed
    from builderd.client.errors import InvalidState as InvalidState
    from builderd.client.errors import NameTaken as NameTaken
    from builderd.client.errors import NoAnswer as NoAnswer
    from builderd.client.errors import NoCapacity as NoCapacity
    from builderd.client.errors import NotFound as NotFound
    from builderd.client.errors import QaFailed as QaFailed
    from builderd.client.errors import QuotaExceeded as QuotaExceeded
    from builderd.client.errors import RateLimited as RateLimited
    from builderd.client.errors import ReleaseFailed as ReleaseFailed
    from builderd.client.errors import ReviewFailed as ReviewFailed
    from builderd.client.errors import StartFailed as StartFailed
    from builderd.client.errors import TimedOut as TimedOut
    from builderd.client.errors import Unauthenticated as Unauthenticated
    from builderd.client.errors import Unavailable as Unavailable
    from builderd.client.errors import ValidationFailed as ValidationFailed
    from builderd.client.models import Stage as Stage
    from builderd.client.retries import Retry as Retry

_ERRORS = (
    "ApiError BuilderdError BuildFailed Conflict DeploymentFailed Forbidden InstallFailed InvalidState NameTaken "
    "NoAnswer NoCapacity NotFound QaFailed QuotaExceeded RateLimited ReleaseFailed ReviewFailed StartFailed TimedOut "
    "Unauthenticated Unavailable ValidationFailed"
)
_WHERE = {
    "AsyncBuilder": "_async.builder",
    "AsyncBuilderd": "_async.client",
    "Builder": "_sync.builder",
    "Builderd": "_sync.client",
    "Retry": "retries",
    "Stage": "models",
    **dict.fromkeys(_ERRORS.split(), "errors"),
}
__all__ = ["__version__", *sorted(_WHERE)]  # noqa: PLE0604 (all are text)


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 (only the first use of a name needs it)

    value = globals()[name] = getattr(import_module(f"builderd.client.{_WHERE[name]}"), name)
    return value
