"""Keys: their file is the owner's alone, is made once, and is read again when it changed."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from builderd.adapters.vaults.keys import GivenKeys, Key, KeyFile
from builderd.adapters.vaults.sodium import SodiumVault
from builderd.domain.errors import EngineUnavailable, ValidationFailed


def test_the_file_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    KeyFile(tmp_path / "vault.key").load()

    assert (tmp_path / "vault.key").stat().st_mode & 0o777 == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["vault.key"]


def test_a_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    KeyFile(tmp_path / "vault.key").load()
    (tmp_path / "vault.key").chmod(0o640)

    with pytest.raises(ValidationFailed, match="chmod 600"):
        KeyFile(tmp_path / "vault.key").load()


def test_to_look_for_keys_makes_none(tmp_path: Path) -> None:
    assert KeyFile(tmp_path / "vault.key").present() == ()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "\n", "c2hvcnQ=\n", "not base64!\n"])
def test_a_file_without_a_key_is_refused_and_left_alone(tmp_path: Path, text: str) -> None:
    file = tmp_path / "vault.key"
    file.write_text(text)
    file.chmod(0o600)

    with pytest.raises(ValidationFailed):
        KeyFile(file).load()
    assert file.read_text() == text


def test_all_that_begin_at_once_use_one_key(tmp_path: Path) -> None:
    files = [KeyFile(tmp_path / "vault.key") for _ in range(16)]
    with ThreadPoolExecutor(16) as pool:
        loaded = list(pool.map(lambda file: file.load()[0], files))

    assert len(set(loaded)) == 1


def test_a_service_that_runs_takes_up_a_rotation(tmp_path: Path) -> None:
    running = SodiumVault(KeyFile(tmp_path / "vault.key"))
    sealed = running.seal(b"secret", "a")
    file = KeyFile(tmp_path / "vault.key")

    file.save([Key.new(), *file.load()])

    assert not running.is_current(sealed)
    assert running.open(sealed, "a") == b"secret"
    assert running.is_current(running.seal(b"secret", "a"))


def test_a_lost_key_is_named(tmp_path: Path) -> None:
    key = Key.new()
    sealed = SodiumVault(GivenKeys((key,))).seal(b"secret", "a")

    with pytest.raises(EngineUnavailable, match=key.id.hex()):
        SodiumVault(GivenKeys((Key.new(),))).open(sealed, "a")


def test_a_key_is_not_shown() -> None:
    key = Key.new()

    assert key.text not in repr(key)
    assert Key.from_text(key.text) == key
