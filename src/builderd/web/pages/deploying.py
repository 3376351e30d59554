"""Deploying: a new builder, or new code for one; the code is dropped, chosen or pasted in the browser."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from starlette.responses import JSONResponse, Response

from builderd.application import Application
from builderd.builders.model import Builder, JobType
from builderd.code import service as bundles
from builderd.code.service import Part
from builderd.core.errors import BuilderdError, EngineUnavailable, ValidationFailed
from builderd.core.resources import Resources
from builderd.money.model import Billing
from builderd.schemas.builders import NewBuilder
from builderd.schemas.shape import Shape
from builderd.schemas.versions import NewVersion
from builderd.server import requests
from builderd.server.bodies import announced_length, pieces, receive
from builderd.server.body_parser import take
from builderd.server.operations import sent_by
from builderd.tokens.model import Scope
from builderd.versions import service as deployments
from builderd.versions.model import Isolation, Version
from builderd.versions.service import Deployed
from builderd.web.pages.builder import builder_page, frame_of
from builderd.web.visits import Form, Visit, page, see_other

#: Largest request body in bytes, as of the API: 20 MB of files in base64, their paths, and the settings.
MAX_BODY_BYTES = 29_000_000
UPLOAD_SECONDS = 3600.0
#: Files that can be pasted at once without a script.
PASTED = 3
EXAMPLES = {
    key: (one["title"], one["entrypoint"], one["files"])
    for key, one in tomllib.loads(Path(__file__).parents[1].joinpath("examples.toml").read_text()).items()
}


@page("/new", scope=Scope.WRITE)
async def show_new(visit: Visit) -> Response:
    """Show the form of a new builder, perhaps with an example's files in it."""
    example = EXAMPLES.get(visit.request.query_params.get("example", ""))
    # Of an untouched form.
    values: dict[str, Any] = {**TEXTS, **dict.fromkeys(BOXES, False), "env": [], "credentials": []}
    files = []
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
    application = visit.application
    found = await visit.read(lambda uow: uow.credentials.list(visit.token.tenant_id))
    default = application.limits.default_isolation
    return await visit.page(
        "new.html",
        status,
        values={**values, "isolation": values["isolation"] or default},
        files=[*files, *[("", "")] * max(0, PASTED - len(files))],
        errors=errors,
        examples=[(key, text) for key, (text, _, _) in EXAMPLES.items()],
        rates={billing.value: application.prices.hourly_rate(Resources(1, 1, 3), billing) for billing in Billing},
        prices=application.prices,
        maximum=application.limits.maximum,
        freeze_after=application.limits.freeze_after,
        credentials=[one.name for one in found],
        isolations=_isolations(application),
        may_skip=visit.allows(Scope.SKIP_GATES),
    )


def _isolations(application: Application) -> Sequence[tuple[str, str | None]]:
    """Return each isolation with what the machine lacks for it, None where it has all or is not looked at yet."""
    try:
        return [(one.value, application.engine.sandboxes.supports(one)) for one in Isolation]
    except EngineUnavailable:
        return [(one.value, None) for one in Isolation]


@page("/new", post=True, scope=Scope.WRITE)
async def create_pasted(visit: Visit) -> Response:
    """Create a builder of the files that were pasted into the form."""
    form = await visit.form()
    values = values_of(form)
    files = [
        pair for pair in zip(form.getlist("path"), form.getlist("content"), strict=False) if pair[0].strip() or pair[1]
    ]
    try:
        new = shape_of(visit.application, NewBuilder, request_of(values, files))
        builder = await create(visit, new)
    except BuilderdError as error:
        if not isinstance(error, ValidationFailed):
            raise
        return await _form(visit, values, files, by_field(error.errors), 422)
    return see_other(f"/builders/{builder.name}/versions/1")


@page("/new/send", post=True, scope=Scope.WRITE)
@page("/builders/{name}/deploy", post=True, scope=Scope.WRITE)
async def create_sent(visit: Visit) -> Response:
    """Create a builder, or deploy to one, as the page's script asks in JSON. Answer where to look."""
    application = visit.application
    with visit.operations.memory.reserve(visit.token.tenant_id) as reservation:
        if "name" in visit.request.path_params:
            builder = await visit.find()
            body = await receive(visit.request, application, NewVersion, MAX_BODY_BYTES, reservation)
            deployed = await deploy(visit, builder, body.value)
            version = deployed.version or deployed.builder.version
            return JSONResponse({"location": f"/builders/{builder.name}/versions/{version}"}, 202)
        new = await receive(visit.request, application, NewBuilder, MAX_BODY_BYTES, reservation)
        made = await create(visit, new.value)
        return JSONResponse({"location": f"/builders/{made.name}/versions/1"}, 202)


@page("/new/archive", post=True, scope=Scope.WRITE)
async def take_archive(visit: Visit) -> Response:
    """Take an archive (zip, tar, tar.gz or tar.zst) as an upload, and answer its id."""
    application, request = visit.application, visit.request
    size, rules = announced_length(request), application.upload_rules
    upload, _ = await visit.write(lambda uow: bundles.create(uow, rules, visit.caller, size, None, visit.now))
    await bundles.receive(application, upload, Part(0, size), pieces(request, UPLOAD_SECONDS), None)
    return JSONResponse({"upload_id": upload.id}, 201)


@page("/builders/{name}/deploy", scope=Scope.WRITE)
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


