"""The scripted installer keeps what its port promises."""

import pytest
from tests.fakes.installer import FakeInstaller

from builderd.domain.bundles import BundleFile, make_bundle
from builderd.domain.errors import InstallFailed
from builderd.domain.ids import TenantId
from builderd.ports.installer import Installer

ONE, OTHER = TenantId("one"), TenantId("other")
FLASK = make_bundle([BundleFile("requirements.txt", b"flask\n")])


def test_fake_is_an_installer() -> None:
    installer: Installer = FakeInstaller()
    assert installer.plan(make_bundle([BundleFile("main.py", b"")]), "base", ONE) is None


def test_a_plan_of_wheels_is_shared_by_all_tenants() -> None:
    plans = [FakeInstaller().plan(FLASK, "base", tenant) for tenant in (ONE, OTHER)]
    assert plans[0] == plans[1]
    assert plans[0] is not None
    assert not plans[0].runs_foreign_code


def test_a_fallback_is_the_tenants_own_and_the_last() -> None:
    installer = FakeInstaller()
    plan = installer.plan(FLASK, "base", ONE)
    assert plan is not None
    assert installer.fallback(plan, (), ONE) is None
    installer.has_fallback = True
    mine, other = (installer.fallback(plan, (), tenant) for tenant in (ONE, OTHER))
    assert mine is not None
    assert other is not None
    assert mine.runs_foreign_code
    assert len({plan.key, mine.key, other.key}) == 3
    assert installer.from_source(plan, ONE) == mine
    assert installer.fallback(mine, (), ONE) is None
    assert installer.from_source(mine, ONE) is None


def test_a_request_that_needs_a_build_is_the_tenants_own_at_once() -> None:
    installer = FakeInstaller()
    installer.needs_build = True
    plans = [installer.plan(FLASK, "base", tenant) for tenant in (ONE, OTHER)]
    assert plans[0] != plans[1]
    assert plans[0] is not None
    assert plans[0].runs_foreign_code


def test_a_refusal_is_raised() -> None:
    installer = FakeInstaller()
    installer.refusal = "line 1 is refused"
    with pytest.raises(InstallFailed, match="line 1"):
        installer.plan(FLASK, "base", ONE)
