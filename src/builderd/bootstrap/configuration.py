"""Load settings from defaults, a TOML file, ``BUILDERD_*`` variables and the command line; later ones win."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from builderd.core.errors import ValidationFailed
from builderd.engine.inventory import SEARCH_PATH
from builderd.settings import DEFAULT_DATA_DIR, FILE_NAME, PREFIX, Settings

#: ``BUILDERD_*`` variables of sandboxes, the example, the project's scripts and its tests: they are not settings.
OTHER_VARIABLES = frozenset({"url", "token", "venv", "require_root_tests", "soak_cycles", "backup_rounds"})
#: Similarity (difflib ratio) from which an unknown variable counts as a misspelled setting.
TYPO_RATIO = 0.75

log = logging.getLogger(__name__)


def load(file: Path | None = None, *, lenient: bool = False, **given: Any) -> Settings:
    """Return the settings; ``given`` are those of the command line (None: not given).

    ``file`` must exist when named; otherwise ``builderd.toml`` in the data directory is read if it exists.
    ``lenient`` ignores that file, with a warning in the log, when the caller's user may not read it.
    Raises ``ValidationFailed`` with the name of each wrong setting, ``PermissionError``.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    _check_variables(os.environ)
    try:
        if file is None:
            file = _DataDirSetting(**chosen).data_dir / FILE_NAME
            if lenient and not _may_read(file):
                log.warning("settings file not readable, using defaults file=%s", file)
                file = None
        elif not file.is_file():
            raise ValidationFailed({"config": [f"there is no file {file}: check the path given with --config"]})

        class FileSettings(Settings):
            model_config = SettingsConfigDict(toml_file=file)

        return FileSettings(**chosen)
    except ValidationError as error:
        raise ValidationFailed(_errors(error)) from None
    except SettingsError as error:
        raise ValidationFailed(
            {"environment": [f"{error}: name one setting of it, as in BUILDERD_LIMITS__CPU"]}
        ) from None
    except PermissionError:
        raise
    except (OSError, ValueError) as error:
        raise ValidationFailed({str(file): [f"cannot be read as TOML: {error}"]}) from None


def widen_search() -> None:
    """Append the system's program folders to ``PATH``, for this process and its children; existing entries win."""
    path = os.environ.get("PATH", "").split(os.pathsep)
    os.environ["PATH"] = os.pathsep.join(dict.fromkeys([*filter(None, path), *SEARCH_PATH.split(os.pathsep)]))


def _may_read(file: Path) -> bool:
    """Return True when the file is readable or does not exist."""
    try:
        return not file.is_file() or os.access(file, os.R_OK)
    except PermissionError:
        return False


class _DataDirSetting(BaseSettings):
    """The data directory alone, to find the settings file before the other settings are validated with it."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore")

    data_dir: Path = DEFAULT_DATA_DIR


def _check_variables(environment: Iterable[str]) -> None:
    """Raise ``ValidationFailed`` for misspelled settings; log a warning for other unknown ``BUILDERD_*`` variables.

    Unknown variables are not an error, unlike unknown keys of the file: the client has some of its own.
    """
    names = [name for name in environment if name.upper().startswith(PREFIX)]
    tops = {name: name[len(PREFIX) :].lower().partition("__")[0] for name in names}
    unknown = {
        name: top for name, top in tops.items() if top not in Settings.model_fields and top not in OTHER_VARIABLES
    }
    near = {name: difflib.get_close_matches(top, Settings.model_fields, 1, TYPO_RATIO) for name, top in unknown.items()}
    errors = {
        name: [f"is no setting: did you mean {PREFIX}{match[0].upper()}?"] for name, match in near.items() if match
    }
    if errors:
        raise ValidationFailed(errors)
    for name in unknown:
        log.warning("unknown setting ignored, see docs/settings.md variable=%s", name)


def _errors(error: ValidationError) -> dict[str, list[str]]:
    errors: dict[str, list[str]] = {}
    for one in error.errors():
        # Of a type with alternatives, pydantic also names the validator that was tried: "allow.0.lax-or-strict[…]".
        name = ".".join(str(part) for part in one["loc"] if "[" not in str(part)) or "settings"
        errors.setdefault(name, []).append(one["msg"].removeprefix("Value error, "))
    return errors
