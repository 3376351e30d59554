"""Launch of the proxy with a configuration: adopt the one that runs, reload it, or start one."""

from __future__ import annotations

from pathlib import Path

from builderd.adapters.previews.haproxy import pages, pause, process
from builderd.adapters.previews.haproxy.config import Configuration
from builderd.adapters.previews.haproxy.options import ProxyFiles, ProxyOptions
from builderd.adapters.previews.haproxy.runtime_api import ProxyGone
from builderd.domain.errors import EngineUnavailable
from builderd.linux import atomic_files


async def adopt_or_start(options: ProxyOptions, files: ProxyFiles, wanted: Configuration) -> None:
    """Adopt the running proxy, reload it if its configuration changed, or start one."""
    if await process.find(files) is not None:
        try:
            if await process.started_with(files) != wanted.digest:
                await _reload(options, files, wanted)
        except ProxyGone:
            # No worker answers, so the master is about to exit.
            await process.end(files)
        else:
            return
    _write_all(files, wanted)
    await process.start(options, files)


async def _reload(options: ProxyOptions, files: ProxyFiles, wanted: Configuration) -> None:
    """Reload; on failure write the earlier files back, since the guard restarts the proxy from them."""
    pieces = (files.config, files.pause_script, *(files.pages / name for name in pages.documents()))
    before = {piece: piece.read_text() for piece in pieces if piece.exists()}
    _write_all(files, wanted)
    try:
        await process.reload(options, files)
    except EngineUnavailable:
        for piece, text in before.items():
            _write(piece, text, mode=0o600 if piece == files.config else 0o644)
        raise


def _write_all(files: ProxyFiles, wanted: Configuration) -> None:
    files.pages.mkdir(mode=0o700, exist_ok=True)
    for name, text in pages.documents().items():
        _write(files.pages / name, text)
    _write(files.pause_script, pause.script())
    # It has the secret of the cluster's members.
    _write(files.config, wanted.text, mode=0o600)


def _write(path: Path, text: str, *, mode: int = 0o644) -> None:
    atomic_files.replace(path, text.encode(), mode=mode)
