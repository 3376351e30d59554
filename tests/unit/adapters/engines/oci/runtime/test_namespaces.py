"""A pid that became a host process's: the launcher does nothing to the host's namespaces."""

from __future__ import annotations

import os

import pytest

from builderd.adapters.engines.oci.runtime import attach as attach_module
from builderd.adapters.engines.oci.runtime.attach import Link, attach


def forbid(*_: object) -> int:
    raise AssertionError("done to the host")


def test_a_link_is_made_in_no_network_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("limit", "connect"):
        monkeypatch.setattr(attach_module, name, forbid)
    with pytest.raises(OSError, match="a process of the host"):
        attach(os.getpid(), Link("link", "lo", "02", "10.0.0.2", "10.0.0.1", 1500))
