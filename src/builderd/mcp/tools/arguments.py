"""Arguments that several tools take, with their descriptions."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypedDict

from pydantic import BaseModel, ConfigDict, Field

from builderd.code.model import BundleFile, make_bundle


class File(BaseModel):
    """File that is no plain text, or that is executable."""

    model_config = ConfigDict(extra="forbid")

    content: str
    encoding: Literal["utf-8", "base64"] = "utf-8"
    executable: bool = False


class Resources(BaseModel):
    """Limits: vCPU, and GB of memory and disk."""

    model_config = ConfigDict(extra="forbid")

    cpu: float = 1
    memory: float = 1
    disk: float = 3


Name = Annotated[str, Field(description="Name or uuid of the deployment.")]
Files = Annotated[
    dict[str, str | File],
    Field(description="All files by relative path. Text as it is; other bytes as {content, encoding: base64}."),
]
JobType = Annotated[
    Literal["always_on", "static", "worker", "sandbox", "one_time"],
    Field(
        description="always_on (default): a web app. static: files alone, such as a built page. "
        "worker: no port, such as a bot. one_time: a job that ends. "
        "sandbox: no app, for exec_command."
    ),
]
AutoStop = Annotated[int, Field(ge=0, description="Minutes without use until it stops by itself; 0: never.")]
Skip = Annotated[bool, Field(description="Needs a token with the scope skip-gates.")]


class Settings(TypedDict, total=False):
    """Settings of a deployment, under the names of the API; those that are left out stay, or have their default."""

    entrypoint: Annotated[
        str, Field(description="Command that starts it, such as `python3 main.py`; a static site: `serve-static dist`.")
    ]
    port: Annotated[
        int, Field(ge=1, le=65535, description="Port it must listen on. Left out: $PORT is 8000, another is found.")
    ]
    env: Annotated[dict[str, str], Field(description="Environment variables; no secrets: use store_credentials.")]
    env_file: Annotated[str, Field(description='A file among files with lines NAME=VALUE, such as ".env"; env wins.')]
    credentials: Annotated[list[str], Field(description="Names of stored credentials that it gets as variables.")]
    resources: Resources
    visibility: Literal["public", "private"]
    require_qa: Annotated[bool, Field(description="Fail if the QA gate fails.")]
    skip_review: Skip
    skip_qa: Skip
    install_scripts: bool
    build: Annotated[
        str,
        Field(
            description="Command that builds it once, before its start. Default: npm run build if package.json has it."
        ),
    ]
    release: Annotated[
        str,
        Field(description="Command run once before a version takes over, on its disk, such as a database migration."),
    ]
    protocol: Annotated[
        Literal["http", "h2c"],
        Field(description="What it speaks on its port. h2c: HTTP/2 without TLS, such as gRPC."),
    ]
    root: Annotated[
        str,
        Field(description="Folder of the files in which its commands run and its manifests are, such as apps/web."),
    ]
    processes: Annotated[
        dict[str, str],
        Field(
            description="Commands beside its own by name, such as worker, each in a sandbox with the same disk. "
            "Default: the other lines of a Procfile."
        ),
    ]
    scale: Annotated[dict[str, int], Field(description="Sandboxes of each of these processes; default 1.")]
    packages: Annotated[list[str], Field(description="Debian packages that it needs, such as ffmpeg.")]


Upload = Annotated[str, Field(description="upload_id of create_upload_link, in place of files.")]
Key = Annotated[
    str,
    Field(
        min_length=1,
        max_length=255,
        description="A text of your own for this attempt: a repeated call with it gets the first answer again.",
    ),
]
Wait = Annotated[bool, Field(description="false: answer at once; get_deployment then shows the outcome.")]


def body_of(files: Mapping[str, str | File] | None, upload_id: str | None, settings: Settings) -> dict[str, Any]:
    """Return a request of the API with this code and the given settings."""
    code = {
        "files": {path: one if isinstance(one, str) else one.model_dump() for path, one in files.items()}
        if files
        else None,
        "source": {"upload_id": upload_id} if upload_id else None,
    }
    found = {**code, **settings}
    return {
        name: value.model_dump() if isinstance(value, BaseModel) else value
        for name, value in found.items()
        if value is not None
    }


def hash_of(files: Mapping[str, str | File]) -> str:
    """Return the hash by which the service names these files. Raises ``ValueError`` for what is no base64."""
    return make_bundle(_bundle_file(path, one) for path, one in files.items()).hash


def _bundle_file(path: str, file: str | File) -> BundleFile:
    if isinstance(file, str):
        return BundleFile(path, file.encode())
    if file.encoding == "base64":
        content = base64.b64decode("".join(file.content.split()), validate=True)
    else:
        content = file.content.encode()
    return BundleFile(path, content, file.executable)
