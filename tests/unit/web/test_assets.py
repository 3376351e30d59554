"""Static files are kept by browsers for a year, under a path that changes with their content."""

from __future__ import annotations

import gzip

from tests.unit.web.conftest import Pages

from builderd.web.assets import Assets


async def test_a_file_is_immutable_under_its_hash_and_nowhere_else(pages: Pages) -> None:
    url = Assets().url("app.css")
    answer = await pages.browser.get(url)
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert "asset:" not in answer.text
    assert Assets().url("recursive.woff2") in answer.text
    for wrong in ("/static/0000000000000000/app.css", "/static/x/../app.py", "/static/x/nothing.css"):
        assert (await pages.browser.get(wrong)).status_code == 404


def test_the_first_page_is_small() -> None:
    """HTML apart, without the font: what the list of builders loads."""
    assets = Assets()
    sizes = {name: len(assets._assets[name].packed or b"") for name in ("app.css", "page.js", "htmx.js", "icons.svg")}
    assert sum(sizes.values()) < 45_000, sizes
    assert gzip.decompress(assets._assets["page.js"].packed or b"") == assets._assets["page.js"].content
