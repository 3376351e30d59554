"""An app's folder: its settings in ``builder.toml``, and the folders of builders."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from builderd.cli.apps import contexts
from builderd.cli.group import printable
from builderd.client.kept import replace_file
from builderd.schemas.builders import NewBuilder

FILE = "builder.toml"

#: Fields of a new builder that are no settings of ``builder.toml``: its code, and what one call alone has.
NOT_IN_FILE = {"files", "source", "skip_review", "skip_qa", "stdin"}
#: Names of ``builder.toml`` for fields of the API; each other field has its own.
FILE_NAMES = {"auto_stop_interval": "auto_stop", "backup_interval_hours": "backups"}
#: Settings that are not sent with the others.
LOCAL = {"name", "ignore"}
#: Fields of the API by their names in ``builder.toml``.
FIELDS = {FILE_NAMES.get(name, name): name for name in NewBuilder.model_fields if name not in NOT_IN_FILE}


def file_schema() -> dict[str, Any]:
    """Return the JSON schema of ``builder.toml``. The service judges the values; other names are refused."""
    of_api = NewBuilder.model_json_schema()
    ignored = {
        "type": "array",
        "items": {"type": "string"},
        "description": "What is not sent, as lines of .builderdignore.",
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": FILE,
        "type": "object",
        "additionalProperties": False,
        "properties": {**{name: of_api["properties"][field] for name, field in FIELDS.items()}, "ignore": ignored},
        "$defs": of_api["$defs"],
    }


@dataclass(slots=True)
class Project:
    """A folder with its settings."""

    root: Path
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, root: Path) -> Project:
        """Read the folder's settings; there are none without a file. Raises ``ClickException`` for a faulty one."""
        file = root / FILE
        try:
            settings = tomllib.loads(file.read_text())
        except FileNotFoundError:
            return cls(root)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise click.ClickException(printable(f"{file} is no TOML: {error}")) from error
        unknown = sorted(set(settings) - {*FIELDS, "ignore"})
        if unknown:
            known = ", ".join([*FIELDS, "ignore"])
            raise click.ClickException(printable(f"{file} has {unknown[0]!r}, which is not known. Known are: {known}"))
        return cls(root, settings)

    @classmethod
    def find(cls, start: Path) -> Project | None:
        """Return the project of a folder or of the nearest one above it; None without any."""
        for folder in (start, *start.parents):
            if (folder / FILE).exists():
                return cls.load(folder)
        return None

    @property
    def name(self) -> str | None:
        name = self.settings.get("name")
        return name if isinstance(name, str) else None

    @property
    def options(self) -> dict[str, Any]:
        """Settings as the API takes them."""
        return {FIELDS[name]: value for name, value in self.settings.items() if name not in LOCAL}

    def default_name(self) -> str:
        """Return a name made of the folder's."""
        words = re.sub(r"[^a-z0-9]+", "-", self.root.resolve().name.lower()).strip("-")
        return words[:40].strip("-") or "app"

    def write(self, settings: Mapping[str, Any]) -> bool:
        """Write settings into ``builder.toml``, whose other lines stay; return False where its form does not allow it.

        Settings are texts, numbers and booleans.
        """
        file, wanted = self.root / FILE, {**self.settings, **settings}
        text = file.read_text() if file.exists() else "# See `builderd schema`, and docs/cli.md of builderd.\n"
        for name, value in settings.items():
            # JSON's texts, numbers and booleans are TOML's too. A setting stands before the first table.
            table = re.search(r"^[ \t]*\[", text, re.MULTILINE)
            end = table.start() if table else len(text)
            line = f"{name} = {json.dumps(value, ensure_ascii=False)}\n"
            if old := re.compile(rf"^{name}[ \t]*=.*\n?", re.MULTILINE).search(text, 0, end):
                text = f"{text[: old.start()]}{line}{text[old.end() :]}"
            else:
                text = "".join([text[:end].rstrip("\n"), "\n", line, "\n" if table else "", text[end:]])
        try:
            if tomllib.loads(text) != wanted:
                return False
        except tomllib.TOMLDecodeError:
            return False
        file.write_text(text)
        self.settings = wanted
        return True


def folder_of(service: str, name: str) -> Path | None:
    """Return the folder of this machine from which a builder was deployed last; None if not known, or gone."""
    found = _folders()[1].get(f"{service} {name}")
    return Path(found) if found and Path(found).is_dir() else None


def keep_folder(service: str, name: str, folder: Path) -> None:
    """Write down that the builder is deployed from the folder."""
    file, known = _folders()
    if known.get(key := f"{service} {name}") != str(folder.resolve()):
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        replace_file(file, json.dumps({**known, key: str(folder.resolve())}, indent=1))


def _folders() -> tuple[Path, dict[str, str]]:
    file = contexts.location().with_name("folders.json")
    try:
        return file, dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return file, {}
