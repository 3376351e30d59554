"""Small real apps of many frameworks, all sound; and broken ones, each in one way, with the check that tells."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.acceptance.live_service import TINY_APP


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


FLASK = """
import sqlite3
from flask import Flask, redirect, render_template, request
app = Flask(__name__)
def query(*words):
    with sqlite3.connect("book.db") as db:
        db.execute("CREATE TABLE IF NOT EXISTS guests (name TEXT)")
        return db.execute(*words).fetchall()
@app.get("/")
def show():
    return render_template("book.html", names=[name for (name,) in query("SELECT name FROM guests")])
@app.post("/")
def sign():
    query("INSERT INTO guests VALUES (?)", [request.form["name"]])
    return redirect("/")
if __name__ == "__main__":
    app.run(host="0.0.0.0", port=PORT)
"""
BOOK = """\
<!doctype html><html lang=en><title>Guests</title><main><h1>Guests</h1><ul>
{% for name in names %}<li>{{ name }}{% endfor %}
</ul><form method=post><label>Name <input name=name></label><button>Sign</button></form></main></html>
"""
FASTAPI = """
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
app = FastAPI(title="Sums")
class Sum(BaseModel):
    numbers: list[int]
@app.post("/sums")
async def add(given: Sum) -> dict[str, int]:
    return {"sum": sum(given.numbers)}
uvicorn.run(app, host="0.0.0.0", port=PORT)
"""
CRUD = """
import sqlite3
import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, Field
app = FastAPI()
db = sqlite3.connect("notes.db", check_same_thread=False)
db.execute("CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, text TEXT)")
class Note(BaseModel):
    text: str = Field(max_length=100, pattern="^[ -~]*$")
@app.get("/", response_class=HTMLResponse)
def home(): return HOME
@app.get("/about", response_class=HTMLResponse)
def about(): return ABOUT
@app.get("/notes")
def notes(): return [{"id": i, "text": t} for i, t in db.execute("SELECT id, text FROM notes LIMIT 100")]
@app.post("/notes", status_code=201)
def add(note: Note):
    with db: return {"id": db.execute("INSERT INTO notes (text) VALUES (?)", [note.text]).lastrowid}
@app.delete("/notes/{note_id}")
def remove(note_id: int):
    if not 0 <= note_id < 2**31: raise HTTPException(404)
    with db: return {"removed": db.execute("DELETE FROM notes WHERE id = ?", [note_id]).rowcount}
uvicorn.run(app, host="0.0.0.0", port=PORT)
"""
STARLETTE = """
import uvicorn
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Route
async def home(request): return HTMLResponse(HOME)
async def about(request): return HTMLResponse(ABOUT)
uvicorn.run(Starlette(routes=[Route("/", home), Route("/about", about)]), host="0.0.0.0", port=PORT)
"""
DJANGO = """
import sys
from django.conf import settings
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="of-a-test", DEBUG=False)
from django.core.management import execute_from_command_line
from django.http import HttpResponse
from django.urls import path
urlpatterns = [path("", lambda r: HttpResponse(HOME)), path("about", lambda r: HttpResponse(ABOUT))]
if __name__ == "__main__":
    execute_from_command_line(["main.py", "runserver", "--noreload", f"0.0.0.0:{PORT}"])
"""
AIOHTTP = """
from aiohttp import web
async def home(request): return web.Response(text=HOME, content_type="text/html")
async def about(request): return web.Response(text=ABOUT, content_type="text/html")
app = web.Application()
app.add_routes([web.get("/", home), web.get("/about", about)])
web.run_app(app, host="0.0.0.0", port=PORT)
"""
BOTTLE = """
from bottle import route, run
@route("/")
def home(): return HOME
@route("/about")
def about(): return ABOUT
run(host="0.0.0.0", port=PORT)
"""
TORNADO = """
import asyncio
import tornado.web
def page(text):
    return type("Page", (tornado.web.RequestHandler,), {"get": lambda self: self.write(text)})
async def main():
    tornado.web.Application([("/", page(HOME)), ("/about", page(ABOUT))]).listen(PORT, "0.0.0.0")
    await asyncio.Event().wait()
asyncio.run(main())
"""
DASH = """
from dash import Dash, Input, Output, dcc, html
app = Dash(__name__)
app.layout = html.Main([html.H1("Squares"), dcc.Input(id="n", type="number", value=3), html.Div(id="out")])
@app.callback(Output("out", "children"), Input("n", "value"))
def square(n): return f"{n} squared is {(n or 0) ** 2}"
app.run(host="0.0.0.0", port=PORT)
"""
STREAMLIT = """
import streamlit as st
st.title("Squares")
n = st.slider("A number", 0, 10, 3)
st.write(f"{n} squared is {n * n}")
"""
NICEGUI = """
from nicegui import ui
@ui.page("/")
def page():
    label = ui.label("nothing yet")
    ui.button("Press", on_click=lambda: label.set_text("pressed"))
