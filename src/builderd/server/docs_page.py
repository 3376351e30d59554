"""Pages about the API: Swagger UI from the package's own files, and what language models read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, PlainTextResponse, Response
from starlette.staticfiles import StaticFiles

from builderd.agents import guide
from builderd.server.answers import PREFIX

#: The page and its script.
FOLDER = Path(__file__).with_name("docs")
#: Swagger UI sets styles in elements and draws its icons from data; all else comes from here.
POLICY = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'"


#: Bytes of each page for models: what one reads without a thought.
MAX_BYTES = 8_192
MARKDOWN = "text/markdown; charset=utf-8"


def install(app: FastAPI) -> None:
    """Serve the page at ``/docs``, and those for language models; without a token: they hold nothing of a tenant."""

    async def page() -> Response:
        return HTMLResponse(FOLDER.joinpath("index.html").read_text(), headers={"Content-Security-Policy": POLICY})

    async def start() -> Response:
        return Response(FOLDER.joinpath("start.js").read_text(), media_type="text/javascript")

    async def agent_ready() -> Response:
        return PlainTextResponse(guide(), media_type=MARKDOWN)

    async def llms() -> Response:
        return PlainTextResponse(index(app.openapi()), media_type="text/plain; charset=utf-8")

    pages = {"/docs": page, "/docs/start.js": start, "/agent-ready.md": agent_ready, "/llms.txt": llms}
    for path, answer in pages.items():
        app.add_api_route(path, answer, include_in_schema=False)
    app.mount("/docs/assets", StaticFiles(packages=[("fastapi_offline", "static")]))


def index(document: Mapping[str, Any]) -> str:
    """Return the service's llms.txt (https://llmstxt.org): where to read on, and all calls of the OpenAPI document."""
    head, _, _ = guide().partition("\n## ")
    links = (
        "- [Guide](/agent-ready.md): what an app must do, how to deploy it by curl, answers and errors\n"
        "- [OpenAPI](/openapi.json): every field, limit and answer\n"
        "- [MCP](/mcp): these calls as tools, by POST with the same token\n"
    )
    calls = "\n".join(_calls(document))
    return f"{head.strip()}\n\n## Read on\n\n{links}\n## Calls\n\nBelow {PREFIX}, with a token:\n\n{calls}\n"


def _calls(document: Mapping[str, Any]) -> Iterator[str]:
    for path, methods in document["paths"].items():
        for method, call in methods.items():
            if path.startswith(PREFIX):
                yield f"- {method.upper()} {path.removeprefix(PREFIX)}: {_sentence(call.get('description', ''))}"


def _sentence(text: str) -> str:
    """Return the first sentence, on one line."""
    return " ".join(text.split("\n\n", 1)[0].split()).partition(". ")[0].rstrip(".")
