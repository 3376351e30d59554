"""Apps in Python with a page: frameworks for sites, chats, dashboards and notebooks."""

from __future__ import annotations

import json
import tomllib
import uuid
from pathlib import Path

from tests.acceptance.zoo.app import (
    Files,
    Kept,
    Visit,
    ZooApp,
    all_of,
    answers,
    received,
    runs,
    turn,
    written,
)
from tests.acceptance.zoo.generators import from_python

#: Programs and pages of the apps.
TEXTS: dict[str, str] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())

#: A name that a visitor leaves and that the page shows after the next version.
GUEST = "Ada of the zoo"
SIGN = runs(f"echo {GUEST!r} >> guests.txt")
#: In each app's own language: what the page shows of the file.
READ = 'import os\nguests = open("guests.txt").read() if os.path.exists("guests.txt") else "nobody"\n'
SHOWN = Kept(SIGN, runs("cat guests.txt", GUEST))


def django(folder: object) -> Files:
    """Return a new project of Django's own generator, with what it takes to serve it."""
    files = from_python("django==6.1.3", "django-admin startproject mysite .")
    web = "web: gunicorn mysite.wsgi --bind 0.0.0.0:$PORT\nrelease: python manage.py migrate\n"
    return {**files, "requirements.txt": "django==6.1.3\ngunicorn==27.0.1\n", "Procfile": web}


SUPERUSER = (
    "DJANGO_SUPERUSER_PASSWORD=enclosure-7 python manage.py createsuperuser --noinput --username ada --email a@b.de"
)
ASK = "python manage.py shell -c 'from django.contrib.auth.models import User; print(User.objects.get().username)'"

DJANGO = ZooApp(
    "django",
    django,
    None,
    all_of(answers("", "The install worked successfully"), answers("admin/login/", "Django administration")),
    Kept(runs(SUPERUSER), runs(ASK, "ada")),
    "The install worked successfully",
)

FLASKR_FILES = {
    "requirements.txt": "flask==3.1.3\n",
    "blog/__init__.py": TEXTS["flaskr_app"],
    "blog/schema.sql": "CREATE TABLE IF NOT EXISTS user (id INTEGER PRIMARY KEY, name TEXT UNIQUE, secret TEXT);\n"
    "CREATE TABLE IF NOT EXISTS post (id INTEGER PRIMARY KEY, title TEXT, body TEXT, author INTEGER);\n",
    "blog/templates/index.html": "<!doctype html><title>Blog</title><link rel=stylesheet href=/static/style.css>"
    "<h1>Blog</h1>{% for post in posts %}<article><h2>{{ post.title }}</h2><small>by {{ post.name }}</small>"
    "<p>{{ post.body }}</p></article>{% else %}<p>No posts yet.</p>{% endfor %}",
    "blog/templates/form.html": "<!doctype html><title>{{ title }}</title><h1>{{ title }}</h1><form method=post>"
    "{% for name in fields %}<input name={{ name }} placeholder={{ name }}>{% endfor %}<button>Go</button></form>",
    "blog/static/style.css": "body { font-family: sans-serif; margin: 2em } h1 { color: #377ba8 }",
}


def post(visit: Visit) -> None:
    """Register, log in and write a post, as a visitor does."""
    login = {"name": "ada", "password": "tiger"}
    assert visit.get("register", "POST", data=login).status_code == 302
    answer = visit.get("login", "POST", data=login)
    assert answer.headers.get("location") == "/", answer.text
    cookie = answer.headers["set-cookie"].partition(";")[0]
    made = visit.get("create", "POST", data={"title": GUEST, "body": "I fed the gnu."}, headers={"Cookie": cookie})
    assert made.status_code == 302


FLASKR = ZooApp(
    "flaskr",
    lambda _: FLASKR_FILES,
    "flask --app blog run --host 0.0.0.0 --port $PORT",
    answers("", "<h1>Blog</h1>"),
    Kept(post, answers("", GUEST)),
    "I fed the gnu.",
)

