"""Repositories of restic that open at once: the keys that restic makes take half a second of CPU at each opening.

The format is restic's (https://restic.readthedocs.io, "Design"): AES-256 in counter mode and Poly1305-AES seal the
repository's configuration with its master key, and that with keys that scrypt derives from the password.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from base64 import b64encode
from contextlib import closing
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR, ECB
from cryptography.hazmat.primitives.poly1305 import Poly1305
from tests.patience import patience

from builderd.backups.model import key_associated_data
from builderd.credentials.vault import KeyFile, SodiumVault
from builderd.engine.oci.storage.disks import APP_OWNER

#: Folders of a repository, but for those of packs.
FOLDERS = ("data", "index", "keys", "locks", "snapshots")
#: An irreducible polynomial, by which restic cuts files into pieces.
POLYNOMIAL = "364affca8d9db9"


def make_for_service(data_dir: Path, repositories: Path) -> None:
    """Make the repository of a live service's tenant, once the service has made the password."""
    deadline = time.monotonic() + patience(60)
    with closing(sqlite3.connect(data_dir / "builderd.db")) as connection:
        while not (found := connection.execute("SELECT tenant_id, sealed FROM backup_keys").fetchall()):
            assert time.monotonic() < deadline, "no key was made"
            time.sleep(0.1)
    ((tenant, sealed),) = found
    password = SodiumVault(KeyFile(data_dir / "vault.key")).open(sealed, key_associated_data(tenant))
    make_repository(repositories / tenant, password.hex())


def make_repository(folder: Path, password: str) -> None:
    """Make a repository with a weak key, for restic in a sandbox."""
    for name in FOLDERS:
        (folder / name).mkdir(parents=True)
    for first_byte in range(256):
        (folder / f"data/{first_byte:02x}").mkdir()
    master, salt = os.urandom(64), os.urandom(64)
    config = {"version": 2, "id": os.urandom(32).hex(), "chunker_polynomial": POLYNOMIAL}
    (folder / "config").write_bytes(_sealed(config, master))

    encrypt, k, r = (b64encode(part).decode() for part in (master[:32], master[32:48], master[48:]))
    derived = hashlib.scrypt(password.encode(), salt=salt, n=2, r=1, p=1, dklen=64)
    data = b64encode(_sealed({"mac": {"k": k, "r": r}, "encrypt": encrypt}, derived)).decode()
    described = {"created": "2026-01-01T00:00:00Z", "username": "test", "hostname": "test"}
    key = {**described, "kdf": "scrypt", "N": 2, "r": 1, "p": 1, "salt": b64encode(salt).decode(), "data": data}
    text = json.dumps(key).encode()
    (folder / "keys" / hashlib.sha256(text).hexdigest()).write_bytes(text)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, APP_OWNER, APP_OWNER)


def _sealed(value: object, key: bytes) -> bytes:
    """Seal JSON with the key of AES-256 and those of Poly1305-AES, ``k`` and ``r``, one after the other."""
    iv = os.urandom(16)
    text = Cipher(AES(key[:32]), CTR(iv)).encryptor().update(json.dumps(value).encode())
    one_time = key[48:] + Cipher(AES(key[32:48]), ECB()).encryptor().update(iv)
    return iv + text + Poly1305.generate_tag(one_time, text)
