"""The real vault, with a key that ends with the process."""

from __future__ import annotations

from builderd.credentials.vault import ConfiguredKeys, Key, SodiumVault


def in_memory() -> SodiumVault:
    return SodiumVault(ConfiguredKeys((Key.new(),)))
