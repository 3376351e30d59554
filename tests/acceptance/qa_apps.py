"""Small real apps of many frameworks, all sound; and broken ones, each in one way, with the check that tells."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.acceptance.live_service import TINY_APP

#: Programs and pages of the apps.
TEXTS: dict[str, str] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())


@dataclass(frozen=True)
class App:
    """A create body, and the checks of the report that fail because of its framework."""

    name: str
    files: dict[str, Any]
    entrypoint: str = "python3 main.py"
    more: dict[str, Any] = field(default_factory=dict)
    fails: frozenset[str] = frozenset()

    @property
    def body(self) -> dict[str, Any]:
        return {"name": self.name, "entrypoint": self.entrypoint, "files": self.files, "port": 8000, **self.more}


PAGE = (
    "<!doctype html><html lang=en><head><title>{0}</title></head>"
    "<body><main><h1>{0}</h1><p><a href=/about>About</a></p></main></body></html>"
)
HOME, ABOUT = PAGE.format("Home"), PAGE.format("About")
PAGES = f"HOME, ABOUT = {HOME!r}, {ABOUT!r}\nimport os\nPORT = int(os.environ['PORT'])\n"


def python(name: str, requirements: str, main: str, **more: Any) -> App:
    files = {"requirements.txt": requirements, "main.py": PAGES + main}
    fails = more.pop("fails", frozenset())
    return App(name, files, more.pop("entrypoint", "python3 main.py"), more, fails)


def node(name: str, dependencies: dict[str, str], main: str) -> App:
    import json

    package = json.dumps({"name": name, "private": True, "dependencies": dependencies})
    head = f"const HOME = {json.dumps(HOME)}, ABOUT = {json.dumps(ABOUT)}, port = Number(process.env.PORT);\n"
    files = {"server.js": head + main, **({"package.json": package} if dependencies else {})}
    return App(name, files, "node server.js")


SOUND = (
    App(
        "flask",
        {"requirements.txt": "flask", "main.py": PAGES + TEXTS["flask"], "templates/book.html": TEXTS["book"]},
    ),
    App(
        "flask-gunicorn",
        {
            "requirements.txt": "flask\ngunicorn",
            "main.py": PAGES + TEXTS["flask"],
            "templates/book.html": TEXTS["book"],
        },
        "gunicorn --bind 0.0.0.0:$PORT --workers 2 main:app",
    ),
    python("fastapi", "fastapi\nuvicorn", TEXTS["fastapi"]),
    python("fastapi-crud", "fastapi\nuvicorn", TEXTS["crud"]),
    python("starlette", "starlette\nuvicorn", TEXTS["starlette"]),
    python("django", "django", TEXTS["django"]),
    python("aiohttp", "aiohttp", TEXTS["aiohttp"]),
    python("bottle", "bottle", TEXTS["bottle"]),
    python("tornado", "tornado", TEXTS["tornado"]),
    python("dash", "dash", TEXTS["dash"]),
    python(
        "streamlit",
        "streamlit",
        TEXTS["streamlit"],
        entrypoint="streamlit run main.py --server.address 0.0.0.0 --server.port $PORT --server.headless true",
    ),
    python("nicegui", "nicegui>=3,<4", TEXTS["nicegui"]),
    # Of the 83 operations that it publishes by itself, 13 answer some of what they are asked with 500.
    python("gradio", "gradio", TEXTS["gradio"], fails=frozenset({"openapi", "log"})),
    python("quart", "quart", TEXTS["quart"]),
    python("litestar", "litestar\nuvicorn", TEXTS["litestar"]),
    python("cherrypy", "cherrypy", TEXTS["cherrypy"]),
    python("falcon", "falcon", TEXTS["falcon"]),
    node("node-http", {}, TEXTS["node"]),
    node("express", {"express": "^5"}, TEXTS["express"]),
    node("fastify", {"fastify": "^5"}, TEXTS["fastify"]),
    node("koa", {"koa": "^3"}, TEXTS["koa"]),
    App(
        "static",
        {"index.html": HOME.replace("/about", "/about.html"), "about.html": ABOUT},
        "python3 -m http.server $PORT",
    ),
)


@dataclass(frozen=True)
class Twin:
    """A broken app: ``code`` is what the call is answered with under ``require_qa``, None where the gate passes.

    ``check`` has the ``outcome``, in the gate or in the report, and its message or findings hold the ``word``.
    """

    app: App
    code: str | None
    check: str
    word: str
    outcome: str = "failed"


SERVE = 'HTTPServer(("0.0.0.0", int(os.environ["PORT"])), App).serve_forever()'
HTML = "self.send_response(200)\n        self.send_header('Content-Type', 'text/html')"


def tiny(name: str, *replaced: tuple[str, str], before: str = "", **more: Any) -> App:
    main = TINY_APP
    for old, new in replaced:
        assert old in main, old
        main = main.replace(old, new)
    return App(name, {"main.py": before + main}, more=more)


def page(name: str, html: str) -> App:
    """Answers ``/`` with this page, and everything else with 404."""
    answer = f"body = {html!r}.encode() if self.path == '/' else b''"
    head = "self.send_response(200 if self.path == '/' else 404)\n        self.send_header('Content-Type', 'text/html')"
    return tiny(
        name, ('body = os.environ.get("GREETING", "hello").encode()', answer), ("self.send_response(200)", head)
    )


LATER = (
    "import os, threading, time\ndef end():\n    time.sleep(2)\n    os._exit(5)\nthreading.Thread(target=end).start()\n"
)

BROKEN = (
    Twin(App("crash-on-start", {"main.py": "raise SystemExit('no config')"}), "start_failed", "port", "no config"),
    Twin(
        tiny("crash-on-first-request", ("body = os.environ", "os._exit(3); body = os.environ")),
        "qa_failed",
        "alive",
        "exited with code 3",
    ),
    Twin(tiny("answers-500", ("send_response(200)", "send_response(500)")), "qa_failed", "answer", "500"),
    Twin(tiny("wrong-port", ('int(os.environ["PORT"])', "5000")), "start_failed", "port", "port 5000"),
    Twin(
        tiny("slow-start", before="import time\ntime.sleep(40)\n"),
        None,
        "port",
        "held for 30 s only",
        outcome="warning",
    ),
    Twin(
        tiny(
            "leaks",
            ("body = os.environ", "threading.Thread(target=leak).start(); body = os.environ"),
            before=TEXTS["leak"],
            resources={"memory": 0.125},
        ),
        "qa_failed",
        "memory",
        "out of memory",
    ),
    Twin(tiny("exits-after-2-s", before=LATER), None, "stays_up", "exited with code 5"),
    Twin(
        tiny("ignores-sigterm", before="import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"),
        None,
        "sigterm",
        "had to be killed",
    ),
    Twin(
        tiny(
            "loses-its-data",
            ("body = os.environ", "open('data.txt', 'a').write('a visit\\n'); body = os.environ"),
            before="open('data.txt', 'w').close()\n",
        ),
        None,
        "files",
        "data.txt shrank",
    ),
    Twin(
        page(
            "console-error",
            HOME.replace("</main>", "<script>undefinedFunction()</script></main>").replace("/about", "/"),
        ),
        None,
        "console",
        "undefinedFunction is not defined",
    ),
    Twin(page("broken-link", HOME), None, "links", "/about was answered 404"),
)
