"""A story of an app by the SDK: deployed, looked into, changed, taken back and deleted.

BUILDERD_URL=http://127.0.0.1:8080 BUILDERD_TOKEN=… .venv/bin/python examples/story.py
"""

from __future__ import annotations

import sys

from builderd import Builder, Builderd, NameTaken, Stage

FILES = {"main.py": "print('first')\n"}
RUN = "python3 main.py"


def tell(stage: Stage) -> None:
    sys.stdout.write(f"{stage.stage} {'passed' if stage.ok else 'failed'}\n")


def make(client: Builderd, name: str) -> Builder:
    """Create a builder, or return the one that has this name."""
    try:
        return client.builders.create(name, files=FILES, entrypoint=RUN, on_stage=tell)
    except NameTaken as taken:
        return client.builders.get(taken.builder or name)


def story(client: Builderd, name: str) -> None:
    """Tell the story of one builder."""
    app = make(client, name)
    app.deploy(files={"main.py": "print('second')\n"}, on_stage=tell)
    versions: list[int] = [one.version for one in app.versions()]
    sys.stdout.write(f"versions {versions}\n")
    app.files.write("note.txt", b"kept")
    content: bytes = app.files.read("note.txt")
    code: int = app.exec("true").exit_code
    sys.stdout.write(f"note {content.decode()}, exit code {code}\n")
    app.rollback()
    sys.stdout.write(f"{app.name} is {app.status}, version {app.version}\n")
    lines: list[str] = [line.text for line in app.logs(tail=10)]
    sys.stdout.write(f"{len(lines)} lines of log\n")
    app.delete(purge=True)


def main() -> None:
    with Builderd() as client:
        story(client, "story")


if __name__ == "__main__":
    main()
