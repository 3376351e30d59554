"""A scripted Incus: instances and volumes of a cluster in memory, for tests of the parts that change them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from builderd.core.resources import Capacity
from builderd.engine.incus.client import IncusError, IncusNotFound, IncusOptions
from builderd.engine.incus.cluster import Member
from builderd.engine.incus.engine import Machine
from builderd.engine.incus.helper import device_of
from builderd.engine.incus.image import Image
from builderd.engine.incus.instance import OWN
from builderd.engine.port import EngineOptions

_STATES = {"freeze": "Frozen", "unfreeze": "Running", "stop": "Stopped", "start": "Running"}
#: Called with method and path.
OnChange = Callable[[str, str], Awaitable[None]]


class ScriptedIncus:
    """Stands for ``IncusClient``. ``before`` and ``after`` are awaited around each change; each may raise its error.

    No program can be started in its instances.
    """

    project = "builderd"

    def __init__(self) -> None:
        self.changing_project = asyncio.Lock()
        self.project_config: dict[str, str] = {}
        self.instances: dict[str, dict[str, Any]] = {}
        self.volumes: dict[str, dict[str, Any]] = {}
        #: Addresses of instances as the database of the cluster has them, also of members that are away.
        self.addresses: dict[str, str] = {}
        self.changes: list[tuple[str, str]] = []
        self.before: OnChange = _nothing
        self.after: OnChange = _nothing

    def has_instance(
        self, name: str, member: str = "node2", status: str = "Running", volumes: Sequence[str] = (), **own: str
    ) -> None:
        self.instances[name] = {
            "name": name,
            "location": member,
            "status": status,
            "architecture": "x86_64",
            "profiles": [],
            "ephemeral": False,
            "description": "",
            "config": {f"{OWN}{key}": value for key, value in own.items()},
            "devices": {"root": {}} | {device_of(volume): {"source": volume} for volume in volumes},
        }

    def has_volume(self, name: str, member: str = "node2", **own: str) -> None:
        config = {f"{OWN}{key}": value for key, value in own.items()}
        self.volumes[name] = {"name": name, "location": member, "config": config, "used_by": []}

    def attached(self, instance: str) -> set[str]:
        return {one["source"] for name, one in self.instances[instance]["devices"].items() if name.startswith("v-")}

    async def get(self, path: str, **query: str) -> Any:
        await asyncio.sleep(0)
        kind, name = _place(path)
        if not kind:
            return {"environment": {"certificate": "certificate"}}
        if kind == "cluster":
            return {"url": "https://10.0.0.2:8443"}
        if kind == "networks":
            return [{"type": "gateway", "hostname": f"{name}.gw", "address": "10.99.0.1", "location": ""}] + [
                {"type": "static", "hostname": one, "address": address, "location": self.instances[one]["location"]}
                for one, address in self.addresses.items()
                if one in self.instances
            ]
        if kind == "projects":
            return {"description": "", "config": dict(self.project_config)}
        stored = self.instances if kind == "instances" else self.volumes
        if not name and kind == "volumes" and not query.get("recursion"):
            return [f"/1.0{path}/{one['name']}?project=builderd&target={one['location']}" for one in stored.values()]
        if not name:
            return deepcopy(list(stored.values()))
        if name not in stored:
            raise IncusNotFound(404, f"{path} not found")
        return deepcopy(stored[name])

    async def call(self, method: str, path: str, body: Any = None, **query: str) -> Any:
        await self.before(method, path)
        self._change(method, path, body, query.get("target") or "node1")
        self.changes.append((method, path))
        await self.after(method, path)

    async def begin(self, method: str, path: str, body: Any = None, **query: str) -> Any:
        if body and body.get("migration"):
            return {"id": "1", "metadata": {"control": "secret"}}
        raise IncusError(500, f"Nothing is started by {method} {path}")

    def _change(self, method: str, path: str, body: Any, member: str) -> None:
        kind, name = _place(path)
        if kind == "projects":
            self.project_config = body["config"]
            return
        stored = self.instances if kind == "instances" else self.volumes
        if method == "POST" and (not name or "source" in body):
            add = self.has_instance if kind == "instances" else self.has_volume
            add(body["name"], member)
            stored[body["name"]]["config"] = dict(body.get("config") or {})
        elif name not in stored:
            raise IncusNotFound(404, f"{path} not found")
        elif method == "POST":
            stored[body["name"]] = {**stored.pop(name), "name": body["name"]}
        elif method == "DELETE":
            del stored[name]
        elif path.endswith("/state"):
            stored[name]["status"] = _STATES[body["action"]]
        elif method == "PUT":
            stored[name].update(body)
        else:
            for part, values in body.items():
                stored[name][part].update(values)


async def _nothing(method: str, path: str) -> None:
    await asyncio.sleep(0)


def _place(path: str) -> tuple[str, str]:
    words = path.strip("/").split("/")
    if words[0] == "storage-pools":
        return "volumes", words[4] if len(words) > 4 else ""
    return words[0], words[1] if len(words) > 1 else ""


class ScriptedCluster:
    """Cluster of three members; the service runs on node1."""

    clustered, own = True, "node1"

    async def members(self) -> Sequence[Member]:
        return [Member(f"node{number}", f"10.0.0.{number}", online=True) for number in (1, 2, 3)]

    async def ensure_network(self, *_: object) -> None:
        pass

    async def capacities(self, _: float) -> Mapping[str, Capacity]:
        return {"node1": Capacity(0, 0, 0)}

    async def place(self, _: Sequence[str]) -> str:
        return "node2"


def machine_on(incus: ScriptedIncus, **options: Any) -> Machine:
    """Return the parts of a service on this cluster."""
    made = EngineOptions(data_dir=Path("/none"), inside_port=1, log_limit=1, **options)
    image = Image("base", Path("/none"), "base", 0)
    client: Any = incus
    cluster: Any = ScriptedCluster()
    return Machine(made, IncusOptions(), client, cluster, image)
