"""The vault's key file: mode 600, created once, read again when it changed; and sealing with a passphrase."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from builderd.core.errors import EngineUnavailable, ValidationFailed
from builderd.credentials import vault as sodium
from builderd.credentials.vault import ConfiguredKeys, Key, KeyFile, SodiumVault


def test_the_key_file_is_created_with_mode_600(tmp_path: Path) -> None:
    KeyFile(tmp_path / "vault.key").load()

    assert (tmp_path / "vault.key").stat().st_mode & 0o777 == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["vault.key"]


def test_a_key_file_readable_by_others_is_refused(tmp_path: Path) -> None:
    KeyFile(tmp_path / "vault.key").load()
    (tmp_path / "vault.key").chmod(0o640)

    with pytest.raises(ValidationFailed, match="chmod 600"):
        KeyFile(tmp_path / "vault.key").load()


def test_existing_creates_no_key(tmp_path: Path) -> None:
    assert KeyFile(tmp_path / "vault.key").existing() == ()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "\n", "c2hvcnQ=\n", "not base64!\n"])
def test_a_file_without_a_key_is_refused_and_kept(tmp_path: Path, text: str) -> None:
    file = tmp_path / "vault.key"
    file.write_text(text)
    file.chmod(0o600)

    with pytest.raises(ValidationFailed):
        KeyFile(file).load()
    assert file.read_text() == text


def test_key_that_cannot_be_read_is_a_fault_of_the_service_until_it_is_put_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Callers are not told where the operator's file is; the log has it."""
    file = tmp_path / "vault.key"
    running = SodiumVault(KeyFile(file))
    sealed = running.seal(b"secret", "a")
    whole = file.read_bytes()
    file.write_bytes(b"")
    for work in (
        lambda: running.seal(b"more", "a"),
        lambda: running.open(sealed, "a"),
        lambda: running.is_current(sealed),
    ):
        caplog.clear()
        with pytest.raises(EngineUnavailable, match="The vault's key cannot be read") as refused:
            work()
        assert refused.value.retry_after
        assert str(file) not in refused.value.message
        assert str(file) in caplog.text
        assert "put back the one from your backup" in caplog.text
    file.write_bytes(whole)
    assert running.open(sealed, "a") == b"secret"


def test_concurrent_first_loads_use_one_key(tmp_path: Path) -> None:
    files = [KeyFile(tmp_path / "vault.key") for _ in range(16)]
    with ThreadPoolExecutor(16) as pool:
        loaded = list(pool.map(lambda file: file.load()[0], files))

    assert len(set(loaded)) == 1


def test_a_running_service_follows_a_key_rotation(tmp_path: Path) -> None:
    running = SodiumVault(KeyFile(tmp_path / "vault.key"))
    sealed = running.seal(b"secret", "a")
    file = KeyFile(tmp_path / "vault.key")

    file.save([Key.new(), *file.load()])

    assert not running.is_current(sealed)
    assert running.open(sealed, "a") == b"secret"
    assert running.is_current(running.seal(b"secret", "a"))


def test_the_error_names_a_missing_key(tmp_path: Path) -> None:
    key = Key.new()
    sealed = SodiumVault(ConfiguredKeys((key,))).seal(b"secret", "a")

    with pytest.raises(EngineUnavailable, match=key.id.hex()):
        SodiumVault(ConfiguredKeys((Key.new(),))).open(sealed, "a")


def test_the_repr_hides_the_key() -> None:
    key = Key.new()

    assert key.text not in repr(key)
    assert Key.from_text(key.text) == key


PASSPHRASE = "correct horse battery"


def test_each_guess_costs_256_mib_and_three_passes() -> None:
    assert (sodium._MEMORY, sodium._OPERATIONS) == (256 * 2**20, 3)


def test_the_same_passphrase_unseals_and_another_does_not() -> None:
    sealed = sodium.seal(b"key", PASSPHRASE, "backup")
    assert b"key" not in sealed
    assert sodium.unseal(sealed, PASSPHRASE, "backup") == b"key"
    with pytest.raises(ValidationFailed, match="passphrase"):
        sodium.unseal(sealed, PASSPHRASE + ".", "backup")