ui.run(host="0.0.0.0", port=PORT, reload=False, show=False)
"""
GRADIO = """
import gradio as gr
with gr.Blocks(analytics_enabled=False, title="Greeter") as demo:
    name = gr.Textbox(label="Name")
    out = gr.Textbox(label="Greeting")
    gr.Button("Greet").click(lambda n: f"Hello {n}", name, out)
demo.launch(server_name="0.0.0.0", server_port=PORT)
"""
QUART = """
from quart import Quart
app = Quart(__name__)
@app.get("/")
async def home(): return HOME
@app.get("/about")
async def about(): return ABOUT
app.run(host="0.0.0.0", port=PORT)
"""
LITESTAR = """
import uvicorn
from litestar import Litestar, MediaType, get
@get("/", media_type=MediaType.HTML)
async def home() -> str: return HOME
@get("/about", media_type=MediaType.HTML)
async def about() -> str: return ABOUT
uvicorn.run(Litestar([home, about]), host="0.0.0.0", port=PORT)
"""
CHERRYPY = """
import cherrypy
class Site:
    @cherrypy.expose
    def index(self): return HOME
    @cherrypy.expose
    def about(self): return ABOUT
cherrypy.quickstart(Site(), "/", {"global": {"server.socket_host": "0.0.0.0", "server.socket_port": PORT}})
"""
FALCON = """
import falcon
from wsgiref.simple_server import make_server
class Page:
    def __init__(self, text): self.text = text
    def on_get(self, request, response):
        response.content_type, response.text = "text/html", self.text
app = falcon.App()
app.add_route("/", Page(HOME))
app.add_route("/about", Page(ABOUT))
make_server("0.0.0.0", PORT, app).serve_forever()
"""
NODE = """
require("node:http").createServer((request, response) => {
  response.setHeader("Content-Type", "text/html");
  response.end(request.url === "/about" ? ABOUT : HOME);
}).listen(port, "0.0.0.0");
"""
EXPRESS = """
const app = require("express")();
app.get("/", (request, response) => response.send(HOME));
app.get("/about", (request, response) => response.send(ABOUT));
app.listen(port, "0.0.0.0");
"""
FASTIFY = """
const app = require("fastify")();
app.get("/", (request, reply) => reply.type("text/html").send(HOME));
app.get("/about", (request, reply) => reply.type("text/html").send(ABOUT));
app.listen({ port, host: "0.0.0.0" });
"""
KOA = """
const Koa = require("koa");
const app = new Koa();
app.use(async (context) => { context.type = "html"; context.body = context.path === "/about" ? ABOUT : HOME; });
app.listen(port, "0.0.0.0");
"""

SOUND = (
    App(
        "flask",
        {"requirements.txt": "flask", "main.py": PAGES + FLASK, "templates/book.html": BOOK},
    ),
    App(
        "flask-gunicorn",
        {"requirements.txt": "flask\ngunicorn", "main.py": PAGES + FLASK, "templates/book.html": BOOK},
        "gunicorn --bind 0.0.0.0:$PORT --workers 2 main:app",
    ),
    python("fastapi", "fastapi\nuvicorn", FASTAPI),
    python("fastapi-crud", "fastapi\nuvicorn", CRUD),
    python("starlette", "starlette\nuvicorn", STARLETTE),
    python("django", "django", DJANGO),
    python("aiohttp", "aiohttp", AIOHTTP),
    python("bottle", "bottle", BOTTLE),
    python("tornado", "tornado", TORNADO),
    python("dash", "dash", DASH),
    python(
        "streamlit",
        "streamlit",
        STREAMLIT,
        entrypoint="streamlit run main.py --server.address 0.0.0.0 --server.port $PORT --server.headless true",
    ),
    python("nicegui", "nicegui>=3,<4", NICEGUI),
    # Of the 83 operations that it publishes by itself, 13 answer some of what they are asked with 500.
    python("gradio", "gradio", GRADIO, fails=frozenset({"openapi", "log"})),
    python("quart", "quart", QUART),
    python("litestar", "litestar\nuvicorn", LITESTAR),
    python("cherrypy", "cherrypy", CHERRYPY),
    python("falcon", "falcon", FALCON),
    node("node-http", {}, NODE),
    node("express", {"express": "^5"}, EXPRESS),
    node("fastify", {"fastify": "^5"}, FASTIFY),
    node("koa", {"koa": "^3"}, KOA),
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


LEAK = """
import threading, time
def leak():
    held = []
    while True:
        held.append(b"x" * 20_000_000)
        time.sleep(0.01)
"""
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
    Twin(tiny("on-loopback", ("0.0.0.0", "127.0.0.1")), "start_failed", "port", "127.0.0.1:8000"),
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
            before=LEAK,
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
