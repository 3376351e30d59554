"""Recipe of the base root file system: a Debian release, its packages, and changes to them. Pure.

The base is what every sandbox sees below its own files: read-only, shared by all data directories of a host.
Its recipe is a value, so that another recipe is another base and an old one is never changed under an app.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

SUITE = "trixie"
SUITES = (SUITE, f"{SUITE}-updates", f"{SUITE}-security")
PACKAGES = (
    "ca-certificates",
    "curl",
    "git",
    "nodejs",
    "npm",
    "openssh-sftp-server",
    "procps",
    "python3",
    "python3-venv",
    "rsync",
    "tini",
)

#: The unprivileged user that apps run as, in every sandbox.
APP_UID = 1000

#: Folders that are mounted over. A read-only root needs its mount points made beforehand.
MOUNT_FOLDERS = ("app", "venv", "build/input", "build/store/layer", "build/store/cache", "build/home")
MOUNT_FILES = ("usr/local/bin/uv", "etc/resolv.conf", "etc/hosts", "etc/hostname")

#: Manuals and translations, which no app reads; licences stay.
LEFT_OUT = (
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
)

#: The new file system is in $1. No program in it keeps more rights than its caller has. Its tmp stays as it is:
#: mmdebstrap keeps its configuration of apt there, without which its last steps would clean the host's own lists.
FINISH = "\n".join(
    (
        f'chroot "$1" useradd --uid {APP_UID} --user-group --home-dir /app --no-create-home --shell /bin/bash app',
        'cd "$1"',
        f"mkdir -p {' '.join(MOUNT_FOLDERS)}",
        f"chown {APP_UID}:{APP_UID} app",
        f"rm -f {' '.join(MOUNT_FILES)}",
        f"touch {' '.join(MOUNT_FILES)}",
        "find . -xdev -type f -perm /6000 -exec chmod a-s {} +",
        "rm -rf var/cache/debconf/*-old var/lib/dpkg/*-old var/log/*.log var/log/apt",
    )
)

DEFAULT_SOURCES = (
    f"deb http://deb.debian.org/debian {SUITE} main",
    f"deb http://deb.debian.org/debian {SUITE}-updates main",
    f"deb http://deb.debian.org/debian-security {SUITE}-security main",
)

#: Format of `apt-get indextargets`, one line a source.
TARGET_FORMAT = "$(CREATED_BY)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(SIGNED_BY)"

#: Settings by which the host reaches its mirror. Its pins, hooks and local sources do not apply to the base.
_PROXY_OPTION = re.compile(
    r"Acquire::(?:https?(?:::\S*)?::(?:Proxy\S*|CaInfo|Verify-Peer|Timeout)|Check-\S+|Retries) .+;"
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Recipe: everything that determines the content, except the mirror's package versions."""

    architecture: str
    suite: str = SUITE
    packages: tuple[str, ...] = PACKAGES
    left_out: tuple[str, ...] = LEFT_OUT
    finish: str = FINISH

    @property
    def hash(self) -> str:
        """16 hex characters that name the base's folder."""
        parts = (self.architecture, self.suite, *self.packages, *self.left_out, self.finish)
        return _short_hash("recipe 1", *parts)


def base_id(recipe: Recipe, versions: Iterable[str]) -> str:
    """Name a base by its recipe and the ``package=version`` lines of its packages; 16 hex characters."""
    return _short_hash("base 1", recipe.hash, *sorted(versions))


def _short_hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def sources(index_targets: str) -> tuple[str, ...]:
    """Return the host's own Debian mirrors of this release as apt's one-line entries, else Debian's.

    ``index_targets`` is what ``apt-get indextargets --format TARGET_FORMAT`` prints. Local folders, foreign
    archives and other releases are left out.
    """
    found = dict.fromkeys(filter(None, map(_source, index_targets.splitlines())))
    has_release = any(f" {SUITE} " in line for line in found)
    return tuple(found) if has_release else DEFAULT_SOURCES


def _source(line: str) -> str | None:
    kind, uri, release, component, keyring = (line.split("|") + [""] * 5)[:5]
    if kind != "Packages" or component != "main" or release not in SUITES:
        return None
    if not re.fullmatch(r"https?://\S*/debian(?:-security)?/?", uri):
        return None
    option = f"[signed-by={keyring}] " if keyring.startswith("/") else ""
    return f"deb {option}{uri} {release} main"


def proxy_options(apt_config: str) -> tuple[str, ...]:
    """Return the proxy, certificate and time-check settings in what ``apt-config dump`` prints."""
    return tuple(line for line in apt_config.splitlines() if _PROXY_OPTION.fullmatch(line))


def build_argv(recipe: Recipe, target: str, apt_sources: Sequence[str], apt_options: Sequence[str]) -> list[str]:
    """Make the base in the folder ``target``. Mounts and processes are in namespaces of its own and end with it."""
    return [
        *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
        *("mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory"),
        f"--architectures={recipe.architecture}",
        f"--include={','.join(recipe.packages)}",
        *(f"--dpkgopt={option}" for option in recipe.left_out),
        *(f"--aptopt={option}" for option in apt_options),
        f"--customize-hook={recipe.finish}",
        recipe.suite,
        target,
        *apt_sources,
    ]
