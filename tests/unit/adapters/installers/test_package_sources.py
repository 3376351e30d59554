"""Private indexes from the variables of credentials: addresses apart from the secrets."""

import pytest

from builderd.adapters.installers.installers import Installers
from builderd.adapters.installers.npm import NpmInstaller
from builderd.adapters.installers.uv import UvInstaller
from builderd.domain.bundles import BundleFile, make_bundle
from builderd.domain.credentials import read_sources
from builderd.domain.ids import TenantId
from builderd.domain.layers import Cache

ALICE, BOB = TenantId("alice"), TenantId("bob")


def test_addresses_are_apart_from_users_and_passwords() -> None:
    values = {
        "PIP_INDEX_URL": "https://robot:p%40ss@pypi.example:8443/simple/",
        "PIP_EXTRA_INDEX_URL": "https://token@extra.example/simple https://[2001:db8::1]:81/x",
        "NPM_CONFIG_REGISTRY": "https://npm.example/api/",
        "NPM_TOKEN": "npm_secret",
        "OTHER": "kept out",
    }
    sources = read_sources(values, ["index 1"])
    assert sources is not None
    assert sources.index == "https://pypi.example:8443/simple/"
    assert dict(sources.extras) == {
        "private-extra-1": "https://extra.example/simple",
        "private-extra-2": "https://[2001:db8::1]:81/x",
    }
    assert (sources.registry, sources.has_npm_token) == ("https://npm.example/api/", True)
    assert dict(sources.secrets) == {
        "UV_INDEX_PRIVATE_USERNAME": "robot",
        "UV_INDEX_PRIVATE_PASSWORD": "p@ss",
        "UV_INDEX_PRIVATE_EXTRA_1_USERNAME": "token",
        "NPM_TOKEN": "npm_secret",
    }
    assert not any(secret in repr(sources) for secret in ("p@ss", "npm_secret", "robot"))


def test_fingerprint_follows_the_credentials_and_not_their_secrets() -> None:
    one, same, other = (
        read_sources({"PIP_INDEX_URL": f"https://a:{password}@x/simple"}, [version])
        for password, version in (("1", "v1"), ("2", "v1"), ("1", "v2"))
    )
    assert one is not None
    assert same is not None
    assert other is not None
    assert one.fingerprint == same.fingerprint != other.fingerprint


def test_secrets_are_in_the_environment_of_the_installer_alone() -> None:
    installers = Installers(UvInstaller("test"), NpmInstaller())
    files = {"requirements.txt": b"mine\n", "package.json": b'{"dependencies": {"mine": "1"}}'}
    plan = installers.plan(make_bundle(BundleFile(path, text) for path, text in files.items()), "base", ALICE)
    sources = read_sources({"PIP_INDEX_URL": "https://robot:hidden-1@x/simple", "NPM_TOKEN": "hidden-2"}, ["a"])
    assert plan is not None
    assert sources is not None
    made = [installers.from_sources(plan, sources, tenant) for tenant in (ALICE, BOB)]
    assert len({plan.key, *(one.key for one in made)}) == 3
    assert "hidden" not in repr(made)
    assert {step.cache for step in made[0].steps} == {Cache.SCRATCH}
    assert [dict(step.secrets) for step in made[0].steps] == [
        {"UV_INDEX_PRIVATE_USERNAME": "robot", "UV_INDEX_PRIVATE_PASSWORD": "hidden-1"},
        {"NPM_TOKEN": "hidden-2"},
    ]
    assert made[0].inputs["npmrc"] == b"//registry.npmjs.org/:_authToken=${NPM_TOKEN}\n"


def test_other_credentials_name_no_source() -> None:
    assert read_sources({"API_KEY": "https://a:b@c"}, ["x"]) is None


@pytest.mark.parametrize("url", ["", "ftp://x/simple", "pypi.example", "https://", "https://x:99999/", "https://x/a b"])
def test_value_that_is_no_address_names_the_variable_alone(url: str) -> None:
    with pytest.raises(ValueError, match="PIP_INDEX_URL") as refused:
        read_sources({"PIP_INDEX_URL": url.replace("://", "://user:hidden@")}, ["x"])
    assert "hidden" not in str(refused.value)
