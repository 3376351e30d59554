"""From where settings come: defaults, a TOML file, ``BUILDERD_*`` variables and the command line, in that order."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from builderd.domain.equipment import SEARCH_PATH
from builderd.domain.errors import ValidationFailed
from builderd.settings import DEFAULT_DATA_DIR, FILE_NAME, PREFIX, Settings

#: Variables of sandboxes, the example, the project's own scripts and its tests are no settings.
OTHERS = frozenset({"url", "token", "venv", "require_root_tests", "soak_cycles", "backup_rounds"})
#: How much alike a name and a setting must be (difflib) to be taken for a slip.
CLOSE = 0.75

log = logging.getLogger(__name__)


def load(file: Path | None = None, *, lenient: bool = False, **given: Any) -> Settings:
    """The settings; ``given`` are those of the command line (None: not given).

    ``file`` must exist when named; otherwise ``builderd.toml`` in the data directory is read if it is there;
    ``lenient`` does without it where whoever asks may not read it, and says so in the log.
    Raises ``ValidationFailed`` with the name of each wrong setting, ``PermissionError``.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    _check_variables(os.environ)
    try:
        if file is None:
            file = _Place(**chosen).data_dir / FILE_NAME
            if lenient and not _may_read(file):
                log.warning("%s is not for you to read: what it sets does not count here.", file)
                file = None
        elif not file.is_file():
            raise ValidationFailed({"config": [f"there is no file {file}"]})
        return _from_file(file)(**chosen)
    except ValidationError as error:
        raise ValidationFailed(_faults(error)) from None
    except SettingsError as error:
        raise ValidationFailed(
            {"environment": [f"{error}: name one setting of it, as in BUILDERD_LIMITS__CPU"]}
        ) from None
    except PermissionError:
        raise
    except (OSError, ValueError) as error:
        raise ValidationFailed({str(file): [f"cannot be read as TOML: {error}"]}) from None


def widen_search() -> None:
    """Have programs found, by this process and by those that it starts, that the shell it came from does not look for.

    What that shell finds is found as before.
    """
    path = os.environ.get("PATH", "").split(os.pathsep)
    os.environ["PATH"] = os.pathsep.join(dict.fromkeys([*filter(None, path), *SEARCH_PATH.split(os.pathsep)]))


def _may_read(file: Path) -> bool:
    """Also where there is none, as far as one may look."""
    try:
        return not file.is_file() or os.access(file, os.R_OK)
    except PermissionError:
        return False


class _Place(BaseSettings):
    """Where the file is. The others are not judged before it is read: it may change what they are judged by."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore")

    data_dir: Path = DEFAULT_DATA_DIR


def _check_variables(environment: Iterable[str]) -> None:
    """Raises ``ValidationFailed`` for what is a setting but for a slip of the pen; what names none at all is told.

    Unlike those of the file, variables that name no setting are no error: the client has some of its own.
    """
    names = [name for name in environment if name.upper().startswith(PREFIX)]
    tops = {name: name[len(PREFIX) :].lower().partition("__")[0] for name in names}
    unknown = {name: top for name, top in tops.items() if top not in Settings.model_fields and top not in OTHERS}
    near = {name: difflib.get_close_matches(top, Settings.model_fields, 1, CLOSE) for name, top in unknown.items()}
    faults = {
        name: [f"is no setting: did you mean {PREFIX}{match[0].upper()}?"] for name, match in near.items() if match
    }
    if faults:
        raise ValidationFailed(faults)
    for name in unknown:
        log.warning("%s is no setting, and is passed over: docs/settings.md lists those that there are.", name)


def _faults(error: ValidationError) -> dict[str, list[str]]:
    return {
        ".".join(str(part) for part in fault["loc"]) or "settings": [fault["msg"].removeprefix("Value error, ")]
        for fault in error.errors()
    }


def _from_file(file: Path | None) -> type[Settings]:
    class FileSettings(Settings):
        model_config = SettingsConfigDict(toml_file=file)

    return FileSettings
