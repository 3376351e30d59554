"""The registry of engines: the name in the setting ``engine``, and the kind of engine that it selects."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping

from builderd.core.errors import ValidationFailed
from builderd.core.resources import GB
from builderd.engine.port import ConfigurableProvider, Engine, EngineOptions, EngineProvider, StoreOptions
from builderd.linux.clock import SystemClock
from builderd.settings import Settings

#: The class of each kind of engine, imported when it is selected. A further engine is a folder in ``engine``
#: and a line here.
ENGINES: Mapping[str, str] = {
    "incus": "builderd.engine.incus.provider.IncusProvider",
    "oci": "builderd.engine.oci.provider.OciProvider",
}


def check_name(engine: str) -> None:
    """Raise ``ValidationFailed`` for an unknown name."""
    if engine not in ENGINES:
        known = ", ".join(sorted(ENGINES))
        raise ValidationFailed({"engine": [f"there is no engine {engine!r}: set it to one of: {known}"]})


def engine_provider(settings: Settings) -> EngineProvider:
    """Return the selected kind of engine. Raises ``ValidationFailed`` for an unknown name."""
    check_name(settings.engine)
    found: EngineProvider = pkgutil.resolve_name(ENGINES[settings.engine])()
    section = getattr(settings, settings.engine, None)
    return found.configured(dict(section)) if isinstance(found, ConfigurableProvider) and section else found


def make_engine(
    settings: Settings,
    clock: SystemClock,
    reserved: Callable[[str], bool] = lambda _: False,
) -> Engine:
    """Return the selected engine, not prepared yet. ``reserved`` is a field of ``EngineOptions``."""
    store, egress = settings.store, settings.egress
    return engine_provider(settings).make(
        EngineOptions(
            data_dir=settings.data_dir.absolute(),
            inside_port=settings.inside_port,
            allow=egress.allow,
            deny=egress.deny,
            log_limit=int(settings.limits.log * 1_000_000),
            now=clock.seconds,
            at=clock.at,
            reserved=reserved,
            package_index=settings.package_index,
            store=StoreOptions(
                device=store.device,
                size_bytes=int(store.size * GB) if store.size else None,
                floor_bytes=int(store.floor * GB),
                overcommit=store.overcommit,
            ),
        )
    )
