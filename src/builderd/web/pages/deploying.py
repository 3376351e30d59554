"""Deploying: a new builder, or new code for one; the code is dropped, chosen or pasted in the browser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from builderd.api.server.bodies import announced_length, pieces, receive
from builderd.domain.errors import BuilderdError, ValidationFailed
from builderd.domain.prices import Billing
from builderd.domain.resources import Resources
from builderd.domain.tokens import Scope
from builderd.schemas.v1.builders import NewBuilder
from builderd.schemas.v1.versions import NewVersion
from builderd.services import uploads
from builderd.services.uploads import Part
from builderd.web import commands
from builderd.web.pages.builder import builder_page, frame_of
from builderd.web.visits import Form, Visit, page, see_other

#: Largest request body in bytes, as of the API: 20 MB of files in base64, their paths, and the settings.
MAX_BODY_BYTES = 29_000_000
UPLOAD_SECONDS = 3600.0
#: Files that can be pasted at once without a script.
PASTED = 3
EXAMPLES: Mapping[str, tuple[str, str, Mapping[str, str]]] = {
    "flask": (
        "Flask app",
        "python3 main.py",
        {
            "main.py": "import os\n\nfrom flask import Flask\n\napp = Flask(__name__)\n\n\n"
            '@app.get("/")\ndef hello():\n'
            '    return "<!doctype html><html lang=en><title>Hello</title><h1>Hello</h1>"\n\n\n'
            'app.run(host="0.0.0.0", port=int(os.environ["PORT"]))\n',
            "requirements.txt": "flask\n",
        },
    ),
    "static": (
        "Static page",
        "python3 -m http.server $PORT",
        {"index.html": '<!doctype html>\n<html lang="en">\n<title>Hello</title>\n<h1>Hello</h1>\n'},
    ),
    "node": (
        "Node server",
        "node server.js",
        {
            "server.js": 'const http = require("http");\n\nhttp\n  .createServer((request, response) => {\n'
            '    response.setHeader("Content-Type", "text/plain");\n    response.end("Hello from Node\\n");\n  })\n'
            '  .listen(process.env.PORT, "0.0.0.0");\n',
        },
    ),
}
DEFAULTS: Mapping[str, Any] = {"name": "", "entrypoint": "", "port": "8000", "cpu": "1", "memory": "1", "disk": "3"}


async def show_new(visit: Visit) -> Response:
    """Show the form of a new builder, perhaps with an example's files in it."""
    example = EXAMPLES.get(visit.request.query_params.get("example", ""))
    values, files = dict(DEFAULTS), []
    if example is not None:
        values["entrypoint"] = example[1]
        files = list(example[2].items())
    return await _form(visit, values, files, {})


async def _form(
    visit: Visit,
    values: Mapping[str, Any],
    files: Sequence[tuple[str, str]],
    errors: Mapping[str, Sequence[str]],
    status: int = 200,
) -> Response:
    prices = visit.application.prices
    rate = prices.hourly_rate(Resources(1, 1, 3), Billing.RUNNING)
    return await visit.page(
        "new.html",
        status,
        values=values,
        files=[*files, *[("", "")] * max(0, PASTED - len(files))],
        errors=errors,
        examples=[(key, text) for key, (text, _, _) in EXAMPLES.items()],
        rate=rate,
        prices=prices,
        maximum=visit.application.limits.maximum,
        may_skip=visit.allows(Scope.SKIP_GATES),
        target="/new",
    )


async def create_pasted(visit: Visit) -> Response:
    """Create a builder of the files that were pasted into the form."""
    form = await visit.form()
    values = {name: form.text(name, str(value)) for name, value in DEFAULTS.items()}
    files = [pair for pair in zip(form.all("path"), form.all("content"), strict=False) if pair[0].strip() or pair[1]]
    try:
        new = commands.shape_of(visit.application, NewBuilder, _asked(form, files))
        builder = await commands.create(visit, new)
    except BuilderdError as error:
        if not isinstance(error, ValidationFailed):
            raise
        return await _form(visit, values, files, _by_field(error.errors), 422)
    return see_other(f"/builders/{builder.name}/versions/1")


