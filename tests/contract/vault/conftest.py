"""The vaults under the contract tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.fakes.vault import in_memory

from builderd.credentials.vault import KeyFile, SodiumVault
from builderd.tokens.port import Vault


@pytest.fixture(params=["memory", "file"])
def vault(request: pytest.FixtureRequest, tmp_path: Path) -> Vault:
    return in_memory() if request.param == "memory" else SodiumVault(KeyFile(tmp_path / "vault.key"))
