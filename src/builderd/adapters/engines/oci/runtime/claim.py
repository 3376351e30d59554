"""Claim of a prepared sandbox from inside its namespaces: run by a child of the launcher. Standard library only.

Nothing of a tenant has run in the sandbox yet, so its files and folders are as the engine made them.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any

from builderd.adapters.engines.oci.runtime.namespaces import refuse_own
from builderd.linux.syscalls import (
    CLONE_NEWNS,
    CLONE_NEWUTS,
    MS_NODEV,
    MS_NOSUID,
    MS_REMOUNT,
    act_on_files_as,
    attach_tree,
    mount,
    open_tree,
    setns,
)


def claim(request: dict[str, Any], maps: Mapping[int, int]) -> None:
    """Give a sandbox what ``claims.make_claim`` names. This process stays in its namespaces: it must end afterwards.

    ``maps`` holds user namespaces by the owners on disk that they show as the sandbox's root.
    """
    uts, inside = (os.open(f"/proc/{request['pid']}/ns/{name}", os.O_RDONLY) for name in ("uts", "mnt"))
    refuse_own(uts, "uts")
    binds = [(open_tree(one["source"], one["attributes"], maps.get(one["owner"])), one) for one in request["binds"]]
    files = [(read(file["source"]), file) for file in request["files"]]
    setns(uts, CLONE_NEWUTS)
    socket.sethostname(request["hostname"])
    setns(inside, CLONE_NEWNS)
    for target, size in request["tmpfs"].items():
        mount("tmpfs", target, "tmpfs", MS_REMOUNT | MS_NOSUID | MS_NODEV, f"size={size}")
    act_on_files_as(request["uid"])
    for folder in request["folders"]:
        os.makedirs(folder, 0o755, exist_ok=True)  # noqa: PTH103
    for content, file in files:
        act_on_files_as(file["owner"])
        put(file["target"], content, file["mode"])
    act_on_files_as(0)
    for tree, one in binds:
        attach_tree(tree, one["target"])


def read(path: str) -> bytes:
    with open(path, "rb") as file:  # noqa: PTH123
        return file.read()


def put(path: str, content: bytes, mode: int) -> None:
    """Write a file, made with this mode if it is new; through no link."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, mode), "wb") as file:
        file.write(content)
