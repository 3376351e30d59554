"""Deploys a folder through the HTTP API, stage by stage, and prints the URL.

BUILDERD_TOKEN=… .venv/bin/python examples/deploy.py examples/my-api --name my-api --entrypoint 'python3 main.py'
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import httpx

#: No time limit on what is created: the service has its own, and says so in its answer.
TIMEOUT = httpx.Timeout(30, read=None)


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--name", required=True)
@click.option("--entrypoint", required=True, help="The command that starts the app, in its folder.")
@click.option("--port", type=int, default=8000, show_default=True, help="Where the app listens.")
@click.option("--env", "pairs", multiple=True, metavar="KEY=VALUE")
@click.option("--api", default="http://127.0.0.1:8080", show_default=True, help="Where builderd is.")
@click.option("--token", required=True, envvar="BUILDERD_TOKEN", help="Better given as BUILDERD_TOKEN.")
@click.option("--replace", is_flag=True, help="Where there is a builder of this name, give it this code.")
def deploy(
    folder: Path, name: str, entrypoint: str, port: int, pairs: tuple[str, ...], api: str, token: str, replace: bool
) -> None:
    """Turn FOLDER into a running app."""
    body = {
        "name": name,
        "entrypoint": entrypoint,
        "files": read_files(folder),
        "port": port,
        "env": dict(pair.split("=", 1) for pair in pairs),
        "resources": {"cpu": 1, "memory": 1, "disk": 3},
        "job_type": "always_on",
        "backup_interval_hours": 0,
    }
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=f"{api}/api/v1", headers=headers, timeout=TIMEOUT, trust_env=False) as client:
        known = find(client, name) if replace else None
        builder = create(client, body) if known is None else deploy_version(client, known, body)
    click.echo(builder["preview_url"])


def read_files(folder: Path) -> dict[str, str | dict[str, Any]]:
    """The files under ``folder`` as the API takes them; hidden ones and ``__pycache__`` are left out."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    named = ((path.relative_to(folder), path) for path in paths)
    return {
        name.as_posix(): _content(path)
        for name, path in named
        if not any(part.startswith(".") or part == "__pycache__" for part in name.parts)
    }


def _content(path: Path) -> str | dict[str, Any]:
    data, executable = path.read_bytes(), os.access(path, os.X_OK)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return {"content": base64.b64encode(data).decode(), "encoding": "base64", "executable": executable}
    return {"content": text, "executable": True} if executable else text


def find(client: httpx.Client, name: str) -> str | None:
    """The uuid of the builder of that name, if there is one."""
    listed = _data(client.get("/builders", params={"name": name}))
    return next((builder["uuid"] for builder in listed if builder["name"] == name), None)


def create(client: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
    """The builder, running; its stages go to standard error as they end."""
    return _followed(client, "POST", "/builders", body)


def deploy_version(client: httpx.Client, uuid: str, body: dict[str, Any]) -> dict[str, Any]:
    """The builder with this code. What was there serves until then, and goes on serving when a stage fails."""
    return _followed(client, "PUT", f"/builders/{uuid}", body)


def _followed(client: httpx.Client, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    with client.stream(method, path, json=body, headers={"Accept": "text/event-stream"}) as response:
        if response.is_error:
            response.read()
            _data(response)
        for event, data in events(response.iter_lines()):
            if event == "done":
                return data
            if event == "failed":
                raise click.ClickException(f"{data['code']}: {data['message']}")
            click.echo(f"  {event:<8} {data['seconds']:8.3f} s", err=True)
    raise click.ClickException("the service ended the stream before the app was up; look at its log")


def events(lines: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and JSON of each server-sent event (HTML standard, section 9.2.6; one ``data`` line an event or several)."""
    event = "message"
    data: list[str] = []
    for line in lines:
        field, _, value = line.partition(":")
        if not line and data:
            yield event, json.loads("\n".join(data))
        if not line:
            event, data = "message", []
        elif field == "event":
            event = value.removeprefix(" ")
        elif field == "data":
            data.append(value.removeprefix(" "))


def _data(response: httpx.Response) -> Any:
    if response.is_error:
        raise click.ClickException(f"{response.status_code} from {response.url}: {response.text}")
    return response.json()["data"]


if __name__ == "__main__":
    deploy()
