"""Parser of the files that hold environment variables: ``.env``, with a line ``NAME=VALUE`` for each. Pure.

Libraries differ; what they agree on is read (https://github.com/motdotla/dotenv#what-rules-does-the-parsing-engine-follow):
comments, ``export``, quotes of both kinds over several lines, and escapes between double quotes. ``$NAME`` stays text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from builderd.domain.bundles import Bundle, path_error
from builderd.domain.errors import ValidationFailed
from builderd.domain.versions import ENV_NAME, MAX_ENV_BYTES, PLATFORM_ENV, env_error

#: Faulty lines that one error names.
MAX_NAMED = 10

BAD_NAME = ", with only letters, digits and _ in the name, and no digit first"
_NAME = re.compile(r"[ \t]*(?:export[ \t]+)?(?P<name>[^\s=#'\"]+)[ \t]*=[ \t]*")
_QUOTED = re.compile(r"'(?P<plain>[^']*)'|\"(?P<escaped>(?:[^\"\\]|\\.)*)\"", re.DOTALL)
_END = re.compile(r"[ \t]*(?:#[^\n]*)?(?:\n|\Z)")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t"}
#: A comment after a value follows a space: `a#b` is a value.
_COMMENT = re.compile(r"(?:^|(?<=[ \t]))#")


@dataclass(slots=True)
class EnvFile:
    """Variables of a file. ``errors`` say what is wrong, each with its line; ``ignored`` are set by the platform."""

    values: dict[str, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


def env_file_error(path: str) -> str | None:
    """Return the reason to reject the path of such a file, or None; the empty path is no file."""
    return path_error(path) if path else None


def read_env_file(bundle: Bundle, path: str) -> Mapping[str, str]:
    """Return the variables of the bundle's file; none for an empty path.

    Raises ``ValidationFailed`` for a path without a file, and for faulty lines with their numbers.
    """
    if not path:
        return {}
    file = bundle.file(path)
    if file is None:
        raise ValidationFailed({"env_file": [f'names a file that is not in files: {path} (no file: "env_file": "")']})
    if file.size > MAX_ENV_BYTES:
        raise ValidationFailed({"env_file": [f"{path} must be at most {MAX_ENV_BYTES} bytes long: it has {file.size}"]})
    try:
        text = file.content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValidationFailed({"env_file": [f"{path}, line {line}: must be text in UTF-8"]}) from None
    found = parse(text)
    if found.errors:
        raise ValidationFailed({"env_file": [f"{path}, {one}" for one in found.errors]})
    return found.values


def ignored_names(bundle: Bundle, path: str) -> Sequence[str]:
    """Return the variables of a file that was read already that the platform sets itself."""
    file = bundle.file(path) if path else None
    return parse(file.content.decode("utf-8-sig", "replace")).ignored if file is not None else []


def parse(text: str) -> EnvFile:
    """Return the variables of a file's text; of a name that occurs twice, the last one. Stops at the tenth error."""
    found, text, position, line = EnvFile(), text.replace("\r\n", "\n"), 0, 1
    while position < len(text) and len(found.errors) < MAX_NAMED:
        end = _take(text, position, line, found)
        line += text.count("\n", position, end)
        position = end
    return found


def _take(text: str, start: int, line: int, found: EnvFile) -> int:
    """Take the line that begins at ``start`` (with quotes, more than one), and return where the next begins."""
    if (blank := _END.match(text, start)) is not None:
        return blank.end()
    next_line = _next_line(text, start)
    match = _NAME.match(text, start, next_line)
    if match is None or not ENV_NAME.fullmatch(match["name"]):
        why = "must be NAME=VALUE" + (BAD_NAME if match is not None else "")
        # The line itself is not shown: it may hold a secret.
        found.errors.append(f"line {line}: {why}")
        return next_line
    name, value, end = match["name"], text[match.end() : next_line].rstrip("\n"), next_line
    if value[:1] in ("'", '"'):
        quoted = _QUOTED.match(text, match.end())
        closed = _END.match(text, quoted.end()) if quoted is not None else None
        if quoted is None or closed is None:
            found.errors.append(f"line {line}: the value of {name} has no closing {value[0]}, or text after it")
            return next_line
        value, end = _unquoted(quoted), closed.end()
    else:
        value = _COMMENT.split(value, maxsplit=1)[0].strip()
    _keep(name, value, line, found)
    return end


def _keep(name: str, value: str, line: int, found: EnvFile) -> None:
    if name in PLATFORM_ENV:
        # As with every library that reads such files: what is set already stays.
        found.ignored.append(name)
    elif (why := env_error(name, value)) is not None:
        found.errors.append(f"line {line}: {name[:40]}: {why}")
    else:
        found.values[name] = value


def _unquoted(quoted: re.Match[str]) -> str:
    if quoted["plain"] is not None:
        return quoted["plain"]
    return _ESCAPE.sub(lambda one: _ESCAPED.get(one[1], one[1] if one[1] in '"\\$' else one[0]), quoted["escaped"])


def _next_line(text: str, start: int) -> int:
    end = text.find("\n", start)
    return len(text) if end < 0 else end + 1
