"""Deploying: code that was dropped, chosen, pasted or taken from a template; what it is, and how it will run."""

from __future__ import annotations

import asyncio
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from starlette.responses import JSONResponse, Response

from builderd.application import Application
from builderd.builders.model import STATIC_MEMORY, Builder, JobType
from builderd.client.folders import ALWAYS, GIT, OWN, SETTINGS, STATE
from builderd.code import service as bundles
from builderd.code.detection.detect import detect
from builderd.code.detection.model import Detected, Refusal
from builderd.code.detection.project import project_of
from builderd.code.model import Bundle, BundleFile, folder_of, make_bundle, path_error
from builderd.code.service import Part
from builderd.core.errors import BuilderdError, EngineUnavailable, TooLarge, ValidationFailed
from builderd.core.resources import Resources
from builderd.money.model import Billing
from builderd.schemas.builders import NewBuilder
from builderd.schemas.shape import Shape
from builderd.schemas.versions import NewVersion
from builderd.server import requests
from builderd.server.answers import STATUS
from builderd.server.bodies import announced_length, pieces
from builderd.server.body_parser import take
from builderd.server.operations import sent_by
from builderd.tokens.model import Scope
from builderd.versions import service as deployments
from builderd.versions.model import Isolation, Version
from builderd.versions.service import Deployed
from builderd.web.pages.builder import builder_page, frame_of
from builderd.web.shown import sentence
from builderd.web.visits import Form, Visit, page, see_other

UPLOAD_SECONDS = 3600.0
#: Files that can be pasted at once without a script.
PASTED = 3
#: Paths of the code that a page lists.
LISTED = 200
#: Rules by which the page's script leaves out files of a folder, as the command line does.
RULES = {"always": " ".join([*sorted(ALWAYS), STATE]), "own": OWN, "git": GIT, "settings": SETTINGS}


@dataclass(frozen=True, slots=True)
class Template:
    """Project to start from: detection finds what it is."""

    title: str
    text: str
    files: Mapping[str, str]


TEMPLATES = {
    key: Template(**one)
    for key, one in tomllib.loads(Path(__file__).parents[1].joinpath("templates.toml").read_text()).items()
}


@dataclass(frozen=True, slots=True)
class Code:
    """Code on its way: an upload, or the files of a form."""

    upload: str = ""
    files: Sequence[tuple[str, str]] = ()

    @classmethod
    def of(cls, fields: Form) -> Code:
        pairs = zip(fields.getlist("path"), fields.getlist("content"), strict=False)
        files = [(path.strip(), content.replace("\r\n", "\n")) for path, content in pairs if path.strip() or content]
        return cls(fields.get("upload", ""), files)

    @property
    def fields(self) -> Mapping[str, Any]:
        """Return the field of the API."""
        return {"source": {"upload_id": self.upload}} if self.upload else {"files": dict(self.files)}


@dataclass(frozen=True, slots=True)
class Look:
    """Findings in code: its paths (the first ``LISTED``), their number, bytes, and what starts it."""

    paths: Sequence[str]
    count: int
    size: int
    found: Detected | Refusal


async def look_at(visit: Visit, code: Code, root: str, kind: str | None = None) -> Look:
    """Look at the code, in the folder ``root``, as at a builder of this kind; nothing of it is kept.

    Raises ``ValidationFailed`` and ``TooLarge`` for an archive that is not taken.
    """
    application = visit.application
    if not code.upload:
        files = [BundleFile(path, content.encode()) for path, content in code.files if path_error(path) is None]
        return await asyncio.to_thread(_look, make_bundle(files), root, kind)
    bundle = await bundles.bundle(application, visit.token.tenant_id, code.upload)
    try:
        return await asyncio.to_thread(_look, bundle, root, kind)
    finally:
        await bundles.drop_unused(application, bundle.hash)


def _look(bundle: Bundle, root: str, kind: str | None) -> Look:
    found = detect(project_of(folder_of(bundle, root)), kind)
    return Look([file.path for file in bundle.files[:LISTED]], len(bundle.files), bundle.size, found)


