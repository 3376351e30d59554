"""Imports of the client: a list that is held, so that no package of the service comes in unseen."""

from __future__ import annotations

import subprocess
import sys

#: Other packages that the client imports, with those that httpx2 and pydantic bring.
FOREIGN = {
    "annotated_types",
    "anyio",
    "click",
    "h11",
    "httpcore2",
    "httpx2",
    "idna",
    "platformdirs",
    "pydantic",
    "pydantic_core",
    "truststore",
    "typing_extensions",
    "typing_inspection",
    "wsproto",
}
#: Parts of this package.
OWN = (
    "builderd.cli.apps",
    "builderd.cli.group",
    "builderd.cli.commands",
    "builderd.cli.group",
    "builderd.client",
    "builderd.domain",
    "builderd.mcp",
    "builderd.schemas",
)  # the schemas of the results, with the domain's words; mcp.agent_configs, for `builderd mcp`

PROGRAM = """
import importlib, pkgutil, sys
before = set(sys.modules)
import builderd.cli.apps, builderd.client._async, builderd.client._sync, builderd.cli.group
for package in (builderd.client, builderd.client._async, builderd.client._sync, builderd.cli.apps):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if not module.ispkg:
            importlib.import_module(module.name)
print(*sorted(set(sys.modules) - before))
"""


def imported() -> set[str]:
    """Return the modules that all modules of the client and its commands import, in an interpreter of their own."""
    done = subprocess.run([sys.executable, "-S", "-c", _with_path()], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def _with_path() -> str:
    return f"import sys; sys.path[:] = {sys.path!r}\n{PROGRAM}"


def test_the_client_imports_only_these_modules() -> None:
    modules = imported()
    tops = {name.partition(".")[0] for name in modules} - set(sys.stdlib_module_names) - {"builderd"}
    assert {name for name in tops if not name.startswith("_sysconfigdata")} <= FOREIGN
    own = {name for name in modules if name.startswith("builderd.") and name != "builderd.cli"}
    assert {name for name in own if not name.startswith(OWN)} == set()
