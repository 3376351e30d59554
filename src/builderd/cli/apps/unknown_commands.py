"""Message about a command that this version does not have: a newer service's version, or commands with a like name."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from contextlib import suppress
from difflib import get_close_matches

from builderd import __version__
from builderd.cli.apps.session import Session

#: Most time for asking the service, with the look-up of its host and the connection.
ASK_SECONDS = 2.0


def message(words: Sequence[str], known: Sequence[str], group: str = "") -> str:
    """Return the message about ``words``, whose first is none of the ``known`` commands; ``group`` is the one above."""
    sentences = [f"No such command {words[0]!r} of {group!r}." if group else f"No such command {words[0]!r}."]
    like = get_close_matches(words[0], known)
    if like:
        sentences.append(f"Did you mean {' or '.join(repr(name) for name in like)}?")
    service = service_version(_context(words))
    if service and _numbers(service) > _numbers(__version__):
        sentences.append(
            f"This is builderd {__version__}, the service is {service}: pip install -U builderd=={service}"
        )
    elif not service and not like:
        sentences.append(f"This is builderd {__version__}: a later version may have it.")
    return " ".join(sentences)


def service_version(context: str | None) -> str:
    """Return the service's version; "" when not signed in, without an answer in time, or for one that is no version."""
    session = Session(context=context, timeout=ASK_SECONDS)
    try:
        client = session.client.with_options(max_retries=0)
    except Exception:
        return ""  # not signed in, or a faulty context: the message about the command is the one that matters
    found: list[str] = []

    def ask() -> None:
        with suppress(Exception):
            found.append(client.health().version)

    # A thread: the limit holds for the look-up of the name and the connection, too.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ASK_SECONDS)
    return found[0] if found and _numbers(found[0]) else ""


def _context(words: Sequence[str]) -> str | None:
    for word, following in zip(words, [*words[1:], None], strict=True):
        if word == "--context":
            return following
        if word.startswith("--context="):
            return word.partition("=")[2]
    return None


def _numbers(version: str) -> list[int]:
    """Return a version's numbers without zeros at the end; none for what is no released version."""
    # The service chooses the text, and the user may paste it into a shell.
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6}){1,3}", version):
        return []
    numbers = [int(number) for number in version.split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return numbers