@page("/new", scope=Scope.WRITE)
async def show_new(visit: Visit) -> Response:
    """Show where code comes from: a folder, an archive, a template; of a template, what it is and how it runs."""
    query = visit.request.query_params
    template, is_sandbox = TEMPLATES.get(query.get("template", "")), query.get("kind") == JobType.SANDBOX
    if not (template or is_sandbox):
        return await _start(visit)
    code, values = Code(files=list(template.files.items()) if template else ()), values_of(Form())
    values["name"] = _name_from(query.get("template", ""))
    if is_sandbox:
        values["job_type"] = values["was"]["job_type"] = JobType.SANDBOX.value
    return await _form(visit, values, code, prefill=not is_sandbox)


async def _start(visit: Visit, fault: str = "", status: int = 200) -> Response:
    return await visit.page("new.html", status, templates=TEMPLATES, rules=RULES, pasted=range(PASTED), fault=fault)


def _name_from(text: str) -> str:
    """Return a builder's name made of a folder's."""
    return re.sub(r"[^a-z0-9]+", "-", text[:200].lower()).strip("-")[:40].strip("-")


async def _form(
    visit: Visit,
    values: dict[str, Any],
    code: Code,
    errors: Mapping[str, Sequence[str]] | None = None,
    status: int = 200,
    *,
    prefill: bool = False,
) -> Response:
    """Show what was found and the settings; with ``prefill``, the fields become what was found."""
    application, look = visit.application, None
    if code.upload or code.files:
        try:
            look = await look_at(visit, code, values["root"])
        except (ValidationFailed, TooLarge) as error:
            return await _start(visit, _in_words(error), STATUS[error.code])
    if prefill and look is not None:
        values |= _prefilled(look.found, values["root"])
    found = await visit.read(lambda uow: uow.credentials.list(visit.token.tenant_id))
    return await visit.page(
        "new_settings.html",
        status,
        values={**values, "isolation": values["isolation"] or application.limits.default_isolation},
        kinds=KINDS,
        code=code,
        look=look,
        errors=errors or {},
        rates={billing.value: application.prices.hourly_rate(_size(values), billing) for billing in Billing},
        prices=application.prices,
        maximum=application.limits.maximum,
        freeze_after=application.limits.freeze_after,
        credentials=[one.name for one in found],
        isolations=_isolations(application),
        may_skip=visit.allows(Scope.SKIP_GATES),
    )


def _size(values: Mapping[str, Any]) -> Resources:
    sizes = [number(values[name]) for name in ("cpu", "memory", "disk")]
    return Resources(*(size if isinstance(size, int | float) else 0 for size in sizes))


def _in_words(error: BuilderdError) -> str:
    if isinstance(error, ValidationFailed):
        if "source.upload_id" in error.errors:
            return "What was sent is not there any more, or not complete: send it again."
        faults = (f"{name} {', '.join(why)}".removeprefix("source ") for name, why in error.errors.items())
        return sentence("; ".join(faults))
    return error.message


def _prefilled(found: Detected | Refusal, root: str) -> dict[str, Any]:
    """Return the fields as detection found them, with ``was``: the same, of which nothing is asked while it stays.

    A folder that was chosen is no find.
    """
    if isinstance(found, Refusal):
        return {"was": _WAS}
    was = {name: getattr(found, name) for name in ("entrypoint", "build", "release", "job_type")}
    was |= {"port": str(found.port or ""), "root": found.root, "private": found.is_private}
    memory = {"memory": str(STATIC_MEMORY)} if found.job_type == "static" else {}
    return {**was, **memory, "root": root or found.root, "was": was}


def _isolations(application: Application) -> Sequence[tuple[str, str | None]]:
    """Return each isolation with what the machine lacks for it, None where it has all or is not looked at yet."""
    try:
        return [(one.value, application.engine.sandboxes.supports(one)) for one in Isolation]
    except EngineUnavailable:
        return [(one.value, None) for one in Isolation]


