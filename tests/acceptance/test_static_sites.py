"""Static sites on the real web server: what visitors get, what they never get, and folders of hostile names."""

from __future__ import annotations

import time
from collections.abc import Mapping

import pytest
from tests.acceptance.live_service import LiveService

pytestmark = [pytest.mark.root, pytest.mark.engines]

#: Ends a directive, opens a block, names a variable, and quotes, if it ever stood in the configuration.
HOSTILE = """a; } server { listen 9; root b; } {$uri "'\\ %0a"""
QUOTED = HOSTILE.replace("'", "'\\''")
HIDDEN = (
    *(".env", ".git/config", "sub/.htpasswd", "app.py", "sub/Lib.PY", "server.go", "config.php", "config.php.bak"),
    *("package.json", "requirements.txt", "Dockerfile", "builder.toml", "yarn.lock", "docker-compose.yml"),
    *("server.pem", "id_rsa", "data.sqlite3", "data.db-wal", "dump.sql.gz", "notes.txt~", "main.js.swp", "app.log"),
    *("node_modules/x/index.js", "prod.env", ".well-known/.git/config"),
)
FILES = {
    "index.html": "<h1>home</h1>",
    "404.html": "<h1>nothing</h1>",
    "about.html": "about",
    "docs/index.html": "docs",
    "manifest.json": "{}",
    ".well-known/security.txt": "Contact: x",
    "assets/index-B1xYz_a2.js": "let a = 1 // " + "a" * 2000,
    "photo-IMG_2024.jpg": "x",
    **dict.fromkeys(HIDDEN, "secret"),
    "package.json": '{"name": "secret"}',
    "requirements.txt": "# secret",
}
PLAIN = {"Accept-Encoding": "identity"}


def test_site_is_served_as_browsers_expect_it(service: LiveService) -> None:
    with service.deployed("site", FILES, None, job_type="static") as data:
        shown = (data["entrypoint"], data["resources"]["memory"], data["qa_passed"], data["status"])
        assert shown == ("serve-static .", 0.125, True, "running")

        def get(path: str, status: int = 200, headers: Mapping[str, str] = PLAIN) -> tuple[str, Mapping[str, str]]:
            answer = service.visit(data, path, headers=headers)
            assert answer.status_code == status, (path, answer.status_code)
            return answer.text, answer.headers

        home, headers = get("")
        assert (home, headers["content-type"]) == ("<h1>home</h1>", "text/html; charset=utf-8")
        assert headers["cache-control"] == "no-cache"
        for name, value in (("If-None-Match", headers["etag"]), ("If-Modified-Since", headers["last-modified"])):
            assert get("", 304, {name: value})[0] == ""
        assert get("about")[0] == "about"
        for path, to in (("docs", "/docs/"), ("about/", "/about")):
            assert get(path, 301)[1]["location"] == to
        assert get("docs/")[0] == "docs"
        for path in ("docs/gone", "gone", "%5Cevil.example/", "docs%0d%0aX-Own:%20y/"):
            assert get(path, 404)[0] == "<h1>nothing</h1>"
        _, headers = get("assets/index-B1xYz_a2.js", 200, {"Accept-Encoding": "gzip"})
        assert (headers["content-encoding"], headers["vary"]) == ("gzip", "Accept-Encoding")
        assert headers["cache-control"] == "public, max-age=31536000, immutable"
        assert get("assets/index-B1xYz_a2.js", 206, {"Range": "bytes=4-8", **PLAIN})[0] == "a = 1"
        assert get("photo-IMG_2024.jpg")[1]["cache-control"] == "no-cache"
        assert get("manifest.json")[1]["content-type"].startswith("application/json")
        assert get(".well-known/security.txt")[0] == "Contact: x"
        for path in (*HIDDEN, "%2egit/config", "app%2epy", "app.py/", "//app.py", "docs/../.env", "CONFIG.PHP"):
            assert "secret" not in get(path, 404)[0], path
        for path in ("..%2f..%2fetc/passwd", "%2e%2e/%2e%2e/etc/passwd", "app.py%00.html"):
            assert service.visit(data, path).status_code in (400, 404), path
        assert service.visit(data, "", "POST").status_code == 405
        # The new page has as many bytes, and the old ones come back: their tags must not be mistaken for each other's.
        address, tags = f"/builders/{data['uuid']}", [get("")[1]["etag"]]
        for call, body in (("PUT", {"files": {"index.html": "<h1>HOME</h1>"}}), ("POST", {"version": 1})):
            time.sleep(1)  # a tag has the second of a change
            answer = service.call(call, address if call == "PUT" else f"{address}/rollback", json=body)
            assert answer.status_code == 200, answer.text
            text, headers = get("", 200, {"If-None-Match": tags[-1]})
            assert text == ("<h1>HOME</h1>" if call == "PUT" else "<h1>home</h1>")
            tags.append(headers["etag"])
        get("about.html", 200)
        lines = [line["text"] for line in service.call("GET", f"{address}/logs?tail=1").json()["data"]]
        assert lines == ['"GET /about.html HTTP/1.1" 200 5']


