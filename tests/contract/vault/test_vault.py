"""Contract of the vault port."""

import pytest

from builderd.core.errors import EngineUnavailable
from builderd.tokens.port import Vault

SECRET = b"hunter2-\x00\xff"


def test_a_sealed_secret_opens_again(vault: Vault) -> None:
    sealed = vault.seal(SECRET, "credential/t/a")

    assert vault.open(sealed, "credential/t/a") == SECRET
    assert vault.is_current(sealed)


def test_the_sealed_form_hides_the_secret_and_differs_each_time(vault: Vault) -> None:
    first, second = vault.seal(SECRET, "a"), vault.seal(SECRET, "a")

    assert SECRET not in first
    assert first != second


def test_other_associated_data_does_not_open_it(vault: Vault) -> None:
    sealed = vault.seal(SECRET, "credential/victim/a")

    with pytest.raises(EngineUnavailable, match="credential/thief/a"):
        vault.open(sealed, "credential/thief/a")


def test_every_changed_byte_is_detected(vault: Vault) -> None:
    sealed = vault.seal(SECRET, "a")

    for index in range(len(sealed)):
        changed = sealed[:index] + bytes([sealed[index] ^ 1]) + sealed[index + 1 :]
        with pytest.raises(EngineUnavailable):
            vault.open(changed, "a")


@pytest.mark.parametrize("length", [0, 1, 9, 40])
def test_a_truncated_secret_is_reported_as_damaged(vault: Vault, length: int) -> None:
    with pytest.raises(EngineUnavailable, match="damaged"):
        vault.open(vault.seal(SECRET, "a")[:length], "a")
