"""Files of a version that people expect to be read and that are not: the install stage names them in its log. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator

#: Manifests of other tools, and what takes their place.
UNREAD = {
    "Pipfile": "Pipfile.lock (pipenv lock)",
    "pdm.lock": "requirements.txt (pdm export > requirements.txt)",
    "environment.yml": "requirements.txt",
    "yarn.lock": "package-lock.json (npm install --package-lock-only)",
    "pnpm-lock.yaml": "package-lock.json (npm install --package-lock-only)",
    "bun.lockb": "package-lock.json (npm install --package-lock-only)",
    "bun.lock": "package-lock.json (npm install --package-lock-only)",
    "Gemfile": "files of your own: there is no Ruby",
    "go.mod": "a program that you compiled: there is no Go",
    "Cargo.toml": "a program that you compiled: there is no Rust",
    "composer.json": "files of your own: there is no PHP",
}
#: Locks that are read in place of their manifest.
LOCKED = {"Pipfile": "Pipfile.lock"}
READ = ("requirements.txt", "pyproject.toml", "package.json")
#: Folders whose manifests belong to something else.
OTHERS = ("node_modules/", "test", "example", "doc", ".")
MAX_NAMED = 5


def unread_notes(paths: Collection[str], env_file: str = "") -> list[str]:
    """Return a line for each file that is not read, the manifests of folders among them, at most ``MAX_NAMED``."""
    return [*_notes(paths, env_file)][:MAX_NAMED]


def _notes(paths: Collection[str], env_file: str) -> Iterator[str]:
    if ".env" in paths and not env_file:
        yield '.env is not read by the platform: deploy with "env_file": ".env" to set its variables, or set "env".'
    for name, instead in UNREAD.items():
        if name in paths and LOCKED.get(name) not in paths:
            yield f"{name} is not read. Read in its place: {instead}."
    for manifest in READ:
        deeper = [path for path in sorted(paths) if path.endswith(f"/{manifest}") and not path.startswith(OTHERS)]
        if deeper and manifest not in paths:
            yield f"{deeper[0]} is not read: {manifest} must be at the top of the files."