#: Fields of the API that the form has under their names: texts, left out where they are empty, and boxes.
PLAIN = ("entrypoint", "build", "release", "root", "env_file", "isolation")
FLAGS = ("require_qa", "skip_review", "skip_qa", "install_scripts")
RESOURCES = ("cpu", "memory", "disk")
#: Text fields with what they contain at first.
TEXTS: Mapping[str, str] = {
    **dict.fromkeys(("name", *PLAIN), ""),
    **dict(zip(RESOURCES, ("1", "1", "3"), strict=True)),
    "port": "8000",
    "job_type": JobType.ALWAYS_ON,
    "minutes": "15",
    "hours": "0",
    "protocol": "http",
}
#: Boxes that are ticked or not; none is at first.
BOXES = ("private", "public", "sleeps", *FLAGS)
#: Kinds that listen on a port, have visitors and may sleep.
LISTENING = (JobType.ALWAYS_ON, JobType.STATIC, JobType.SANDBOX)


def values_of(form: Form) -> dict[str, Any]:
    """Return what was filled in, to show the form again."""
    return {
        **{name: form.get(name, first) for name, first in TEXTS.items()},
        **{name: name in form for name in BOXES},
        "env": [
            pair for pair in zip(form.getlist("env-name"), form.getlist("env-value"), strict=False) if pair[0].strip()
        ],
        "credentials": form.getlist("credential"),
    }


def request_of(values: Mapping[str, Any], files: Sequence[tuple[str, str]]) -> Mapping[str, Any]:
    """Return the request of the API. A number that is none stays text, which the API's rules refuse.

    Fields that the chosen kind does not have are left out: they are hidden, and may be filled in.
    ``static/new.js`` makes the same request for a folder or an archive.
    """
    kind = values["job_type"]
    asked: dict[str, Any] = {
        "name": values["name"].strip(),
        "resources": {name: number(values[name]) for name in RESOURCES if values[name]},
        "env": {name.strip(): value for name, value in values["env"]},
        "credentials": values["credentials"],
        "backup_interval_hours": number(values["hours"] or "0"),
        **{name: values[name] for name in FLAGS},
    }
    if files or kind != JobType.SANDBOX:
        asked["files"] = {path.strip(): content.replace("\r\n", "\n") for path, content in files}
    if kind != JobType.ALWAYS_ON:
        # Left out for an app, a Procfile with a worker line alone still makes a worker.
        asked["job_type"] = kind
    if kind in LISTENING:
        is_private = not values["public"] if kind == JobType.SANDBOX else values["private"]
        asked["port"] = number(values["port"])
        asked["protocol"] = values["protocol"]
        asked["visibility"] = "private" if is_private else "public"
        asked["auto_stop_interval"] = number(values["minutes"]) if values["sleeps"] else 0
    return asked | {name: values[name].strip() for name in PLAIN if values[name].strip()}


def number(text: str) -> float | int | str:
    """Return the number that the text is, else the text itself."""
    try:
        value = float(text.strip().replace(",", "."))
        return int(value) if value == int(value) else value
    except (ValueError, OverflowError):
        return text


#: Fields of the form under other names than the API's.
_RENAMED = {"auto_stop_interval": "minutes", "backup_interval_hours": "hours"}


def by_field(errors: Mapping[str, Sequence[str]]) -> Mapping[str, Sequence[str]]:
    """Return the errors under the names of the form's fields: ``resources.cpu`` is ``cpu``."""
    plain = {name.removeprefix("resources."): why for name, why in errors.items()}
    return {_RENAMED.get(name, name): why for name, why in plain.items()}


S = TypeVar("S", bound=Shape)


def shape_of(application: Application, shape: type[S], values: Mapping[str, Any]) -> S:
    """Return the values as this shape of the API. Raises ``ValidationFailed``."""
    return take(shape, json.dumps(values).encode(), {"maximum": application.limits.maximum})


async def create(visit: Visit, new: NewBuilder) -> Builder:
    """Create a builder. Raises what the services raise, and ``Forbidden`` for a gate left out without the scope."""
    _check_gates(visit, new)
    application = visit.application
    bundle = await requests.bundle_of(application, visit.token.tenant_id, new)
    asked = await requests.new_builder(application, new, bundle)
    return await visit.operations.create(visit.caller, asked, bundle, None)


def _check_gates(visit: Visit, new: NewBuilder | NewVersion) -> None:
    if new.skip_review or new.skip_qa:
        visit.require(Scope.SKIP_GATES)


async def deploy_edited(
    visit: Visit, builder: Builder, version: Version, path: str, content: str, entrypoint: str
) -> Deployed:
    """Deploy the files of a version with one of them changed. Raises as ``deploy`` does."""
    bundle = await bundles.fetch(visit.application, version)
    executable = any(file.executable for file in bundle.files if file.path == path)
    asked = {
        "stored": {"bundle": version.bundle_hash},
        "files": {path: {"content": content, "executable": executable}},
        "entrypoint": entrypoint,
    }
    return await deploy(visit, builder, shape_of(visit.application, NewVersion, asked))


async def deploy(visit: Visit, builder: Builder, new: NewVersion) -> Deployed:
    """Deploy a new version. Raises what the services raise, and ``Forbidden`` for a gate left out without the scope."""
    _check_gates(visit, new)
    application = visit.application
    change, bundle = await requests.new_version(application, visit.caller, builder.id, new)
    return await visit.operations.change(
        builder.id,
        lambda uow: deployments.deploy(uow, application, visit.caller, builder.id, change, visit.now),
        None,
        sent_by(visit.caller, bundle),
    )
