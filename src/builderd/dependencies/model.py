"""Layers: installed dependencies, stored under the hash of the requirements.

A plan says how to make a layer, independent of the engine: an engine runs its steps in a build sandbox in which
``INPUT`` has the plan's files (read-only), ``LAYER`` is the layer being made and ``CACHE`` the
installer's download cache. At run time the layer lies under the app's root file system, so that
``LAYER/venv`` is seen as ``/venv`` and ``LAYER/node_modules`` as ``/node_modules``, where Node looks for what
``/app`` does not have.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from builderd.code.model import Bundle
from builderd.core.ids import TenantId
from builderd.core.resources import Resources

#: Resources of one build sandbox; the disk is that of the layer. Builds and QA reports are charged for them.
BUILD_RESOURCES = Resources(cpu=2, memory=2, disk=0)
INPUT = "/build/input"
LAYER = "/build/store/layer"
CACHE = "/build/store/cache"
#: Folder of a version's files, and of its packages within it, in the sandbox that builds them.
APP = "/app"
NODE_MODULES = "node_modules"
MAX_PACKAGES = 100
#: A name of a Debian package (Debian policy, 5.6.1). With a hyphen at its end, apt would remove the package.
PACKAGE_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]{0,98}[a-z0-9+]")


def package_error(name: str) -> str | None:
    """Return the reason to reject the name of a Debian package, or None."""
    error = f"{name[:100]!r} is no name of a Debian package, such as ffmpeg: without a version, an option or an address"
    return None if PACKAGE_NAME.fullmatch(name) else error


def app_folder(root: str) -> str:
    """Return the folder in which the commands of an app with this root run."""
    return f"{APP}/{root}" if root else APP


class Cache(StrEnum):
    #: The step does not see the cache.
    NONE = "none"
    #: The step writes the cache that all tenants share: it must run no code of a package or a user.
    SHARED = "shared"
    #: The step has an empty cache of its own, thrown away after the build: its code learns nothing of other builds.
    SCRATCH = "scratch"


@dataclass(frozen=True, slots=True)
class BuildStep:
    """One command of a plan. ``title`` is shown in the build log; no file may contain its ``secrets`` (variables)."""

    title: str
    argv: tuple[str, ...]
    network: bool
    cache: Cache
    env: Mapping[str, str] = field(default_factory=dict)
    timeout_seconds: int = 900
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class AppBuild:
    """Files of a version that are built in place, and the key of the layer with its dependencies (None: it has none).

    The step runs in the folder ``root`` of ``APP``, on a copy of the files, with a copy of the layer's
    ``NODE_MODULES`` in there. What it leaves in ``APP`` that the bundle does not have, or has otherwise, is the content
    of the new layer.
    """

    bundle: Bundle
    dependencies: str | None
    root: str = ""

    @property
    def folder(self) -> str:
        """Return the folder in which the step runs."""
        return app_folder(self.root)


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """Plan of one layer: inputs, build steps, and the key that it is stored under.

    ``key`` (64 hex characters) covers everything that decides the content, and the tenant where
    ``runs_foreign_code``. Such a plan runs a package's or a user's code and starts after the review.
    One that ``may_run_code`` waits too: it runs no such code itself, but a dependency may.
    ``tenant`` is recorded as the one that built it; it may have at most ``limit_bytes``, what is left of the tenant's
    ``quota_bytes`` for all layers. ``app`` is set where the layer is not of dependencies, but of the files that a
    version's build command makes. ``below`` is the plan of a layer that is made first, and that this one contains.
    With ``changes_root``, what its only step changes on the root file system is the layer: the step has the rights over
    files that Debian's packages need.
    """

    key: str
    inputs: Mapping[str, bytes]
    steps: tuple[BuildStep, ...]
    runs_foreign_code: bool
    may_run_code: bool = False
    tenant: TenantId | None = None
    limit_bytes: int | None = None
    quota_bytes: int | None = None
    app: AppBuild | None = None
    below: LayerPlan | None = None
    changes_root: bool = False

    @property
    def needs_review_first(self) -> bool:
        """True if it must not start before the review has passed."""
        return self.runs_foreign_code or self.may_run_code or self.below is not None


@dataclass(frozen=True, slots=True)
class BuildOutcome:
    """Result of a build. ``exit_code`` is of the failed step, 0 on success; ``output`` has its last lines."""

    exit_code: int
    output: tuple[str, ...]
    seconds: float
    reused: bool = False
    out_of_memory: bool = False
    timed_out: bool = False

    @property
    def ok(self) -> bool:
        return self.exit_code == 0


@dataclass(frozen=True, slots=True)
class MadeLayer:
    """A layer of dependencies or of built files. ``reused`` when nothing had to be made."""

    key: str
    seconds: float
    reused: bool


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """A finished layer: its bytes, and the tenant that built it; None for one of an earlier release."""

    bytes: int
    tenant: TenantId | None = None


@dataclass(frozen=True, slots=True)
class StoredLayers:
    """All finished layers by key, and the size of the store that they share, in bytes."""

    layers: Mapping[str, StoredLayer]
    total_bytes: int

    def counted(self, tenant: TenantId, own: Collection[str], used: Collection[str]) -> Mapping[str, int]:
        """Return key → bytes of the layers that count for the tenant.

        A layer counts for every tenant whose builders may run it (``own``). One that nobody may run (``used``: what
        builders of any tenant may) counts for the tenant that built it.
        """
        return {
            key: layer.bytes
            for key, layer in self.layers.items()
            if key in own or (layer.tenant == tenant and key not in used)
        }
