"""Collections of a service do not grow with the builders that came and went."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterable, Sized

from tests.service import MINIMAL, Service

WARM_UP, BUILDERS = 2, 5
#: Modules of values, which fakes keep.
VALUES = (
    ".model",
    ".port",
    ".errors",
    ".ids",
    ".next_step",
    ".failures",
    ".hints",
    ".diffs",
    ".entrypoints",
    ".sources",
    ".inventory",
)


async def test_nothing_is_kept_of_builders_that_are_gone(service: Service) -> None:
    client = service.client(service.write)

    async def call(method: str, path: str, **options: object) -> str:
        response = await client.request(method, f"/api/v1/builders{path}", **options)  # type: ignore[arg-type]
        assert response.is_success, response.text
        return response.text if method == "GET" else str((response.json().get("data") or {}).get("uuid"))

    async def come_and_go(builders: int) -> None:
        for number in range(builders):
            path = "/" + await call("POST", "", json={**MINIMAL, "name": f"app-{number}"})
            await call("POST", f"{path}/exec", json={"command": "true"})
            for below in ("", "/logs", "/metrics", "/events"):
                await call("GET", f"{path}{below}")
            await call("PATCH", path, json={"env": {"GREETING": "changed"}})
            await call("POST", f"{path}/preview-links", json={})
            await call("POST", f"{path}/ssh", json={})
            await call("POST", f"{path}/restart")
            await call("DELETE", path)

    await come_and_go(WARM_UP)
    before = _entries()
    await come_and_go(BUILDERS)
    more = _entries() - before
    assert not {where: entries for where, entries in more.items() if entries >= BUILDERS}


def _entries() -> Counter[str]:
    """Return the entries of the largest collection that objects of the service have, by class and attribute."""
    gc.collect()
    found: Counter[str] = Counter()
    for one in gc.get_objects():
        if (module := type(one).__module__).startswith("builderd.") and not module.endswith(VALUES):
            for name in _attributes(one):
                held = getattr(one, name, None)
                if isinstance(held, Sized) and not isinstance(held, str | bytes | type):
                    where = f"{type(one).__qualname__}.{name}"
                    found[where] = max(found[where], _size(held))
    return found


def _attributes(one: object) -> Iterable[str]:
    slots = (name for cls in type(one).__mro__ for name in getattr(cls, "__slots__", ()))
    return {*getattr(one, "__dict__", ()), *slots}


def _size(held: Sized) -> int:
    try:
        return len(held)
    except (TypeError, ValueError):
        return 0
