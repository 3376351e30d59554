"""Every page is rendered, names nobody else's builders, and keeps to the scopes of the session's token."""

from __future__ import annotations

import errno
import io
import re
import tarfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from starlette.routing import Route
from tests.fakes.sandboxes import Behaviour
from tests.service import MINIMAL
from tests.unit.web.conftest import Pages

from builderd.backups import service as backups
from builderd.core.ids import BuilderId
from builderd.database.unit_of_work import UnitOfWork
from builderd.metrics.model import Usage, UsageBucket, start_of
from builderd.money.model import Billing, Segment
from builderd.previews.model import RESPONSE_TIMES
from builderd.sandboxes.model import LogStream
from builderd.tokens import limits
from builderd.tokens.model import Scope
from builderd.web.app import Site
from builderd.web.pages import account
from builderd.web.policy import HEADERS
from builderd.web.visits import ROUTES

TENANT = (
    "/builders",
    "/new",
    "/activity",
    "/spending",
    "/credentials",
    "/webhooks",
    "/tokens",
    "/sessions",
    "/machine",
)
BUILDER = (
    "",
    "/logs",
    "/metrics",
    "/versions",
    "/versions/1",
    "/review",
    "/qa",
    "/files",
    "/terminal",
    "/backups",
    "/settings",
    "/code",
    "/deploy",
)
#: Markup in every text that a tenant can choose; it must come out as text.
PLANTED = '"><script>alert(1)</script><img src=x onerror=alert(1)>'


async def test_every_page_is_whole_under_the_policy(pages: Pages) -> None:
    await pages.create()
    for path in (*TENANT, *(f"/builders/my-api{end}" for end in BUILDER)):
        answer = await pages.browser.get(path)
        assert answer.status_code == 200, path
        assert answer.text.rstrip().endswith("</html>"), path
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS
        assert answer.headers["cache-control"] == "no-store"
        # The policy allows neither: a page that had one would not work.
        assert not re.search(r"<style|style=|<script>|\son[a-z]+=|javascript:", answer.text), path


async def test_charts_of_metrics_are_a_table_too(pages: Pages) -> None:
    uuid = await pages.create()
    application, count = pages.service.application, len(RESPONSE_TIMES)
    failed = (0,) * (2 * count) + (1,) + (0,) * (count - 1)
    usage = Usage(300, 75, 300 * 2**20, 2**20, 2**30, 600, 0, 1234, answers_5xx=1, within_5_ms=2, class_times=failed)
    start = start_of(application.clock.now())
    await application.store.write(lambda uow: uow.metrics.add([UsageBucket(BuilderId(uuid), start, usage)]))
    overview = (await pages.browser.get("/builders/my-api")).text
    assert all(f" ms</b> {name}</span>" in overview for name in ("p50", "p99"))
    text = (await pages.browser.get("/builders/my-api/metrics?hours=1")).text
    table = text[text.index('aria-label="Figures of the charts"') :]
    for figure in ("0.25", "1.0 MB", "1.0 GB", "1,234", "not running"):
        assert f">{figure}</td>" in table, figure
    answers = text[text.index('id="answers"') : text.index("</table>", text.index('id="answers"'))]
    # One of 5xx within 5 ms, one of 2xx, and none of the others.
    assert (answers.count(" ms</td>"), answers.count("none")) == (6, 6)


async def test_difference_of_versions_is_a_patch_to_download(pages: Pages) -> None:
    uuid = await pages.create(files={"main.py": "print(1)\n"})
    client = pages.service.client(pages.service.write)
    body = {"files": {"main.py": PLANTED}, "entrypoint": "python3 main.py"}
    assert (await client.put(f"/api/v1/builders/{uuid}", json=body)).status_code == 200
    shown = (await pages.browser.get("/builders/my-api/versions")).text
    assert "/builders/my-api/versions/2/patch?from=1" in shown
    answer = await pages.browser.get("/builders/my-api/versions/2/patch?from=1")
    assert answer.headers["content-type"].partition(";")[0] == "text/plain"
    assert answer.headers["content-disposition"] == 'attachment; filename="my-api-1-2.patch"'
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert f"-print(1)\n+{PLANTED}\n" in answer.text
    for path in ("2/patch?from=9", "2/patch", "9/patch?from=1"):
        assert (await pages.browser.get(f"/builders/my-api/versions/{path}")).status_code == 404


