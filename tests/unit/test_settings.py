"""Settings: their sources, precedence, and messages for invalid ones."""

from __future__ import annotations

import os
import re
from decimal import Decimal
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from builderd.bootstrap.configuration import load
from builderd.core.errors import ValidationFailed
from builderd.core.resources import Resources
from builderd.money.model import Prices
from builderd.previews.model import PreviewDomain
from builderd.settings import DEFAULT_DATA_DIR, Settings
from builderd.tokens.limits import Limits
from builderd.versions.model import Isolation


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("BUILDERD_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("BUILDERD_DATA_DIR", str(tmp_path / "data"))


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def refused(file: Path | None = None, **given: Any) -> dict[str, list[str]]:
    with pytest.raises(ValidationFailed) as error:
        load(file, **given)
    return error.value.errors


def test_with_nothing_set_the_service_listens_on_this_machine_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BUILDERD_DATA_DIR")
    settings = load()
    assert (settings.host, settings.port, settings.preview_port) == ("127.0.0.1", 8080, 8081)
    assert settings.data_dir == DEFAULT_DATA_DIR
    assert settings.database == f"sqlite:///{DEFAULT_DATA_DIR}/builderd.db"
    assert settings.to_limits() == Limits()
    assert settings.to_prices() == Prices()
    assert settings.preview_domain == PreviewDomain("http", "localhost", 8081)


def test_the_command_line_wins_over_variables_and_they_over_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = write(tmp_path / "own.toml", "port = 1001\npreview_port = 1002\n[limits]\ncpu = 2\nmemory = 3\n")
    monkeypatch.setenv("BUILDERD_PREVIEW_PORT", "2002")
    monkeypatch.setenv("BUILDERD_LIMITS__CPU", "4")
    monkeypatch.setenv("BUILDERD_HOST", "10.0.0.1")
    settings = load(file, host="0.0.0.0", port=None)
    assert (settings.port, settings.preview_port, settings.host) == (1001, 2002, "0.0.0.0")
    assert (settings.limits.cpu, settings.limits.memory, settings.limits.disk) == (4, 3, 100)


def test_the_file_in_the_data_directory_is_read_without_being_named(tmp_path: Path) -> None:
    write(tmp_path / "data" / "builderd.toml", "port = 1001")
    assert load().port == 1001
    assert load(data_dir=tmp_path / "other").port == 8080
    assert load(write(tmp_path / "own.toml", "host = '::1'")).port == 8080


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", False),
        ("[prices]\ndisk = 0.01", True),
        ("[prices]\ndisk = 0.01\n[money]\nshown = false", False),
        ("[money]\nshown = true", True),
    ],
)
def test_money_is_shown_once_a_price_is_set_or_as_the_operator_says(tmp_path: Path, text: str, shown: bool) -> None:
    assert load(write(tmp_path / "own.toml", text)).to_prices().shown is shown


@pytest.mark.parametrize(
    ("text", "given"), [("preview_port = 8090", {"port": 8081}), ("[ssh]\nport = 0", {"preview_port": 8022})]
)
def test_the_command_line_is_judged_together_with_the_file(tmp_path: Path, text: str, given: dict[str, Any]) -> None:
    write(tmp_path / "data" / "builderd.toml", text)
    assert load(**given).model_dump().items() >= given.items()


def test_a_variable_is_judged_together_with_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = "[review]\nmodel_url = 'http://127.0.0.1:9/v1'\nmodel = 'one'"
    write(tmp_path / "data" / "builderd.toml", text)
    monkeypatch.setenv("BUILDERD_REVIEW__MODEL", "other")
    assert load().review.model == "other"