@page("/new", post=True, scope=Scope.WRITE)
async def create_new(visit: Visit) -> Response:
    """Create a builder of an upload or of the files in the form; or look at them, and keep nothing."""
    form = await visit.form()
    values, code = values_of(form), Code.of(form)
    if "look" in form:
        values["root"], values["name"] = form["look"] or values["root"].strip(), _name_from(values["name"])
        shown = await _form(visit, values, code, prefill=True)
        await _forget(visit, code.upload)
        return shown
    try:
        builder = await create(visit, shape_of(visit.application, NewBuilder, request_of(values, code)))
    except BuilderdError as error:
        errors = by_field(error.errors) if isinstance(error, ValidationFailed) else {"": [error.message]}
        return await _form(visit, values, code, errors, STATUS[error.code])
    await _forget(visit, code.upload)
    return see_other(f"/builders/{builder.name}/versions/1")


@page("/new/archive", post=True, scope=Scope.WRITE)
async def take_archive(visit: Visit) -> Response:
    """Take an archive (zip, tar, tar.gz or tar.zst) as an upload, and answer its id.

    ``instead``: an upload of this page from before, which was not deployed.
    """
    application, request = visit.application, visit.request
    size, rules = announced_length(request), application.upload_rules
    await _forget(visit, request.query_params.get("instead", ""))
    upload, _ = await visit.write(lambda uow: bundles.create(uow, rules, visit.caller, size, None, visit.now))
    await bundles.receive(application, upload, Part(0, size), pieces(request, UPLOAD_SECONDS), None)
    return JSONResponse({"upload_id": upload.id}, 201)


async def _forget(visit: Visit, upload: str) -> None:
    """Delete an upload that is not needed any more; it may be gone already."""
    if upload:
        with suppress(BuilderdError):
            await bundles.delete(visit.application, visit.token.tenant_id, upload)


@page("/builders/{name}/deploy", scope=Scope.WRITE)
async def show_deploy(visit: Visit) -> Response:
    """Show the form that sends new code to a builder."""
    return await _deploy_form(visit, Code(), {})


async def _deploy_form(
    visit: Visit, code: Code, asked: Mapping[str, str], fault: str = "", status: int = 200
) -> Response:
    frame = await visit.read(lambda uow: frame_of(uow, visit))
    look, settings = None, frame.version.settings
    before = {name: str(getattr(settings, name)) for name in NEW_CODE}
    values = {**before, **asked}
    try:
        if code.upload:
            look, brought, refused = await _look_at_new(visit, frame.builder, code, values["root"])
            values = {**before, **{name: str(brought[name]) for name in NEW_CODE if name in brought}, **asked}
            fault = fault or refused
    except (ValidationFailed, TooLarge) as error:
        code, fault, status = Code(), _in_words(error), STATUS[error.code]
    return await builder_page(
        visit,
        "deploy.html",
        "versions",
        frame,
        status,
        code=code,
        look=look,
        values=values,
        before=before,
        rules=RULES,
        fault=fault,
    )


async def _look_at_new(visit: Visit, builder: Builder, code: Code, root: str) -> tuple[Look, Mapping[str, Any], str]:
    """Return what the code is, the settings that it brings to the builder, and why it is refused with them."""
    application, new = visit.application, shape_of(visit.application, NewVersion, code.fields)
    try:
        change, bundle = await requests.new_version(application, visit.caller, builder.id, new)
    except ValidationFailed as error:
        return await look_at(visit, code, root, builder.job_type), {}, _in_words(error)
    assert bundle is not None
    try:
        return await asyncio.to_thread(_look, bundle, root, builder.job_type), change.settings, ""
    finally:
        await bundles.drop_unused(application, bundle.hash)


#: Settings that may change with the code.
NEW_CODE = ("entrypoint", "build", "port", "root")


@page("/builders/{name}/deploy", post=True, scope=Scope.WRITE)
async def deploy_sent(visit: Visit) -> Response:
    """Deploy an upload to a builder, with the settings that were changed; or look at it, and keep nothing."""
    form, frame = await visit.form(), await visit.read(lambda uow: frame_of(uow, visit))
    code, settings = Code.of(form), frame.version.settings
    if "look" in form:
        shown = await _deploy_form(visit, code, {})
        await _forget(visit, code.upload)
        return shown
    given = {name: form[name].strip() for name in NEW_CODE if name in form}
    changed = {name: text for name, text in given.items() if text != str(getattr(settings, name))}
    asked = {**code.fields, **{name: number(text) if name == "port" else text for name, text in changed.items()}}
    try:
        deployed = await deploy(visit, frame.builder, shape_of(visit.application, NewVersion, asked))
    except BuilderdError as error:
        return await _deploy_form(visit, code, given, _in_words(error), STATUS[error.code])
    await _forget(visit, code.upload)
    return see_other(f"/builders/{frame.builder.name}/versions/{deployed.version or deployed.builder.version}")