CHAT = """\
import json
from pathlib import Path
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.responses import HTMLResponse

app = FastAPI()
history = Path("history.jsonl")
visitors: set[WebSocket] = set()
PAGE = '''<!doctype html><title>Chat</title><h1>Chat</h1><ul id=said></ul>
<form><input id=text><button>Send</button></form><script>
const socket = new WebSocket(`${location.protocol == "https:" ? "wss" : "ws"}://${location.host}/chat`)
socket.onmessage = event => { const li = document.createElement("li"); li.textContent = JSON.parse(event.data).text
  document.querySelector("#said").append(li) }
document.querySelector("form").onsubmit = event => { event.preventDefault()
  socket.send(document.querySelector("#text").value) }
</script>'''

@app.get("/")
async def page():
    return HTMLResponse(PAGE)

@app.get("/history")
async def said():
    return [json.loads(line) for line in history.read_text().splitlines()] if history.exists() else []

@app.websocket("/chat")
async def chat(socket: WebSocket):
    await socket.accept()
    visitors.add(socket)
    for line in await said():
        await socket.send_json(line)
    try:
        while True:
            line = {"text": await socket.receive_text()}
            with history.open("a") as file:
                file.write(json.dumps(line) + "\\n")
            for visitor in list(visitors):
                await visitor.send_json(line)
    except WebSocketDisconnect:
        visitors.discard(socket)
"""


def two_talk(visit: Visit) -> None:
    """Prove that what one visitor writes reaches another one."""
    words = f"hello {uuid.uuid4()}"
    with visit.socket("chat") as one, visit.socket("chat") as other:
        one.send(words)
        assert any(words in message for message in received(other, 30))


FASTAPI_CHAT = ZooApp(
    "fastapi-chat",
    written(main_py=CHAT, requirements_txt="fastapi==0.165.0\nuvicorn==0.54.0\nwebsockets==17.4\n"),
    "uvicorn main:app --host 0.0.0.0 --port $PORT",
    all_of(answers("", "<h1>Chat</h1>"), two_talk),
    Kept(turn("chat", GUEST, GUEST), answers("history", GUEST)),
    GUEST,
)

STREAMLIT = ZooApp(
    "streamlit",
    written(
        app_py=READ + 'import pandas as pd, streamlit as st\nst.title("Streamlit in the zoo")\n'
        'st.line_chart(pd.DataFrame({"visitors": [3, 1, 4, 1, 5]}))\nst.write(guests)\n',
        requirements_txt="streamlit==1.67.0\n",
    ),
    "streamlit run app.py --server.port $PORT --server.address 0.0.0.0",
    answers("_stcore/health", "ok"),
    SHOWN,
    GUEST,
)

NICEGUI = ZooApp(
    "nicegui",
    written(
        main_py=READ + 'from nicegui import ui\n\n@ui.page("/")\ndef page():\n'
        '    ui.label("NiceGUI in the zoo")\n    label = ui.label("nothing yet")\n'
        "    ui.timer(0.1, lambda: label.set_text(guests), once=True)\n\n"
        'ui.run(host="0.0.0.0", port=int(os.environ["PORT"]), reload=False, show=False)\n',
        requirements_txt="nicegui==3.18.0\n",
    ),
    "python3 main.py",
    answers("", "NiceGUI in the zoo"),
    SHOWN,
    GUEST,
)


def gradio_call(visit: Visit) -> None:
    """Prove that the function behind the page is called, over the events of Gradio's own API."""
    event = visit.get("gradio_api/call/greet", "POST", json={"data": ["zoo"]}).json()["event_id"]
    assert "Hello zoo" in visit.get(f"gradio_api/call/greet/{event}").text


GRADIO = ZooApp(
    "gradio",
    written(
        app_py=READ + "import gradio as gr\n\ndef greet(name):\n    return f'Hello {name}, after {guests}'\n\n"
        'with gr.Blocks(title="Gradio") as demo:\n    gr.Markdown("# Gradio in the zoo\\n" + guests)\n'
        '    name = gr.Textbox(label="Name")\n    said = gr.Textbox(label="Greeting")\n'
        '    gr.Button("Greet").click(greet, name, said, api_name="greet")\n'
        'demo.launch(server_name="0.0.0.0", server_port=int(os.environ["PORT"]))\n',
        requirements_txt="gradio==6.31.0\n",
    ),
    "python3 app.py",
    all_of(answers("", "Gradio"), gradio_call),
    SHOWN,
    GUEST,
)

DASH = ZooApp(
    "dash",
    written(
        app_py=READ + "import plotly.express as px\nfrom dash import Dash, dcc, html\n\napp = Dash(__name__)\n"
        "server = app.server\n"
        'app.layout = html.Div([html.H1("Dash in the zoo"), html.P(guests),'
        ' dcc.Graph(figure=px.bar(x=["gnu", "yak"], y=[4, 2]))])\n',
        requirements_txt="dash==4.4.1\npandas==3.1.1\ngunicorn==27.0.1\n",
    ),
    "gunicorn app:server --bind 0.0.0.0:$PORT",
    all_of(answers("", "_dash-renderer"), answers("_dash-layout", "Dash in the zoo")),
    SHOWN,
    GUEST,
)

