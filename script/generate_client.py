"""Generates ``client/_sync``: the synchronous client, from ``client/_async``, and the SDK's options, from the contract.

    python3 script/generate_client.py

``script/venv``, ``script/check`` and ``script/test`` call it, and so does the build of a wheel, as hatchling's hook.
"""

from __future__ import annotations

import ast
import tempfile
from pathlib import Path
from typing import Any

import unasync
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

CLIENT = Path(__file__).resolve().parents[1] / "src/builderd/client"
SOURCE, TARGET = CLIENT / "_async", CLIENT / "_sync"
SCHEMAS = CLIENT.with_name("schemas")
HEAD = '"""Generated from ``_async`` by ``script/generate_client.py``: change that."""\n\n'

#: Names that do not follow from unasync's own rules: it makes SyncX of AsyncX.
NAMES = {
    "AbstractAsyncContextManager": "AbstractContextManager",
    "AsyncBaseTransport": "BaseTransport",
    "AsyncWebSocketSession": "WebSocketSession",
    "_async": "_sync",
    "aclose": "close",
    "aclosing": "closing",
    "aiter_lines": "iter_lines",
    "aiter_raw": "iter_raw",
    "aiter_bytes": "iter_bytes",
    "aread": "read",
    "async_sleep": "sleep",
    "in_thread": "at_once",
}


#: Options of the SDK: annotations of the contract as callers write them; all others are text.
OPTION_TYPES = {
    "JsonInt": "int",
    "bool": "bool",
    "Env": "Mapping[str, str]",
    "Processes": "Mapping[str, str]",
    "Scale": "Mapping[str, int]",
    "Resources": "ResourceOptions",
    "list[Credential]": "Sequence[str]",
}
#: Arguments of their own, or another form.
NO_OPTIONS = {"name", "files", "source", "code_is_required", "model_config"}
OPTIONS = '''"""Settings as keyword arguments. Generated from ``schemas`` by ``script/generate_client.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

from builderd.client.options import ResourceOptions
'''


def names() -> dict[str, str]:
    """Return all replacements: each class ``AsyncX`` of the source, and of httpx2, becomes ``X``."""
    own = {
        word
        for path in SOURCE.glob("*.py")
        for line in path.read_text().splitlines()
        if line.startswith("class Async")
        for word in [line.removeprefix("class ").partition("(")[0].partition("[")[0].rstrip(":")]
    }
    return {"AsyncClient": "Client", **{name: name.removeprefix("Async") for name in own}, **NAMES}


def generate() -> None:
    """Bring ``client/_sync`` to what the asynchronous client makes. Files change whole: checks and tests read them."""
    TARGET.mkdir(exist_ok=True)
    sources = sorted(SOURCE.glob("*.py"))
    with tempfile.TemporaryDirectory() as folder:
        rule = unasync.Rule(fromdir=f"{SOURCE}/", todir=f"{folder}/", additional_replacements=names())
        unasync.unasync_files([str(path) for path in sources], [rule])
        for made in Path(folder).glob("*.py"):
            text = HEAD + _without_docstring(made.read_text())
            target = TARGET / made.name
            _replace(target, text)
    _replace(TARGET / "settings.py", options())
    for path in TARGET.glob("*.py"):
        if path.name != "settings.py" and not (SOURCE / path.name).exists():
            path.unlink()


def _replace(target: Path, text: str) -> None:
    if not target.exists() or target.read_text() != text:
        changed = target.with_suffix(".new")
        changed.write_text(text)
        changed.replace(target)


def options() -> str:
    """Return the module with the options of the calls that create a builder, make a version and change settings."""
    new, change = _fields("builders.py", "NewBuilder"), _fields("versions.py", "NewSettings")
    version = {name: kind for name, kind in new.items() if name not in change and name != "job_type"}
    return OPTIONS + "".join(
        f'\n\nclass {name}({base}, total=False):\n    """{doc}"""\n\n'
        + "".join(f"    {one}: {kind}\n" for one, kind in fields.items())
        for name, base, doc, fields in (
            ("SettingOptions", "TypedDict", "Settings that change without new code.", change),
            ("VersionOptions", "SettingOptions", "Settings of a version.", version),
            ("BuilderOptions", "VersionOptions", "Settings of a new builder.", {"job_type": "str"}),
        )
    )


def _fields(file: str, shape: str) -> dict[str, str]:
    tree = ast.parse((SCHEMAS / file).read_text())
    [body] = [node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == shape]
    found = {ast.unparse(one.target): ast.unparse(one.annotation) for one in body if isinstance(one, ast.AnnAssign)}
    return {name: OPTION_TYPES.get(kind, "str") for name, kind in found.items() if name not in NO_OPTIONS}


def _without_docstring(text: str) -> str:
    _, _, rest = text.partition('"""')
    return rest.partition('"""')[2].lstrip("\n")


class ClientBuildHook(BuildHookInterface[Any]):
    """Makes the synchronous client part of each wheel and source distribution."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Generate it before hatchling collects the files."""
        if SOURCE.exists():
            generate()


if __name__ == "__main__":
    generate()