def test_output_of_a_build_is_served_and_its_links_lead_nowhere(service: LiveService) -> None:
    made = (
        f"mkdir -p out/deep && mv '{QUOTED}' out/ && cd out/'{QUOTED}' && echo app > index.html && mkdir assets docs"
        " && echo > assets/a-CizuXTuG.js && echo big > big.js && echo down > docs/load.py"
        " && printf packed | gzip > big.js.gz"
        " && ln -s /etc/passwd passwd.txt && ln -s / all && ln -s ../../.env env.txt && ln -s index.html other.html"
    )
    files = {f"{HOSTILE}/x": "", ".env": "secret"}
    start = f"serve-static 'out/{QUOTED}' --single-page"
    with service.deployed("built", files, start, job_type="static", build=made) as data:
        for path in ("", "deep/link", "users/4.5", "assets", "passwd", "all/etc/passwd", "env"):
            answer = service.visit(data, path, follow_redirects=True)
            assert (answer.status_code, answer.text) == (200, "app\n"), path
        for path in ("gone.js", "passwd.txt", "env.txt", "other.html", "all/etc/host.conf", "index.html/x.js"):
            assert service.visit(data, path).status_code == 404, path
        assert service.visit(data, "docs/load.py").text == "down\n"
        assert "immutable" in service.visit(data, "assets/a-CizuXTuG.js").headers["cache-control"]
        assert service.visit(data, "big.js", headers={"Accept-Encoding": "gzip"}).text == "packed"


def test_python_of_a_page_that_runs_it_in_the_browser_is_served_under_strong_isolation(service: LiveService) -> None:
    files = {"index.html": '<script type="py" src="main.py"></script> <!-- PyScript -->', "main.py": "1", "a.sh": "1"}
    with service.deployed("py", files, None, job_type="static", isolation="strong") as data:
        assert [service.visit(data, path).status_code for path in ("", "main.py", "a.sh")] == [200, 200, 404]


@pytest.mark.parametrize(
    ("start", "why"),
    [
        ("serve-static ../..", "the folder ../.. is outside of /app"),
        ("serve-static /etc", "the folder /etc is outside of /app"),
        ("serve-static dist", "there is no folder dist in /app: the build must make it, or name another"),
        ("serve-static . --single-page", "the folder . has no index.html"),
        ("serve-static . ..", "call it as: serve-static FOLDER [--single-page]"),
    ],
)
def test_folder_that_cannot_be_served_is_named(service: LiveService, start: str, why: str) -> None:
    body = {"name": "wrong", "entrypoint": start, "files": {"a.txt": ""}, "job_type": "static"}
    answer = service.call("POST", "/builders", json=body)
    service.call("DELETE", f"/builders/{answer.json()['data']['uuid']}")
    assert (answer.status_code, answer.json()["code"]) == (422, "start_failed")
    assert answer.json()["message"].endswith(f"Its last lines:\nserve-static: {why}")
