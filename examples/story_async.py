"""The story of ``story.py`` by the asynchronous SDK.

BUILDERD_URL=http://127.0.0.1:8080 BUILDERD_TOKEN=… .venv/bin/python examples/story_async.py
"""

from __future__ import annotations

import asyncio
import sys

from builderd import AsyncBuilder, AsyncBuilderd, NameTaken, Stage

FILES = {"main.py": "print('first')\n"}
RUN = "python3 main.py"


def tell(stage: Stage) -> None:
    sys.stdout.write(f"{stage.stage} {'passed' if stage.ok else 'failed'}\n")


async def make(client: AsyncBuilderd, name: str) -> AsyncBuilder:
    """Create a builder, or return the one that has this name."""
    try:
        return await client.builders.create(name, files=FILES, entrypoint=RUN, on_stage=tell)
    except NameTaken as taken:
        return await client.builders.get(taken.builder or name)


async def story(client: AsyncBuilderd, name: str) -> None:
    """Tell the story of one builder."""
    app = await make(client, name)
    await app.deploy(files={"main.py": "print('second')\n"}, on_stage=tell)
    versions: list[int] = [one.version async for one in app.versions()]
    sys.stdout.write(f"versions {versions}\n")
    await app.files.write("note.txt", b"kept")
    content: bytes = await app.files.read("note.txt")
    code: int = (await app.exec("true")).exit_code
    sys.stdout.write(f"note {content.decode()}, exit code {code}\n")
    await app.rollback()
    sys.stdout.write(f"{app.name} is {app.status}, version {app.version}\n")
    lines: list[str] = [line.text async for line in app.logs(tail=10)]
    sys.stdout.write(f"{len(lines)} lines of log\n")
    await app.delete(purge=True)


async def main() -> None:
    async with AsyncBuilderd() as client:
        await story(client, "story")


if __name__ == "__main__":
    asyncio.run(main())
