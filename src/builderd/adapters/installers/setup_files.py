"""Strict reader of ``setup.py`` and ``setup.cfg``, which are hostile input: neither is run.

``install_requires`` is read from the tokens of ``setup.py``: a list or tuple of texts, or a name that one is assigned
to. Tokens are read one after the other, so that no depth of nesting ends this process, as that of a syntax tree could.

Formats: https://setuptools.pypa.io/en/latest/userguide/dependency_management.html and
https://setuptools.pypa.io/en/latest/userguide/declarative_config.html.
"""

from __future__ import annotations

import ast
import configparser
import io
import re
import tokenize
from collections.abc import Sequence
from itertools import pairwise
from tokenize import TokenInfo

from builderd.adapters.installers.requirements import MAX_QUOTED, Requirements, collect, read_text
from builderd.domain.bundles import Bundle
from builderd.domain.errors import InstallFailed

SETUP_PY, SETUP_CFG = "setup.py", "setup.cfg"
#: Much more than such files have; reading tokens takes a second for a megabyte.
MAX_BYTES = 100_000
KEY = "install_requires"
CURE = "list them in requirements.txt"
#: configparser takes time in the square of the number of lines that it cannot read: 0.05 s for these.
MAX_CFG_LINES = 5_000
#: Two blanks or more behind a text of the same line; configparser takes time in the square of their number.
_RUN = re.compile(r"(?<=\S)([^\S\n])[^\S\n]+")
_BLANK = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING}
#: What stands behind a name that is changed, and before one that is given another value.
_CHANGED_BY = {".", "[", ":=", "+=", "-=", "*=", "/=", "//=", "%=", "@=", "&=", "|=", "^=", ">>=", "<<=", "**="}
_GIVEN_BY = {"as", "class", "def", "for", "import"}
_CLOSES = {"[": "]", "(": ")"}
_OPENS, _ENDS = {"[", "(", "{"}, {"]", ")", "}"}


def read_setup(bundle: Bundle) -> Requirements | None:
    """Return the ``install_requires`` of ``setup.py``, else of ``setup.cfg``; None without any.

    Raises ``InstallFailed`` with the file and the reason, also where only running ``setup.py`` would tell.
    """
    for path, read in ((SETUP_PY, _of_setup_py), (SETUP_CFG, _of_setup_cfg)):
        text = read_text(bundle, path, MAX_BYTES)
        if found := read(text) if text else []:
            return collect(path, [(KEY, one) for one in found])
    return None


def _of_setup_cfg(text: str) -> list[str]:
    if (lines := text.count("\n")) > MAX_CFG_LINES:
        raise InstallFailed(f"{SETUP_CFG} has {lines} lines: at most {MAX_CFG_LINES} are read; {CURE}.")
    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read_string(_RUN.sub(r"\1", text))
    except configparser.Error as error:
        reason = " ".join(str(error)[:MAX_QUOTED].split())
        raise InstallFailed(f"{SETUP_CFG} is not readable: {reason}.") from None
    value = parser.get("options", KEY, fallback="").strip()
    if value.startswith(("file:", "attr:")):
        raise _computed(SETUP_CFG, value.split("\n")[0][:MAX_QUOTED])
    parts = (part.strip() for line in value.splitlines() for part in line.split(" #")[0].split(";;"))
    return [part for part in parts if part and not part.startswith("#")]


def _of_setup_py(text: str) -> list[str]:
    if KEY not in text:
        return []
    tokens = _tokens(text)
    places = [index for index, token in enumerate(tokens) if token.string == KEY and _follows(tokens, index, "=")]
    # ``install_requires = […]`` on a line of its own is what ``setup(install_requires=install_requires)`` names.
    arguments = [index for index in places if tokens[index].start[1] > 0] or places
    if not arguments and not any(token.string.strip("'\"") == KEY for token in tokens):
        return []  # a comment or a text about it
    if len(arguments) != 1:
        raise _computed(SETUP_PY, f"it is given {len(arguments)} times")
    _refuse_changes(tokens, KEY)
    first = arguments[0] + 2
    if tokens[first].type == tokenize.NAME and _ends(tokens[first + 1]):
        return _literal(tokens, _assigned(tokens, tokens[first].string))
    return _literal(tokens, first)


def _tokens(text: str) -> list[TokenInfo]:
    if "\0" in text:
        raise InstallFailed(f"{SETUP_PY} is not Python: it holds a NUL.")
    try:
        found = tokenize.generate_tokens(io.StringIO(text).readline)
        return [token for token in found if token.type not in _BLANK]
    except (tokenize.TokenError, SyntaxError, RecursionError) as error:
        raise InstallFailed(f"{SETUP_PY} is not Python: {error.args[0]}.") from None


def _follows(tokens: Sequence[TokenInfo], index: int, text: str) -> bool:
    return index + 1 < len(tokens) and tokens[index + 1].string == text


def _assigned(tokens: Sequence[TokenInfo], name: str) -> int:
    """Return where the one value begins that is assigned to the name at the beginning of a line."""
    places = [
        index
        for index, token in enumerate(tokens)
        if token.string == name and token.start[1] == 0 and _follows(tokens, index, "=")
    ]
    if len(places) != 1:
        raise _computed(SETUP_PY, f"{name} is assigned {len(places)} times")
    _refuse_changes(tokens, name)
    return places[0] + 2


def _refuse_changes(tokens: Sequence[TokenInfo], name: str) -> None:
    """Raise ``InstallFailed`` where the name's value may be another one than that at the beginning of a line."""
    depth, before = 0, ""
    for token, following in pairwise(tokens):
        # In brackets, ``name=`` is an argument.
        is_assigned = following.string == "=" and depth == 0 and token.start[1] > 0
        if token.string == name and (following.string in _CHANGED_BY or is_assigned or before in _GIVEN_BY):
            raise _computed(SETUP_PY, f"{name} is changed in line {token.start[0]}")
        if token.type == tokenize.OP:
            depth += (token.string in _OPENS) - (token.string in _ENDS)
        before = token.string


def _literal(tokens: Sequence[TokenInfo], index: int) -> list[str]:
    """Return the texts of the list or tuple that begins here. Raises ``InstallFailed`` for any other value."""
    closing = _CLOSES.get(tokens[index].string)
    if closing is None:
        raise _computed(SETUP_PY, f"its value begins with {tokens[index].string[:40]!r}")
    found: list[str] = []
    is_separated = True
    for token, following in pairwise(tokens[index + 1 :]):
        if token.string == closing and _ends(following):
            return found
        if token.type == tokenize.STRING:
            # Texts without a comma between them are one text.
            if is_separated:
                found.append("")
            found[-1] += _value(token)
            is_separated = False
        elif token.string == "," and not is_separated:
            is_separated = True
        else:
            break
    raise _computed(SETUP_PY, f"{token.string[:40]!r} in line {token.start[0]} is not one of its texts")


def _ends(token: TokenInfo) -> bool:
    """Return True if a value ends before this token: an argument's, or a statement's."""
    is_next_line = token.type == tokenize.NAME and token.start[1] == 0
    return token.string in {",", ")", ";"} or token.type == tokenize.ENDMARKER or is_next_line


def _value(token: TokenInfo) -> str:
    try:
        value = ast.literal_eval(token.string)
    except (ValueError, SyntaxError):
        value = None
    if not isinstance(value, str):
        raise _computed(SETUP_PY, f"{token.string[:40]} is not a text")
    return value


def _computed(path: str, why: str) -> InstallFailed:
    return InstallFailed(
        f"{path}: {KEY} is not a plain list of texts ({why}), and builderd does not run {path}: {CURE}."
    )