async def test_spending_of_each_day_is_a_chart_and_a_table(pages: Pages) -> None:
    uuid = BuilderId(await pages.create())
    builder = await pages.service.store.read(lambda uow: uow.builders.get(uuid))
    assert builder is not None
    start = datetime(2026, 1, 9, 22, tzinfo=UTC)
    past = Segment(builder.tenant_id, builder.id, Billing.TRIAL, start, start + timedelta(hours=5), Decimal("0.5"))
    await pages.service.store.write(lambda uow: uow.ledger.open(past))
    text = (await pages.browser.get("/spending?month=2026-01")).text
    chart = text[text.index('aria-labelledby="dd"') : text.index('aria-labelledby="pb"')]
    assert 'aria-label="Spent each day of January, at most €1.50 on 10 January"' in chart
    bars = re.findall(r'class="bar"[^>]* height="([0-9.]+)"', chart)
    assert (len(bars), bars[8], bars[9], float(bars[0])) == (31, "75.0", "112.5", 0)
    assert '<td class="n">€1.00</td>' in chart
    assert '<td class="n">€1.50</td>' in chart
    empty = (await pages.browser.get("/spending?month=2020-01")).text
    assert "Spent each day of January: nothing" in empty


async def test_spending_is_a_table_for_spreadsheets(pages: Pages) -> None:
    uuid = await pages.create()
    answer = await pages.browser.get("/spending/csv")
    assert answer.headers["content-type"].partition(";")[0] == "text/csv"
    assert answer.headers["content-disposition"].startswith('attachment; filename="spending-20')
    head, row = answer.text.splitlines()
    assert head.startswith("uuid,name,deleted,hours,per_hour,cost_")
    assert row.startswith(f"{uuid},my-api,False,")
    assert (await pages.browser.get("/spending/csv?month=2020-01")).text.splitlines() == [head]


