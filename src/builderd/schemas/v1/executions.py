"""Executions: commands in an app's sandbox."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from builderd.domain.processes import HOME, MAX_STDIN_BYTES, folder_error, stdin_error
from builderd.domain.sandboxes import MAX_COMMAND_BYTES, command_error
from builderd.schemas.v1.builders import Env
from builderd.schemas.v1.envelope import Success
from builderd.schemas.v1.shape import JsonInt, Shape, View, checked_by

MAX_TIMEOUT = 600

Command = Annotated[
    str,
    checked_by(command_error),
    Field(json_schema_extra={"minLength": 1, "maxLength": MAX_COMMAND_BYTES, "pattern": r"\S"}),
]
Folder = Annotated[str, checked_by(folder_error), Field(json_schema_extra={"minLength": 1})]
Stdin = Annotated[str, checked_by(stdin_error), Field(json_schema_extra={"maxLength": MAX_STDIN_BYTES})]


class NewExecution(Shape):
    """Command to run. After ``timeout`` seconds, every process that it started is killed."""

    command: Command = Field(description="Run by /bin/sh in the app's folder, with the app's environment.")
    timeout: JsonInt = Field(default=60, ge=1, le=MAX_TIMEOUT)
    stdin: Stdin = Field(default="", description="What the command reads, as UTF-8.")
    cwd: Folder = Field(default=HOME, description="Where it begins: absolute, or below /app.")
    env: Env = Field(default_factory=dict, description="Added to the app's environment.")
    stream: bool = Field(default=False, description="Answer with its output as it comes, as an event stream.")
    separate: bool = Field(default=False, description="Keep standard error apart from standard output.")


class Execution(View):
    """Result of a command. ``exit_code`` 124: timeout; ``output`` has both streams, cut if ``truncated``.

    With ``separate``, ``output`` has standard output alone, and ``stderr`` standard error; else ``stderr`` is empty.
    ``hint`` names what a failed command's output shows to be missing, and where to add it; else it is empty.
    """

    exit_code: int
    output: str
    stderr: str
    truncated: bool
    hint: str


class ExecutionAnswer(Success[Execution]):
    """Response with a command's result."""