def test_every_section_is_taken_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = write(
        tmp_path / "own.toml",
        """
        database_url = "postgresql://builderd@db/builderd"
        [prices]
        currency = "USD"
        cpu = 0.1
        [limits]
        isolation = "strong"
        start_timeout = 5
        exec_output = 0.5
        disk = 10
        [preview]
        domain = "apps.example.com"
        certificate = "/etc/tls/apps.pem"
        public_port = 443
        trusted_proxies = ["10.0.0.1"]
        [egress]
        deny = ["192.0.2.0/24", "198.51.100.0/24"]
        """,
    )
    monkeypatch.setenv("BUILDERD_EGRESS__ALLOW", "10.1.0.0/16, 10.2.0.0/16,")
    settings = load(file)
    assert settings.database == "postgresql://builderd@db/builderd"
    assert settings.to_prices() == Prices("USD", cpu=Decimal("0.1"), shown=True)
    limits = settings.to_limits()
    assert limits.maximum == Resources(8, 16, 10)
    assert (limits.default_isolation, limits.start_timeout, limits.exec_output) == (Isolation.STRONG, 5, 500_000)
    assert settings.preview_domain == PreviewDomain("https", "apps.example.com", None)
    assert settings.preview.trusted_proxies == (IPv4Network("10.0.0.1"),)
    assert settings.egress.allow == (IPv4Network("10.1.0.0/16"), IPv4Network("10.2.0.0/16"))
    assert settings.egress.deny == (IPv4Network("192.0.2.0/24"), IPv4Network("198.51.100.0/24"))


WRONG = {
    "port": ("port = 0", "port"),
    "a port as text": ("port = 'http'", "port"),
    "a port beyond the last": ("preview_port = 65536", "preview_port"),
    "an unknown setting": ("prot = 1", "prot"),
    "an unknown setting of a section": ("[limits]\ncpus = 1", "limits.cpus"),
    "a section that is none": ("limits = 1", "limits"),
    "less than the least": ("[limits]\ncpu = 0.1", "limits.cpu"),
    "no number": ("[limits]\nmemory = nan", "limits.memory"),
    "an endless number": ("[limits]\ndisk = inf", "limits.disk"),
    "no time": ("[limits]\nstart_timeout = 0", "limits.start_timeout"),
    "a price below nothing": ("[prices]\ncpu = -0.1", "prices.cpu"),
    "an endless price": ("[prices]\ncpu = inf", "prices.cpu"),
    "an isolation that is none": ("[limits]\nisolation = 'weak'", "limits.isolation"),
    "no domain": ("[preview]\ndomain = 'a b'", "preview.domain"),
    "a domain in capitals": ("[preview]\ndomain = 'Example.com'", "preview.domain"),
    "a domain that leaves no room": (f"[preview]\ndomain = '{'a' * 190}'", "preview.domain"),
    "no network": ("[egress]\nallow = ['example.com']", "egress.allow.0"),
    "host bits in a network": ("[egress]\nallow = ['10.0.0.1/8']", "egress.allow.0"),
    "two ports alike": ("port = 8081", "settings"),
    "the inner port among the outer": ("port = 8082", "settings"),
    "a log level that is none": ("log_level = 'loud'", "log_level"),
    "previous keys without a key": ("[vault]\nprevious_keys = ['a2V5']", "vault"),
    "previous keys beside a file": ("[vault]\nprevious_keys = ['a2V5']\nkey_file = '/k'", "vault"),
    "a name that no tenant has": ("[tenants.Acme]\nbuilders = 1", "tenants"),
    "a password for the index": ("package_index = 'https://me:secret@pypi.example.com/simple'", "package_index"),
    "a token for the registry": ("npm_registry = 'https://token@npm.example.com/'", "npm_registry"),
    "a user as Node reads it": ("npm_registry = 'https:\\\\me:secret@npm.example.com'", "npm_registry"),
    "a user after a slash too many": ("npm_registry = 'https:///me:secret@npm.example.com'", "npm_registry"),
    "a user without a scheme": ("package_index = 'me:secret@pypi.example.com/simple'", "package_index"),
}


@pytest.mark.parametrize("case", WRONG)
def test_invalid_setting_is_reported_by_name(tmp_path: Path, case: str) -> None:
    text, name = WRONG[case]
    assert list(refused(write(tmp_path / "own.toml", text))) == [name]


@pytest.mark.parametrize("url", ["https://pypi.example.com/simple/", "http://10.0.0.1:3141", "http://[::1]/a/@b"])
def test_an_index_without_a_password_may_be_anywhere(tmp_path: Path, url: str) -> None:
    settings = load(write(tmp_path / "own.toml", f"package_index = '{url}'\nnpm_registry = '{url}'"))
    assert (settings.package_index, settings.npm_registry) == (url, url)


