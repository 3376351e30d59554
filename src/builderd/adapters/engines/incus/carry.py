"""Folders of this machine that a tool on another member works with: sent as a tar archive, and brought back."""

from __future__ import annotations

import asyncio
import io
import os
import tarfile
import tempfile
from pathlib import Path

from builderd.adapters.engines.incus.client import IncusClient
from builderd.adapters.engines.incus.exec_session import ExecSession, run_to_end
from builderd.domain.errors import EngineUnavailable

#: Limit of a folder that is brought back.
MAX_BYTES = 1 << 30


async def send(client: IncusClient, instance: str, path: str, folder: Path, owner: int) -> None:
    """Make a folder in the instance, with the content of this one. Its files are ``owner``'s."""
    content = await asyncio.to_thread(packed_folder, folder, path, owner)
    code, output = await run_to_end(client, instance, ("tar", "-xpf", "-", "-C", "/"), content)
    if code:
        raise EngineUnavailable(f"The tool's files could not be sent: {output.decode(errors='replace')}")


async def make(client: IncusClient, instance: str, path: str, owner: int) -> None:
    """Make an empty folder in the instance."""
    code, output = await run_to_end(client, instance, ("install", "-d", "-o", str(owner), "-g", str(owner), path))
    if code:
        raise EngineUnavailable(f"The tool's folder could not be made: {output.decode(errors='replace')}")


async def bring_back(client: IncusClient, instance: str, path: str, folder: Path) -> None:
    """Write what is in the instance's folder into this one."""
    session = await ExecSession.open(client, instance, ("tar", "-cf", "-", "-C", path, "."))
    try:
        await session.close_input()
        with tempfile.TemporaryFile() as archive:
            size = 0
            while piece := await session.read():
                size += len(piece)
                if size > MAX_BYTES:
                    raise EngineUnavailable(f"The tool left more than {MAX_BYTES} bytes in {path}.")
                await asyncio.to_thread(archive.write, piece)
            if await session.wait():
                raise EngineUnavailable(f"The tool's files in {path} could not be brought back.")
            archive.seek(0)
            await asyncio.to_thread(unpack, archive, folder)
    finally:
        await session.close()


def packed_folder(folder: Path, path: str, owner: int) -> bytes:
    """Return a tar archive of a folder, by the paths that its files get."""
    content = io.BytesIO()

    def owned(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        entry.uid = entry.gid = owner
        return entry if entry.isreg() or entry.isdir() else None

    with tarfile.open(fileobj=content, mode="w") as tar:
        tar.add(folder, path.lstrip("/"), filter=owned)
    return content.getvalue()


def unpack(archive: io.IOBase, folder: Path) -> None:
    """Write the regular files of an archive below the folder; they become its owner's. Links are left out."""
    owner = folder.stat()
    with tarfile.open(fileobj=archive, mode="r|") as tar:
        for entry in tar:
            if not entry.isreg() and not entry.isdir():
                continue
            # Takes leading slashes off, and refuses paths that lead out of the folder.
            inside = tarfile.data_filter(entry, str(folder))
            tar.extract(inside, folder, filter="data")
            os.chown(folder / inside.name, owner.st_uid, owner.st_gid, follow_symlinks=False)
