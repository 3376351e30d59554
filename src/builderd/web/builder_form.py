"""The form of a new builder: its fields, and what it asks of the API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from builderd.domain.builders import JobType
from builderd.web.visits import Form

#: Text fields with what they hold at first.
TEXTS: Mapping[str, str] = {
    "name": "",
    "entrypoint": "",
    "build": "",
    "env_file": "",
    "release": "",
    "root": "",
    "port": "8000",
    "cpu": "1",
    "memory": "1",
    "disk": "3",
    "job_type": JobType.ALWAYS_ON,
    "minutes": "15",
    "hours": "0",
    "isolation": "",
    "protocol": "http",
}
#: Boxes that are ticked or not; none is at first.
BOXES = ("private", "public", "sleeps", "require_qa", "skip_review", "skip_qa", "install_scripts")
#: Kinds that listen on a port, have visitors and may sleep.
LISTENING = (JobType.ALWAYS_ON, JobType.SANDBOX)
RESOURCES = ("cpu", "memory", "disk")


def first_values() -> dict[str, Any]:
    """Return the values of an untouched form."""
    return {**TEXTS, **dict.fromkeys(BOXES, False), "env": [], "credentials": []}


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
        **{name: values[name] for name in ("require_qa", "skip_review", "skip_qa", "install_scripts")},
    }
    if files or kind != JobType.SANDBOX:
        asked["files"] = {path.strip(): content.replace("\r\n", "\n") for path, content in files}
    if kind != JobType.ALWAYS_ON:
        # Left out for an app, a Procfile with a worker line alone still makes a worker.
        asked["job_type"] = kind
    if kind in LISTENING:
        is_private = values["private"] if kind == JobType.ALWAYS_ON else not values["public"]
        asked["port"] = number(values["port"])
        asked["protocol"] = values["protocol"]
        asked["visibility"] = "private" if is_private else "public"
        asked["auto_stop_interval"] = number(values["minutes"]) if values["sleeps"] else 0
    for name in ("entrypoint", "build", "release", "root", "env_file", "isolation"):
        if values[name].strip():
            asked[name] = values[name].strip()
    return asked


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