def test_a_password_for_the_index_is_refused_with_what_to_do_and_is_not_repeated(tmp_path: Path) -> None:
    (told,) = refused(write(tmp_path / "own.toml", WRONG["a password for the index"][0]))["package_index"]
    assert "a proxy on this host" in told
    assert "secret" not in told


def test_all_invalid_settings_are_reported(tmp_path: Path) -> None:
    assert len(refused(write(tmp_path / "own.toml", "port = 0\nprot = 1\n[limits]\ncpu = 0"))) == 3


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("BUILDERD_PORT", "", "port"),
        ("BUILDERD_PORT", "80a", "port"),
        ("BUILDERD_LIMITS__CPUS", "1", "limits.cpus"),
        ("BUILDERD_LIMITS", "all", "environment"),
        ("BUILDERD_EGRESS__ALLOW", "everything", "egress.allow.0"),
        ("BUILDERD_WEBHOOKS__ALLOW", "everything", "webhooks.allow.0"),
    ],
)
def test_invalid_variable_is_reported(monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str) -> None:
    monkeypatch.setenv(name, value)
    assert list(refused()) == [told]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("BUILDERD_PROT", "BUILDERD_PORT"),
        ("builderd_prot", "BUILDERD_PORT"),
        ("BUILDERD_LIMIT__CPU", "BUILDERD_LIMITS"),
        ("BUILDERD_METRICS_TOKN", "BUILDERD_METRICS_TOKEN"),
        ("BUILDERD_WEBHOOK__ALLOW", "BUILDERD_WEBHOOKS"),
    ],
)
def test_a_misspelt_variable_is_refused_with_what_was_meant(
    monkeypatch: pytest.MonkeyPatch, name: str, meant: str
) -> None:
    monkeypatch.setenv(name, "1")
    assert refused()[name] == [f"is no setting: did you mean {meant}?"]


def test_unknown_variable_is_logged_except_those_of_the_client(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("BUILDERD_URL", "BUILDERD_TOKEN", "BUILDERD_WHATEVER_ELSE", "OTHER_PROT"):
        monkeypatch.setenv(name, "1")
    load()
    told = [record.getMessage() for record in caplog.records]
    assert any("BUILDERD_WHATEVER_ELSE" in line for line in told)
    assert not any(name in line for line in told for name in ("BUILDERD_URL", "BUILDERD_TOKEN", "OTHER"))


@pytest.mark.parametrize("content", [b"port = ", b"\xff\xfe", b"port 1", b"port = 1\nport = 2"])
def test_invalid_toml_is_reported_by_path(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "own.toml"
    file.write_bytes(content)
    assert list(refused(file)) == [str(file)]


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    assert "no file" in refused(tmp_path / "missing.toml")["config"][0]
    assert "no file" in refused(tmp_path)["config"][0]


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8080"),
        ("::1", "http://[::1]:8080"),
        ("api.example.org", "http://api.example.org:8080"),
        ("0.0.0.0", ""),
        ("::", ""),
    ],
)
def test_where_users_reach_the_api(host: str, url: str) -> None:
    assert Settings(host=host).api_url == url
    assert Settings(host=host, public_url="https://api.example.org/").api_url == "https://api.example.org"


def _documented() -> set[str]:
    """The names in the table of the settings; one that begins with a dot has the section of the one before it."""
    rows = [
        line
        for line in (Path(__file__).parents[2] / "docs/settings.md").read_text().splitlines()
        if line.startswith("| `")
    ]
    names, section = set(), ""
    for name in (name for row in rows for name in re.findall(r"`([a-z0-9_.<>…]+)`", row.split("|")[1])):
        section = section if name.startswith(".") else name.partition(".")[0]
        names.add(f"{section}{name}" if name.startswith(".") else name)
    return names


def _all_settings() -> set[str]:
    names = set()
    for name, field in Settings.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            names |= {f"{name}.{inner}" for inner in section.model_fields}
        elif name not in {"fault", "credentials_directory", "tenants"}:
            names.add(name)
    return names


def test_each_setting_is_described_and_none_that_there_is_not() -> None:
    assert _documented() - {"tenants.<name>.…"} == _all_settings()