PANEL = ZooApp(
    "panel",
    written(
        app_py=READ + 'import panel as pn\n\npn.extension()\nslider = pn.widgets.IntSlider(name="Gnus", end=9)\n'
        'pn.Column("# Panel in the zoo", guests, slider, pn.bind(lambda n: f"{n} gnus", slider)).servable()\n',
        requirements_txt="panel==1.10.0\n",
    ),
    'panel serve app.py --address 0.0.0.0 --port $PORT --allow-websocket-origin "*"',
    answers("app", "<title>"),
    SHOWN,
    GUEST,
    "app",
)

MARIMO = ZooApp(
    "marimo",
    written(
        notebook_py="import marimo\n\napp = marimo.App()\n\n\n@app.cell\ndef _():\n    import marimo as mo\n"
        '    import os\n    guests = open("guests.txt").read() if os.path.exists("guests.txt") else "nobody"\n'
        '    mo.md("# Marimo in the zoo\\n\\n" + guests)\n    return\n\n\nif __name__ == "__main__":\n    app.run()\n',
        requirements_txt="marimo==0.25.2\n",
    ),
    "marimo run notebook.py --host 0.0.0.0 --port $PORT --headless",
    answers("", "marimo"),
    SHOWN,
    GUEST,
)

JUPYTER = {"Authorization": "token zoo"}


def run_cell(visit: Visit) -> None:
    """Prove that a kernel starts and runs a cell, over its WebSocket."""
    kernel = visit.get("api/kernels", "POST", headers=JUPYTER, json={}).json()["id"]
    header = {"msg_id": "1", "session": "1", "username": "", "msg_type": "execute_request", "version": "5.3"}
    content = {"code": "print(6 * 7)", "silent": False, "store_history": False, "allow_stdin": False}
    parts = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
    with visit.socket(f"api/kernels/{kernel}/channels", additional_headers=JUPYTER) as socket:
        socket.send(json.dumps(parts))
        assert any('"text": "42' in message or '"text":"42' in message for message in received(socket, 60))
    visit.get(f"api/kernels/{kernel}", "DELETE", headers=JUPYTER)


NOTEBOOK = {
    "type": "notebook",
    "content": {
        "cells": [{"cell_type": "markdown", "id": "a", "metadata": {}, "source": f"# {GUEST}"}],
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    },
}
JUPYTERLAB = ZooApp(
    "jupyterlab",
    written(requirements_txt="jupyterlab==4.6.6\n"),
    "jupyter lab --ip 0.0.0.0 --port $PORT --no-browser --IdentityProvider.token=zoo",
    all_of(answers("api/status", "started", headers=JUPYTER), run_cell),
    Kept(
        answers("api/contents/zoo.ipynb", "zoo.ipynb", "PUT", 201, headers=JUPYTER, json=NOTEBOOK),
        answers("api/contents/zoo.ipynb", GUEST, headers=JUPYTER),
    ),
    GUEST,
    "lab/tree/zoo.ipynb?token=zoo",
)

INSERT = (
    "import sqlite3; db = sqlite3.connect('zoo.db'); "
    f"db.execute('INSERT INTO animals VALUES (?, 2)', ['{GUEST}']); db.commit()"
)
DATASETTE = ZooApp(
    "datasette",
    written(requirements_txt="datasette==0.65.5\n", seed_py=TEXTS["seed"]),
    "datasette zoo.db --host 0.0.0.0 --port $PORT",
    answers("zoo/animals.json?_shape=array", "gnu"),
    Kept(runs(f'python3 -c "{INSERT}"'), answers("zoo/animals.json?_shape=array", GUEST)),
    GUEST,
    "zoo/animals",
    {"release": "python3 seed.py"},
)

MKDOCS = ZooApp(
    "mkdocs",
    lambda _: {**from_python("mkdocs==1.6.1", "mkdocs new ."), "requirements.txt": "mkdocs==1.6.1\n"},
    "mkdocs serve --dev-addr 0.0.0.0:$PORT",
    answers("", "Welcome to MkDocs"),
    Kept(runs(f"echo '# {GUEST}' > docs/kept.md"), answers("kept/", GUEST)),
    GUEST,
    "kept/",
)

PYTHON_APPS = (
    DJANGO,
    FLASKR,
    FASTAPI_CHAT,
    STREAMLIT,
    NICEGUI,
    GRADIO,
    DASH,
    PANEL,
    MARIMO,
    JUPYTERLAB,
    DATASETTE,
    MKDOCS,
)
