"""Keys of restic repositories that open at once: restic makes its own so that each opening takes half a second of CPU.

The format is restic's (https://restic.readthedocs.io, "Design"): the master key is sealed by AES-256 in counter mode
and authenticated by Poly1305-AES, with keys that scrypt derives from the password.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from base64 import b64decode, b64encode
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR, ECB
from cryptography.hazmat.primitives.poly1305 import Poly1305

from builderd.engine.oci.storage.disks import APP_OWNER

#: The least that restic takes.
WEAK = {"N": 2, "r": 1, "p": 1}
IV, MAC = 16, 16


def make_repository(folder: Path, password: str) -> None:
    """Make a repository with such a key, which restic finds in its sandbox."""
    shutil.copytree(Path(_made(password).name), folder)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, APP_OWNER, APP_OWNER)


@cache
def _made(password: str) -> TemporaryDirectory[str]:
    """Return a repository that others are copied from, which goes with this process."""
    folder = TemporaryDirectory(prefix="bd-restic-")
    command = ["restic", "init", "--quiet", "--no-cache", "--repo", folder.name]
    subprocess.run(command, env={**os.environ, "RESTIC_PASSWORD": password}, check=True)
    _weaken(Path(folder.name), password)
    return folder


def _weaken(repository: Path, password: str) -> None:
    """Seal the master key anew."""
    for file in (repository / "keys").iterdir():
        key: dict[str, Any] = json.loads(file.read_text())
        sealed = b64decode(key["data"])
        master = _ctr(_derived(key, password), sealed[:IV], sealed[IV:-MAC])
        key |= WEAK
        iv, derived = os.urandom(IV), _derived(key, password)
        text = _ctr(derived, iv, master)
        one_time = derived[48:] + Cipher(AES(derived[32:48]), ECB()).encryptor().update(iv)
        key["data"] = b64encode(iv + text + Poly1305.generate_tag(one_time, text)).decode()
        weak = json.dumps(key).encode()
        (repository / "keys" / hashlib.sha256(weak).hexdigest()).write_bytes(weak)
        file.unlink()


def _derived(key: dict[str, Any], password: str) -> bytes:
    """Return the key of AES-256, then those of Poly1305-AES: ``k`` and ``r``."""
    salt, memory = b64decode(key["salt"]), 256 * key["N"] * key["r"] + (1 << 20)
    return hashlib.scrypt(password.encode(), salt=salt, n=key["N"], r=key["r"], p=key["p"], maxmem=memory, dklen=64)


def _ctr(derived: bytes, iv: bytes, text: bytes) -> bytes:
    return Cipher(AES(derived[:32]), CTR(iv)).encryptor().update(text)