#: Kinds of builders, in words.
KINDS = (
    ("always_on", "App: listens on a port, has a URL"),
    ("static", "Static site: files alone"),
    ("worker", "Worker: a process without a port, kept running"),
    ("one_time", "Job: runs once, to its end"),
    ("sandbox", "Sandbox: no app, for commands and files"),
)
#: Text fields with what they contain at first.
TEXTS: Mapping[str, str] = {
    **dict.fromkeys(("name", "entrypoint", "build", "release", "root", "port", "env_file", "isolation"), ""),
    **dict(zip(("cpu", "memory", "disk"), ("1", "1", "3"), strict=True)),
    "job_type": JobType.ALWAYS_ON.value,
    "minutes": "15",
    "hours": "0",
    "protocol": "http",
}
#: Boxes that are ticked or not, under the API's names and others; none is at first.
FLAGS = ("require_qa", "skip_review", "skip_qa", "install_scripts")
BOXES = ("private", "public", "sleeps", *FLAGS)
#: Kinds that listen on a port, have visitors and may sleep.
LISTENING = (JobType.ALWAYS_ON, JobType.STATIC, JobType.SANDBOX)
#: What detection finds, before it found anything; what stands or falls together; and what an empty field changes, too.
_WAS = {
    **{name: TEXTS[name] for name in ("entrypoint", "build", "release", "root", "port", "job_type")},
    "private": False,
}
TOGETHER, EMPTIED = frozenset({"entrypoint", "job_type", "root"}), frozenset({"build", "release"})


def values_of(form: Form) -> dict[str, Any]:
    """Return what was filled in, to show the form again."""
    return {
        **{name: form.get(name, first) for name, first in TEXTS.items()},
        **{name: name in form for name in BOXES},
        "was": {
            name: f"was-{name}" in form if first is False else form.get(f"was-{name}", first)
            for name, first in _WAS.items()
        },
        "env": [
            pair for pair in zip(form.getlist("env-name"), form.getlist("env-value"), strict=False) if pair[0].strip()
        ],
        "credentials": form.getlist("credential"),
    }


def request_of(values: Mapping[str, Any], code: Code) -> Mapping[str, Any]:
    """Return the request of the API. A number that is none stays text, which the API's rules refuse.

    What detection found and nobody changed is left out, so that the service goes on as it found it. Fields that the
    chosen kind does not have are left out, too: they are hidden, and may be filled in.
    """
    kind, was = values["job_type"], values["was"]
    changed = {name for name, first in was.items() if values[name] != first}
    asked: dict[str, Any] = {
        "name": values["name"].strip(),
        "resources": {name: number(values[name]) for name in ("cpu", "memory", "disk") if values[name]},
        "env": {name.strip(): value for name, value in values["env"]},
        "credentials": values["credentials"],
        "backup_interval_hours": number(values["hours"] or "0"),
        **{name: values[name] for name in FLAGS},
    }
    if code.upload or code.files or kind != JobType.SANDBOX:
        asked |= code.fields
    for name in ("entrypoint", "build", "release", "root"):
        text, is_sent = values[name].strip(), name in changed or changed & TOGETHER
        if is_sent and (text or (name in changed and name in EMPTIED)):
            asked[name] = text
    if changed & TOGETHER or kind == JobType.SANDBOX:
        asked["job_type"] = kind
    if kind in LISTENING:
        if values["port"].strip() and "port" in changed:
            asked["port"] = number(values["port"])
        asked["protocol"] = values["protocol"]
        if kind == JobType.SANDBOX:
            asked["visibility"] = "public" if values["public"] else "private"
        elif "private" in changed:
            asked["visibility"] = "private" if values["private"] else "public"
        asked["auto_stop_interval"] = number(values["minutes"]) if values["sleeps"] else 0
    return asked | {name: values[name].strip() for name in ("env_file", "isolation") if values[name].strip()}


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