def _asked(form: Form, files: Sequence[tuple[str, str]]) -> Mapping[str, Any]:
    """Return the form as a request of the API. A number that is none stays text, which the API's rules refuse."""
    asked: dict[str, Any] = {
        "name": form.text("name").strip(),
        "files": {path.strip(): content.replace("\r\n", "\n") for path, content in files},
        "port": number(form.text("port", "8000")),
        "resources": {name: number(form.text(name, "1")) for name in ("cpu", "memory", "disk") if form.text(name)},
        "visibility": form.text("visibility", "public"),
        "auto_stop_interval": number(form.text("auto_stop_interval", "0")),
        "require_qa": form.text("require_qa") == "yes",
    }
    if form.text("entrypoint").strip():
        asked["entrypoint"] = form.text("entrypoint").strip()
    return asked


def number(text: str) -> float | int | str:
    """Return the number that the text is, else the text itself."""
    try:
        value = float(text.strip().replace(",", "."))
    except ValueError:
        return text
    return int(value) if value == int(value) else value


def _by_field(errors: Mapping[str, Sequence[str]]) -> Mapping[str, Sequence[str]]:
    """Return the errors under the names of the form's fields: ``resources.cpu`` is ``cpu``."""
    return {name.removeprefix("resources."): why for name, why in errors.items()}


async def create_sent(visit: Visit) -> Response:
    """Create a builder, or deploy to one, as the page's script asks in JSON. Answer where to look."""
    application = visit.application
    with visit.operations.held_bytes.holding(visit.token.tenant_id) as holding:
        if "name" in visit.request.path_params:
            builder = await visit.find()
            body = await receive(visit.request, application, NewVersion, MAX_BODY_BYTES, holding)
            deployed = await commands.deploy(visit, builder, body.value)
            number_ = deployed.version or deployed.builder.version
            return JSONResponse({"location": f"/builders/{builder.name}/versions/{number_}"}, 202)
        new = await receive(visit.request, application, NewBuilder, MAX_BODY_BYTES, holding)
        made = await commands.create(visit, new.value)
        return JSONResponse({"location": f"/builders/{made.name}/versions/1"}, 202)


async def take_archive(visit: Visit) -> Response:
    """Take an archive (zip, tar, tar.gz or tar.zst) as an upload, and answer its id."""
    application, request = visit.application, visit.request
    size, tenant, rules = announced_length(request), visit.token.tenant_id, application.upload_rules
    upload, _ = await visit.write(lambda uow: uploads.create(uow, rules, tenant, size, None, visit.now))
    await uploads.receive(application, upload, Part(0, size), pieces(request, UPLOAD_SECONDS), None)
    return JSONResponse({"upload_id": upload.id}, 201)


async def show_deploy(visit: Visit) -> Response:
    """Show the form that sends new code to a builder."""
    frame = await visit.read(lambda uow: frame_of(uow, visit))
    bundle = await visit.application.bundles.get(frame.version.bundle_hash)
    return await builder_page(
        visit,
        "deploy.html",
        "versions",
        frame,
        paths=[file.path for file in bundle.files][:50],
        count=len(bundle.files),
    )


ROUTES: list[Route] = [
    page("/new", show_new, scope=Scope.WRITE),
    page("/new", create_pasted, post=True, scope=Scope.WRITE),
    page("/new/send", create_sent, post=True, scope=Scope.WRITE),
    page("/new/archive", take_archive, post=True, scope=Scope.WRITE),
    page("/builders/{name}/deploy", show_deploy, scope=Scope.WRITE),
    page("/builders/{name}/deploy", create_sent, post=True, scope=Scope.WRITE),
]
