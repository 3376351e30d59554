"""The base is made from the host's Debian mirrors and from nothing else that the host has."""

from dataclasses import replace

from builderd.adapters.engines.oci.storage.base import (
    DEFAULT_SOURCES,
    FINISH,
    MOUNT_FILES,
    MOUNT_FOLDERS,
    Recipe,
    base_id,
    build_argv,
    proxy_options,
    sources,
)
from builderd.domain import layers

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
    others = [replace(RECIPE, packages=("python3",)), replace(RECIPE, finish="true"), Recipe("arm64")]
    assert len({RECIPE.hash, *(other.hash for other in others)}) == 4


def test_base_name_depends_on_package_versions_only() -> None:
    first = base_id(RECIPE, ["a=1", "b=1"])
    assert first == base_id(RECIPE, ["b=1", "a=1"])
    assert first != base_id(RECIPE, ["a=1", "b=2"])


def test_root_has_all_mount_points_of_a_build() -> None:
    for path in (layers.INPUT, layers.LAYER, layers.CACHE):
        assert path.lstrip("/") in MOUNT_FOLDERS
    assert "usr/local/bin/uv" in MOUNT_FILES


def test_the_finishing_touch_leaves_the_build_tools_configuration_alone() -> None:
    assert "tmp" not in FINISH


def test_the_command_names_target_and_sources_last() -> None:
    argv = build_argv(RECIPE, "/x/root", ["deb http://a.example/debian trixie main"], ['Acquire::Retries "3";'])
    assert argv[-3:] == ["trixie", "/x/root", "deb http://a.example/debian trixie main"]
    assert '--aptopt=Acquire::Retries "3";' in argv
    assert "--architectures=amd64" in argv
