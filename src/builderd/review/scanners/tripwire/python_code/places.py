"""Tables of the flow analysis, from ``rules/places.toml``: kinds of data, files with secrets, functions by name."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

_TABLES: dict[str, dict[str, Any]] = tomllib.loads((Path(__file__).parents[1] / "rules/places.toml").read_text())


def _names(table: str) -> frozenset[str]:
    return frozenset(_TABLES["names"][table].split())


def _text(table: str, name: str) -> str:
    """Return a regular expression, with the pieces in place of ``<NAME>``."""
    text = "".join(_TABLES[table][name])
    return re.sub(r"<([A-Z_]+)>", lambda found: _text("pieces", found[1]), text)


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(_text("patterns", name))


#: Kinds of data.
SECRET, SECRET_PATH, HOME_PATH, LISTED_PATH = "secret", "secret path", "home path", "listed path"
ENVIRONMENT, FETCHED, RECEIVED, DECODED, DOCUMENT = "environment", "fetched", "received", "decoded", "document"
INPUT, CLIPBOARD, USER, HOST, ENCRYPTED = "input", "clipboard", "user", "host", "encrypted"
REQUEST = "request"
#: A private key or a wallet's recovery phrase, by the name of its variable.
KEY = "key"
KEY_NAMES = _names("KEY_NAMES")
SECRET_KEY_NAMES = _names("SECRET_KEY_NAMES")
WALLET_NAMES = _pattern("WALLET_NAMES")
KEY_CARRIERS = _names("KEY_CARRIERS")
KEY_METHODS = _names("KEY_METHODS")
KEY_FIELDS = _names("KEY_FIELDS")
#: Kinds that sound apps handle too.
WEAK = frozenset({DECODED, DOCUMENT, USER, HOST, LISTED_PATH, HOME_PATH, ENCRYPTED, KEY, "content"})
#: Kinds that say where a file lies; reading it makes data of them.
PATHS = frozenset({SECRET_PATH, HOME_PATH, LISTED_PATH})
SECRET_FILES = _pattern("SECRET_FILES")
START_FILES = _pattern("START_FILES")
WIDE = _pattern("WIDE")
HOMES = _names("HOMES")
DOCUMENTS = _pattern("DOCUMENTS")
WALLET = _pattern("WALLET")
ADDRESS = _pattern("ADDRESS")
FETCHERS = _pattern("FETCHERS")
SENDERS = _pattern("SENDERS")
SEND_METHODS = _names("SEND_METHODS")
STREAMS = _pattern("STREAMS")
RESOLVERS = _pattern("RESOLVERS")
EVALUATORS = _names("EVALUATORS")
#: Those that are code only as a text: a function in its place is not.
ONLY_TEXT = frozenset({"setTimeout", "setInterval"})
DESERIALIZERS = _names("DESERIALIZERS")
PROCESSES = _names("PROCESSES")
SHELLS = _names("SHELLS")
TEMPLATES = _names("TEMPLATES")
REQUESTS = _names("REQUESTS")
REQUEST_PARTS = _names("REQUEST_PARTS")
HANDLERS = _names("HANDLERS")
CHAT_HANDLERS = _names("CHAT_HANDLERS")
#: Methods that start a child.
CHILDREN = frozenset({"spawn", "fork", "execFile", "Popen", "create_subprocess_exec"})
#: Objects by which a handler answers its visitor.
ANSWERS = frozenset({"res", "response", "reply", "ctx"})
INPUTS = frozenset({f"streamlit.{name}" for name in ("text_input", "text_area", "chat_input")})
READERS = _names("READERS")
READ_METHODS = _names("READ_METHODS")
OPENERS = _names("OPENERS")
LISTERS = _names("LISTERS")
LIST_METHODS = _names("LIST_METHODS")
WRITERS = _names("WRITERS")
JOINERS = _names("JOINERS")
SAME = _names("SAME")
USERS = _names("USERS")
HOSTS = _names("HOSTS")
CAPTURES = _names("CAPTURES")
LISTENERS = _pattern("LISTENERS")
CLIPBOARDS = _names("CLIPBOARDS")
COPIES = _names("COPIES")
DECODERS = _names("DECODERS")
DANGEROUS = _names("DANGEROUS")
CLEANERS = _names("CLEANERS")
CLEANING_METHODS = _names("CLEANING_METHODS")
MUTATORS = _names("MUTATORS")
ENVIRONMENTS = _names("ENVIRONMENTS")
#: Programs that run a file, for use behind a word's begin.
INTERPRETERS = _text("pieces", "INTERPRETERS")
DOWNLOADS = _pattern("DOWNLOADS")
SENDS = _pattern("SENDS")
LOOKS_UP = _pattern("LOOKS_UP")
PUBLISHES = _pattern("PUBLISHES")
SEARCHES_SECRETS = _pattern("SEARCHES_SECRETS")
DESTROYS = _pattern("DESTROYS")
GOES_TO_A_FOLDER = _pattern("GOES_TO_A_FOLDER")
UNPACKS = _pattern("UNPACKS")
STARTS_BESIDE = _pattern("STARTS_BESIDE")
READS_ADDRESS = _pattern("READS_ADDRESS")
ADDRESS_OF_WEB = _pattern("ADDRESS_OF_WEB")
CLOUD_KEYS = _pattern("CLOUD_KEYS")
SOCKETS = _pattern("SOCKETS")
WHOAMI = _pattern("WHOAMI")
REMOVERS = _names("REMOVERS")
INTERPRETER_NAMES = _names("INTERPRETER_NAMES")
IMPORTS = _names("IMPORTS")
COMMON_METHODS = _names("COMMON_METHODS")
