"""Engine port: runs sandboxes, keeps their disks and makes layers, on one machine or a cluster.

Six protocols: ``Sandboxes``, ``Disks``, ``Layers``, ``Logs``, ``Tools``, ``Members``; an ``Engine`` is all of them.
Code that needs one takes that one. Nothing here presumes that a disk, a layer or a log is a path on this host.
All methods raise ``EngineUnavailable`` when the engine does not answer, and ``NoCapacity`` when it is full.
"""

from __future__ import annotations

from builderd.ports.engine.disks import DiskReport, Disks
from builderd.ports.engine.engine import Collected, Engine, Readiness
from builderd.ports.engine.layers import Layers
from builderd.ports.engine.logs import Logs
from builderd.ports.engine.members import Members
from builderd.ports.engine.progress import Progress
from builderd.ports.engine.provider import (
    ClusterProvider,
    ConfigurableProvider,
    EngineOptions,
    EngineProvider,
    PauseRequests,
    StoreOptions,
    pause_nothing,
)
from builderd.ports.engine.sandboxes import Sandboxes
from builderd.ports.engine.tools import TOOL_FOLDERS, Tool, ToolExit, Tools

__all__ = [
    "TOOL_FOLDERS",
    "ClusterProvider",
    "Collected",
    "ConfigurableProvider",
    "DiskReport",
    "Disks",
    "Engine",
    "EngineOptions",
    "EngineProvider",
    "Layers",
    "Logs",
    "Members",
    "PauseRequests",
    "Progress",
    "Readiness",
    "Sandboxes",
    "StoreOptions",
    "Tool",
    "ToolExit",
    "Tools",
    "pause_nothing",
]
