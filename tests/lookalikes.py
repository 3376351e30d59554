"""The benign code of ``lookalikes.toml``, each in an app with another file or two."""

from __future__ import annotations

import tomllib
from pathlib import Path

from tests.gate import Files

_BESIDE = {"python3 app.py": {"version.py": "V = 1\n", "worker.py": "print(1)\n"}, "node app.js": {"worker.js": "1\n"}}
LOOKALIKES: dict[str, tuple[Files, str]] = {
    name: ({**case["files"], **_BESIDE[case["entrypoint"]]}, case["entrypoint"])
    for name, case in tomllib.loads(Path(__file__).with_suffix(".toml").read_text()).items()
}