async def test_table_of_spending_takes_the_tenants_turn_of_large_reads(
    pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_WAITING", 0)
    tenant = await pages.service.store.read(lambda uow: uow.tenants.by_name("acme"))
    assert tenant is not None
    async with pages.service.app.state.operations.lists.one(tenant.id):
        answers = [await pages.browser.get(path) for path in ("/spending/csv", "/spending")]
    assert [one.status_code for one in answers] == [429, 200]
    assert (await pages.browser.get("/spending/csv")).status_code == 200


async def test_refused_page_says_so_and_offers_to_try_again(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_WAITING", -2)
    answer = await pages.browser.get("/builders?q=a%22b")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "5")
    assert "Too many requests" in answer.text
    assert 'href="/builders?q=a%22b">Try again</a>' in answer.text


async def test_live_pages_are_limited_and_the_next_is_refused(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await pages.browser.get("/live/state")).status_code == 204
    monkeypatch.setattr(pages.web.state.operations.live_pages, "maximum", 0)
    assert (await pages.browser.get("/live/state")).status_code == 429
    assert (await pages.browser.get("/live")).status_code == 429
    assert (await pages.browser.get("/builders")).status_code == 200


async def test_every_live_region_can_be_asked_for_alone(pages: Pages) -> None:
    await pages.create()
    for path in ("/builders", "/activity", *(f"/builders/my-api{end}" for end in BUILDER)):
        text = (await pages.browser.get(path)).text
        for name in re.findall(r'id="([\w-]+)"[^>]*data-live', text):
            part = await pages.browser.get(path, params={"part": name})
            assert part.status_code == 200
            assert f'id="{name}"' in part.text
            assert "</html>" not in part.text, (path, name)


async def test_markup_in_names_files_and_settings_is_shown_as_text(pages: Pages) -> None:
    files = {"main.py": PLANTED, f"a{PLANTED.replace('/', '')}.txt": "x"}
    await pages.create(files=files, env={"X": PLANTED}, entrypoint=f"echo '{PLANTED}'")
    secret = await pages.service.token("acme", Scope.WRITE)
    found = (await pages.service.client(secret).get("/api/v1/builders")).json()["data"][0]
    await pages.service.client(secret).post(f"/api/v1/builders/{found['uuid']}/domains", json={"host": "a.example"})
    await pages.service.application.store.write(_plant_reason)
    for path in (*TENANT, *(f"/builders/my-api{end}" for end in BUILDER)):
        text = (await pages.browser.get(path)).text
        assert "<script>alert" not in text, path
        assert "<img src=x" not in text, path
    assert secret


def _plant_reason(uow: UnitOfWork) -> None:
    """Give all domains a reason that a hostile name server might cause."""
    for builder in uow.builders.ids():
        for domain in uow.domains.of_builder(builder):
            uow.domains.save(replace(domain, reason=PLANTED))


async def test_builders_of_another_tenant_are_hidden(pages: Pages) -> None:
    await pages.create()
    async with pages.stranger() as browser:
        await pages.sign_in(browser, pages.service.other)
        assert "my-api" not in (await browser.get("/builders")).text
        for end in BUILDER:
            assert (await browser.get(f"/builders/my-api{end}")).status_code == 404
        for end in ("/do/stop", "/delete", "/settings", "/backups", "/rollback", "/files", "/code"):
            answer = await browser.post(f"/builders/my-api{end}", data={"confirm": "my-api"})
            assert answer.status_code in (400, 404), end


async def test_a_token_that_only_reads_changes_nothing(pages: Pages) -> None:
    await pages.create()
    async with pages.stranger() as browser:
        await pages.sign_in(browser, pages.service.read)
        before = await pages.service.kept()
        posts = [
            route.path.replace("{name}", "my-api").replace("{command}", "stop").replace("{path:path}", "x")
            for route in ROUTES
            if isinstance(route, Route)
            and "POST" in (route.methods or ())
            and not route.path.startswith(("/sign", "/sessions"))
        ]
        assert len(posts) > 12
        for path in posts:
            assert (await browser.post(path, data={"confirm": "my-api"})).status_code == 403, path
        assert await pages.service.kept() == before
        assert (await browser.get("/machine")).status_code == 403
        text = (await browser.get("/builders/my-api/settings")).text
        assert "Danger zone" not in text


async def test_machine_page_shows_use_and_the_room_for_more_apps(pages: Pages) -> None:
    for left, text in ((7, "Room for about 7 more apps of default size"), (0, "Delete or stop an app")):
        pages.service.engine.disks_left = left
        shown = (await pages.browser.get("/machine")).text
        assert text in shown
        assert "1.5 of 256.0 GB" in shown


async def test_a_change_of_another_origin_is_refused_with_a_valid_cookie(pages: Pages) -> None:
    await pages.create()
    for headers in ({"Origin": "http://my-api.builderd"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "null"}):
        answer = await pages.browser.post("/builders/my-api/do/stop", headers=headers)
        assert answer.status_code == 403
    assert (await pages.browser.post("/builders/my-api/do/stop")).status_code == 303


async def test_a_builder_is_made_of_pasted_files_and_mended_in_the_editor(pages: Pages) -> None:
    form = {"name": "pasted", "entrypoint": "python3 main.py", "path": "main.py", "content": "print('one')\r\n"}
    looked = (
        await pages.browser.post("/new", data={"look": "", "path": ["main.py", ""], "content": ["x = 1", ""]})
    ).text
    assert looked.count('name="path"') == 1
    assert "x = 1</textarea>" in looked
    answer = await pages.browser.post("/new", data=form)
    assert answer.headers["location"] == "/builders/pasted/versions/1"
    edited = {"version": "1", "path": "main.py", "content": "print('two')", "entrypoint": "python3 main.py"}
    for _ in range(200):
        answer = await pages.browser.post("/builders/pasted/code", data=edited)
        if answer.status_code == 303:
            break
    assert answer.headers["location"] == "/builders/pasted/versions/2"
    text = (await pages.browser.get("/builders/pasted/versions", params={"from": 1, "to": 2})).text
    assert "print(&#39;one&#39;)" in text
    assert "print(&#39;two&#39;)" in text


async def test_a_refused_form_says_what_is_wrong_and_keeps_every_choice(pages: Pages) -> None:
    form = {"name": "No Name", "entrypoint": "x", "path": "main.py", "content": "kept", "port": "many", "cpu": "99"}
    form |= {"minutes": "many", "hours": "often", "env-name": "KEPT", "env-value": "value", "sleeps": "yes"}
    form |= {"job_type": "sandbox", "public": "yes"}
    answer = await pages.browser.post("/new", data=form)
    assert answer.status_code == 422
    for text in ("kept", "No Name", 'id="e-name"', 'id="e-cpu"', 'value="many" aria-invalid="true"', 'value="KEPT"'):
        assert text in answer.text
    for text in ('value="sandbox" selected', 'name="public" value="yes" checked', 'value="often" aria-invalid="true"'):
        assert text in answer.text
    good = {"name": "a", "entrypoint": "x", "path": "main.py", "content": "x", "env_file": ".env"}
    assert "names a file that is not in files" in (await pages.browser.post("/new", data=good)).text.lower()


@pytest.mark.parametrize("path", ["/builders/none", "/nowhere/at/all", "/builders/none/versions/x"])
async def test_unknown_path_is_a_page_or_an_answer_of_the_api(pages: Pages, path: str) -> None:
    answer = await pages.browser.get(path)
    assert answer.status_code == 404
    assert ("text/html" in answer.headers["content-type"]) == path.startswith("/builders")


@pytest.mark.parametrize(
    ("error", "status", "title"),
    [
        (RuntimeError("secret detail"), 500, "Something went wrong"),
        (OSError(errno.ENOSPC, "No space left on device"), 503, "The machine could not do it"),
    ],
)
async def test_an_unexpected_error_is_a_page_with_its_request_id(
    pages: Pages, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, title: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(account, "_month", fail)
    answer = await pages.browser.get("/spending")
    assert answer.status_code == status
    assert answer.headers["content-type"].startswith("text/html")
    assert f"<h1>{title}</h1>" in answer.text
    assert answer.headers["x-request-id"] in answer.text
    assert "secret detail" not in answer.text
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    script = await pages.browser.get("/spending", headers={"Accept": "application/json"})
    assert script.status_code == status
    assert script.json()["message"]


async def test_files_of_apps_are_never_shown_by_the_browser(pages: Pages) -> None:
    await pages.create(
        files={"index.html": "<script>alert(1)</script>", "x.svg": "<svg onload='alert(1)'/>", "main.py": ""}
    )
    for name in ("index.html", "x.svg"):
        answer = await pages.browser.get(f"/builders/my-api/download/{name}")
        if answer.status_code == 200:
            assert answer.headers["content-type"] == "application/octet-stream"
            assert answer.headers["content-disposition"].startswith("attachment")


def test_no_path_of_the_api_is_taken_by_a_page(pages: Pages) -> None:
    site = Site(pages.service.app, pages.web)
    own = {path for path in ("api", "docs", "openapi.json", "healthz", "readyz", "metrics") if path in site._segments}
    assert not own


async def test_caps_and_credentials_are_set_and_the_values_never_shown(pages: Pages) -> None:
    answer = await pages.browser.post("/credentials", data={"name": "smtp", "values": "USER=me\nPASSWORD=se=cret"})
    assert answer.status_code == 303
    text = (await pages.browser.get("/credentials")).text
    assert "PASSWORD" in text
    assert "se=cret" not in text
    assert (await pages.browser.post("/spending", data={"monthly": "12.50"})).status_code == 303
    assert "12.5" in (await pages.browser.get("/spending")).text
    assert (await pages.browser.post("/spending", data={"monthly": "much"})).status_code == 422


async def test_the_empty_list_and_its_region_are_in_the_same_state(pages: Pages) -> None:
    """A page reloads when its region's state changes: a region in another state than the page would reload for ever."""
    for state in ("none", "some"):
        for params in ({}, {"part": "fleet"}):
            assert f'data-state="{state}"' in (await pages.browser.get("/builders", params=params)).text
        await pages.create(f"app-{state}")


async def test_links_are_made_shown_once_listed_and_revoked(pages: Pages) -> None:
    await pages.create()
    browser = pages.browser
    url = "/builders/my-api/settings"
    form = {"group": "links", "do": "make", "expires_minutes": "30", "link_port": "3000"}
    made = await browser.post(url, data=form)
    assert (made.status_code, "service_token=bdpl_" in made.text) == (200, True), made.text
    listed = (await browser.get(url)).text
    assert "Port 3000" in listed
    assert "bdpl_" not in listed
    found = re.search(r'name="link" value="([^"]+)"', listed)
    assert found is not None
    assert (await browser.post(url, data={"group": "links", "do": "revoke", "link": found[1]})).status_code == 303
    assert "Port 3000" not in (await browser.get(url)).text
    refused = await browser.post(url, data={**form, "expires_minutes": "never"})
    assert refused.status_code == 422


async def test_the_form_of_a_new_builder_chooses_its_kind_and_settings(pages: Pages) -> None:
    await pages.browser.post("/credentials", data={"name": "smtp", "values": "USER=me"})
    form = {
        "name": "nightly",
        "job_type": "worker",
        "entrypoint": "python3 main.py",
        "path": "main.py",
        "content": "print('one')",
        "isolation": "standard",
        "hours": "24",
        "require_qa": "yes",
        "env-name": ["GREETING", " "],
        "env-value": ["ahoy", ""],
        "credential": "smtp",
        # Hidden for a worker, which has no port, no visitors and no sleep.
        "sleeps": "yes",
        "minutes": "5",
        "port": "none",
    }
    answer = await pages.browser.post("/new", data=form)
    assert answer.headers["location"] == "/builders/nightly/versions/1", answer.text
    reader = pages.service.client(pages.service.read)
    (made,) = (await reader.get("/api/v1/builders")).json()["data"]
    expected = {
        "job_type": "worker",
        "auto_stop_interval": 0,
        "backup_interval_hours": 24,
        "require_qa": True,
        "env": {"GREETING": "ahoy"},
        "credentials": ["smtp"],
        "isolation": "standard",
    }
    assert {name: made[name] for name in expected} == expected


async def test_a_sandbox_needs_no_code_and_is_private_unless_it_is_made_public(pages: Pages) -> None:
    for name, more, visibility in (("box", {}, "private"), ("open", {"public": "yes"}, "public")):
        form = {"name": name, "job_type": "sandbox", "sleeps": "yes", "minutes": "30", **more}
        assert (await pages.browser.post("/new", data=form)).status_code == 303
        reader = pages.service.client(pages.service.read)
        made = next(one for one in (await reader.get("/api/v1/builders")).json()["data"] if one["name"] == name)
        assert (made["job_type"], made["visibility"], made["auto_stop_interval"]) == ("sandbox", visibility, 30)


async def test_a_static_site_is_deployed_by_the_form_without_a_command(pages: Pages) -> None:
    form = {"name": "site", "job_type": "static", "path": "index.html", "content": "x", "private": "yes", "port": "80"}
    assert (await pages.browser.post("/new", data=form)).status_code == 303
    (made,) = (await pages.service.client(pages.service.read).get("/api/v1/builders")).json()["data"]
    shown = (made["job_type"], made["entrypoint"], made["visibility"], made["port"])
    assert shown == ("static", "serve-static .", "private", 80)
    assert "static site" in (await pages.browser.get("/builders/site")).text


async def test_a_gate_is_left_out_only_with_the_scope(pages: Pages) -> None:
    form = {"name": "unseen", "entrypoint": "x", "path": "main.py", "content": "x", "skip_review": "yes"}
    async with pages.stranger() as browser:
        await pages.sign_in(browser, pages.service.write)
        assert 'name="skip_review"' not in (await browser.get("/new?kind=sandbox")).text
        assert (await browser.post("/new", data=form)).status_code == 403
    assert 'name="skip_review"' in (await pages.browser.get("/new?kind=sandbox")).text
    assert (await pages.browser.post("/new", data=form)).status_code == 303


async def test_a_region_brings_the_dialogs_of_its_buttons(pages: Pages) -> None:
    """A row that arrives live had a button without its dialog."""
    uuid = await pages.create()
    api = pages.service.client(pages.service.write)
    assert (await api.put(f"/api/v1/builders/{uuid}", json={"files": {"main.py": "2"}})).status_code == 200
    assert (await api.post(f"/api/v1/builders/{uuid}/backups")).status_code in (201, 202)
    for path, part, button in (("versions", "history", "Roll back"), ("backups", "list", "Remove the backup")):
        text = (await pages.browser.get(f"/builders/my-api/{path}", params={"part": part})).text
        assert button in text
        wanted = set(re.findall(r'commandfor="([^"]+)"', text))
        assert wanted <= set(re.findall(r'<dialog id="([^"]+)"', text))


async def test_damaged_repository_is_shown_beside_the_backups(pages: Pages) -> None:
    await pages.create()
    application = pages.service.application
    await backups.make_keys(application)

    def damage(uow: UnitOfWork) -> None:
        for key in uow.backup_keys.all():
            uow.backup_keys.save(replace(key, fault='restic printed: "pack <b> is damaged"'))

    assert "is damaged" not in (await pages.browser.get("/builders/my-api/backups")).text
    await application.store.write(damage)
    assert "pack &lt;b&gt; is damaged" in (await pages.browser.get("/builders/my-api/backups")).text


async def test_lines_have_their_level_by_what_they_say_and_not_by_their_stream(pages: Pages) -> None:
    lines = ("INFO:     Started", "ERROR:root:no", "\x1b[33mWARNING:root:look\x1b[0m", "plain")
    await pages.create()
    (sandbox,) = pages.service.engine.known
    pages.service.engine.print(sandbox, *lines, stream=LogStream.STDERR)
    shown = (await pages.browser.get("/builders/my-api/logs")).text
    rows = re.findall(r'<p class="(e|w|)"><time.*?<i title="(\w+)">.</i><span>(.*?)</span>', shown)
    assert rows == [
        ("", "info", "INFO:     Started"),
        ("e", "error", "ERROR:root:no"),
        ("w", "warning", "WARNING:root:look"),
        ("", "stderr", "plain"),
    ]
    errors = (await pages.browser.get("/builders/my-api/logs?stream=errors")).text
    assert ("ERROR:root:no" in errors, "plain" in errors) == (True, False)
    saved = (await pages.browser.get("/builders/my-api/logs/download?stream=errors")).text
    assert [line.split(" ", 1)[1] for line in saved.splitlines()] == ["stderr ERROR:root:no"]


async def test_app_that_failed_shows_no_url_but_stage_reason_lines_and_next_step(pages: Pages) -> None:
    ends = Behaviour(listens_at=None, exits_at=1, exit_code=1, lines=("Error: no database",))
    pages.service.engine.behave(str(MINIMAL["entrypoint"]), ends)
    body = {**MINIMAL, "name": "my-api"}
    assert (await pages.service.client(pages.service.write).post("/api/v1/builders", json=body)).status_code == 422
    for path in ("/builders", "/builders/my-api", "/builders/my-api/versions/1", "/builders/my-api/settings"):
        text = (await pages.browser.get(path)).text
        assert 'target="_blank"' not in text, path
    failed = (await pages.browser.get("/builders/my-api/versions/1")).text
    texts = ("It failed at start", "exited with code 1", "Next:", '<p class="e">', "Error: no database", "Stages")
    assert [failed.index(text) for text in texts] == sorted(failed.index(text) for text in texts)


async def test_money_is_shown_where_the_operator_has_set_prices_alone(pages: Pages) -> None:
    await pages.create()
    paths = ("/new?kind=sandbox", *TENANT, *(f"/builders/my-api{end}" for end in BUILDER))
    assert [path for path in paths if "€" not in (await pages.browser.get(path)).text] == []
    pages.web.state.renderer._templates.globals["shows_money"] = False
    for path in paths:
        text = (await pages.browser.get(path)).text
        assert not re.search(r"€|\bcosts?\b|Spending|spent", text), path


def archive_of(files: dict[str, str]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for path, content in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content.encode()))
    return made.getvalue()


async def send(pages: Pages, files: dict[str, str], instead: str = "") -> str:
    """Send an archive as the page's script does, and return the upload's id."""
    headers = {"Content-Type": "application/octet-stream", "Accept": "application/json"}
    content = archive_of(files)
    sent = await pages.browser.post("/new/archive", params={"instead": instead}, content=content, headers=headers)
    assert sent.status_code == 201, sent.text
    upload: str = sent.json()["upload_id"]
    return upload


async def look(pages: Pages, files: dict[str, str], path: str = "/new", **fields: str) -> str:
    """Have an archive looked at, as the page's script does, and return the page."""
    upload = await send(pages, files)
    shown = await pages.browser.post(path, data={"upload": upload, "look": "", **fields})
    assert upload not in await uploads_of(pages), "nothing is kept before Deploy"
    return shown.text


async def uploads_of(pages: Pages) -> set[str]:
    now = pages.service.application.clock.now()
    return {str(one) for one in await pages.service.store.read(lambda uow: uow.uploads.live(now))}


FLASK = {"app.py": "from flask import Flask\n\napp = Flask(__name__)\n", "requirements.txt": "flask\n"}


async def test_archive_shows_what_it_is_before_it_is_deployed(pages: Pages) -> None:
    shown = await look(pages, {**FLASK, "Dockerfile": "FROM scratch"}, name="My App")
    for text in ("<h2>Flask</h2>", "app.py makes an app of Flask", 'value="my-app"', "3 files", "Dockerfile"):
        assert text in shown, text
    assert not await pages.service.application.bundles.hashes()
    first = await send(pages, {"index.html": "x"})
    upload = await send(pages, FLASK, instead=first)
    assert await uploads_of(pages) == {upload}
    fields = dict(re.findall(r'name="(was-\w+)" value="([^"]*)"', shown)) | {"upload": upload}
    form = {**fields, **{name.removeprefix("was-"): text for name, text in fields.items()}, "name": "my-app"}
    made = await pages.browser.post("/new", data=form)
    assert made.headers["location"] == "/builders/my-app/versions/1", made.text
    assert not await uploads_of(pages)
    reader = pages.service.client(pages.service.read)
    (builder,) = (await reader.get("/api/v1/builders")).json()["data"]
    assert builder["entrypoint"] == fields["was-entrypoint"]


async def test_folder_of_a_monorepo_is_chosen_and_looked_at(pages: Pages) -> None:
    files = {f"{folder}/{path}": text for folder in ("api", "web") for path, text in FLASK.items()}
    assert 'name="look" value="api" formnovalidate' in await look(pages, files)
    looked = await look(pages, files, look="web", name="mine", cpu="2")
    for text in ("<h2>Flask</h2>", 'name="root" type="text" value="web"', 'value="mine"', 'name="was-root" value=""'):
        assert text in looked, text
    form = {"upload": await send(pages, files), "name": "mine", "root": "none"}
    refused = await pages.browser.post("/new", data=form)
    assert refused.status_code == 422
    assert "is no folder of the code" in refused.text
    files = {"Procfile": "web: python3 app.py\nworker: python3 w.py", **FLASK}
    assert 'Further processes: <span class="m">worker</span>' in await look(pages, files)


async def test_upload_that_is_no_archive_or_not_ones_own_leads_back_to_the_beginning(pages: Pages) -> None:
    headers = {"Content-Type": "application/octet-stream", "Accept": "application/json"}
    sent = await pages.browser.post("/new/archive", content=b"no archive", headers=headers)
    other = await send(pages, FLASK)
    await pages.create()
    async with pages.stranger() as browser:
        await pages.sign_in(browser, pages.service.other)
        for one, page in ((pages.browser, sent.json()["upload_id"]), (browser, other)):
            for path in ("/new", "/builders/my-api/deploy")[: 2 if one is pages.browser else 1]:
                answer = await one.post(path, data={"upload": page, "look": ""})
                assert answer.status_code == 422
                assert "Choose a folder" in answer.text


async def test_new_code_shows_what_it_is_and_goes_on_as_the_version_before(pages: Pages) -> None:
    await pages.create(files={"Procfile": "web: python3 a.py", "a.py": ""}, entrypoint="python3 a.py")
    files = {**FLASK, "Procfile": "web: python3 app.py"}
    shown, upload = await look(pages, files, "/builders/my-api/deploy"), await send(pages, files)
    for text in ("<h2>Procfile</h2>", 'value="python3 app.py"', "Of version 1: python3 a.py"):
        assert text in shown, text
    refused = await pages.browser.post("/builders/my-api/deploy", data={"upload": upload, "port": "many"})
    assert refused.status_code == 422
    assert 'value="many"' in refused.text
    form = {"upload": upload, "entrypoint": "python3 app.py", "port": "8000", "build": "", "root": ""}
    made = await pages.browser.post("/builders/my-api/deploy", data=form)
    assert made.headers["location"] == "/builders/my-api/versions/2", made.text
    assert not await uploads_of(pages)


@pytest.mark.parametrize(
    ("template", "framework", "kind"),
    [
        ("flask", "Flask", "always_on"),
        ("fastapi", "FastAPI", "always_on"),
        ("express", "Express", "always_on"),
        ("streamlit", "Streamlit", "always_on"),
        ("static", "Static", "static"),
        ("worker", "Procfile", "worker"),
    ],
)
async def test_template_is_detected(pages: Pages, template: str, framework: str, kind: str) -> None:
    shown = (await pages.browser.get("/new", params={"template": template})).text
    for text in (
        f"<h2>{framework}</h2>",
        f'name="was-job_type" value="{kind}"',
        f'name="name" type="text" value="{template}"',
    ):
        assert text in shown, text
    assert "tell warn" not in shown


async def test_version_of_a_job_has_no_stage_that_was_not_reached(pages: Pages) -> None:
    await pages.create("job", job_type="one_time", entrypoint="python3 main.py", files={"main.py": "print(1)\n"})
    shown = (await pages.browser.get("/builders/job/versions/1")).text
    assert "Not reached" not in shown
