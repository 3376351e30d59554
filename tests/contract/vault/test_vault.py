"""What every vault keeps."""

import pytest

from builderd.domain.errors import EngineUnavailable
from builderd.ports.vault import Vault

SECRET = b"hunter2-\x00\xff"


def test_what_was_sealed_opens_again(vault: Vault) -> None:
    sealed = vault.seal(SECRET, "credential/t/a")

    assert vault.open(sealed, "credential/t/a") == SECRET
    assert vault.is_current(sealed)


def test_the_secret_is_not_in_what_is_stored_and_no_two_are_alike(vault: Vault) -> None:
    first, second = vault.seal(SECRET, "a"), vault.seal(SECRET, "a")

    assert SECRET not in first
    assert first != second


def test_a_row_that_was_moved_to_another_place_does_not_open(vault: Vault) -> None:
    sealed = vault.seal(SECRET, "credential/victim/a")

    with pytest.raises(EngineUnavailable, match="credential/thief/a"):
        vault.open(sealed, "credential/thief/a")


def test_every_changed_byte_is_found(vault: Vault) -> None:
    sealed = vault.seal(SECRET, "a")

    for index in range(len(sealed)):
        changed = sealed[:index] + bytes([sealed[index] ^ 1]) + sealed[index + 1 :]
        with pytest.raises(EngineUnavailable):
            vault.open(changed, "a")


@pytest.mark.parametrize("length", [0, 1, 9, 40])
def test_what_was_cut_off_is_told_as_damaged(vault: Vault, length: int) -> None:
    with pytest.raises(EngineUnavailable, match="damaged"):
        vault.open(vault.seal(SECRET, "a")[:length], "a")
