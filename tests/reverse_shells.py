"""Reverse shells of ``reverse_shells.toml``, each in an app that starts it."""

from __future__ import annotations

import tomllib
from pathlib import Path

from tests.gate import Files

_SHELLS: dict[str, dict[str, str]] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())


def _cases() -> dict[str, tuple[Files, str]]:
    cases: dict[str, tuple[Files, str]] = {}
    for name, command in _SHELLS["commands"].items():
        cases[f"script: {name}"] = ({"run.sh": f"#!/bin/bash\n{command}\n"}, "bash run.sh")
        cases[f"os.system: {name}"] = ({"app.py": f"import os\nos.system({command!r})\n"}, "python3 app.py")
        quoted = command.replace("\\", "\\\\").replace("`", "\\`").replace("${", "\\${")
        cases[f"exec: {name}"] = ({"app.js": f'require("child_process").exec(`{quoted}`)\n'}, "node app.js")
    cases |= {f"python: {name}": ({"app.py": text}, "python3 app.py") for name, text in _SHELLS["python"].items()}
    cases |= {f"node: {name}": ({"app.js": text}, "node app.js") for name, text in _SHELLS["node"].items()}
    return cases


#: The files of an app and its entrypoint, by name.
REVERSE_SHELLS = _cases()
