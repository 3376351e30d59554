"""State of one review: its files, what was found in them, and the findings as the service gets them."""

from __future__ import annotations

import hashlib
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from builderd.adapters.scanners.tripwire.secret_rules import Secret, masked
from builderd.domain.sources import Kind, References


class Words(NamedTuple):
    """``message`` says what is there, ``advice`` what to do."""

    message: str
    advice: str


_ACCEPT = "If it is meant, accept the finding with a reason"
_REMOVE = "Remove it; if it is no attack, ask an admin to accept the finding"

CATALOGUE = {
    "SAN-syntax": Words("this cannot be parsed", "Mend the syntax"),
    "SAN-unparsable": Words(
        "the file cannot be read as code", "Write it plainer, or keep it as data under another ending"
    ),
    "MAL-reverse-shell": Words("a shell is connected to a socket", _REMOVE),
    "MAL-remote-commands": Words("what comes from a socket is run as a command", _REMOVE),
    "MAL-decoded-executed": Words("hidden code is decoded and executed", "Ship the code as it is instead of encoded"),
    "MAL-fetched-executed": Words("code is fetched and executed", "Ship the code with the app or as a dependency"),
    "MAL-environment-sent": Words(
        "the whole environment, with its secrets, is sent out", "Send only the values that are needed"
    ),
    "MAL-secrets-sent": Words(
        "files in which people keep secrets are read and sent out", "Hand the app what it needs as a credential"
    ),
    "MAL-input-sent": Words("what a person types, copies or sees is recorded and sent out", _REMOVE),
    "MAL-data-in-dns": Words("data is carried out in a name that is looked up", _REMOVE),
    "MAL-hidden-name": Words(
        "a function is fetched by a name that is put together from parts", "Call it by its name, so that it can be read"
    ),
    "MAL-document-executed": Words(
        "a file that is no code by its name is executed", "Ship the code in a file of code, and import it"
    ),
    "MAL-encrypts-files": Words("the files of a home folder are encrypted in their place", _REMOVE),
    "MAL-address-replaced": Words("the address of a wallet is replaced by another one", _REMOVE),
    "MAL-install-hook": Words("an install hook fetches and runs code", "Ship what it needs as a dependency"),
    "MAL-miner": Words("this mines a cryptocurrency", _REMOVE),
    "MAL-fork-bomb": Words("processes are forked without end", _REMOVE),
    "MAL-destroys": Words("it deletes or overwrites everything in a place", "Name the files that are meant"),
    "MAL-bidi": Words(
        "invisible characters make the line read in another order than it runs",
        "Remove the bidirectional control characters",
    ),
    "RSK-request-evaluated": Words("data of a request is evaluated as code", f"Parse it instead. {_ACCEPT}"),
    "RSK-request-in-shell": Words(
        "data of a request goes into a shell", f"Pass a list of arguments without shell=True. {_ACCEPT}"
    ),
    "RSK-request-template": Words(
        "data of a request is used as a template", f"Pass it to the template as a value. {_ACCEPT}"
    ),
    "RSK-fetched-in-command": Words("fetched data goes into a shell", f"Pass a list of arguments. {_ACCEPT}"),
    "RSK-fetched-deserialized": Words(
        "a download is deserialized by a function that runs code in it",
        f"Ship the data with the app, or use a format without code such as JSON. {_ACCEPT}",
    ),
    "RSK-persists": Words("it writes what a shell, a login or the machine runs at its start", _ACCEPT),
    "RSK-host-sent": Words("the names of the user and of the machine are sent out", _ACCEPT),
    "RSK-key-sent": Words(
        "a private key or a recovery phrase is sent out", f"Sign with it here, and send the signature. {_ACCEPT}"
    ),
    "RSK-docker-socket": Words("it asks for the container engine's socket, which a sandbox has not", _ACCEPT),
    "RSK-metadata": Words("it asks for a cloud's metadata address, where machines keep secrets", _ACCEPT),
    "RSK-minified": Words(
        "in a line that a program wrote is what would be blocked in one of a person's",
        f"Ship the code as it was written. {_ACCEPT}",
    ),
    "RSK-curl-shell": Words("a script is fetched and piped into a shell", f"Ship the script with the app. {_ACCEPT}"),
    "HOOK-install": Words("a script runs when dependencies are installed", "Look whether it is needed"),
    "INJ-sql": Words("SQL is put together from strings", "Pass the values as parameters"),
    "INJ-path": Words("a path comes from a request", "Check that it stays within its folder"),
}


QUOTED = re.compile(r"[\"'`][^\"'`]*[\"'`]")
#: Characters of a line that a finding shows.
MAX_TEXT = 200
#: What a tool may take of the review's time.
SHARE = 0.8


class Source(NamedTuple):
    path: str
    kind: str
    content: bytes


@dataclass(slots=True)
class Review:
    """State of one review."""

    sources: Sequence[Source]
    paths: Sequence[str]
    deadline: float
    texts: dict[str, str] = field(default_factory=dict)
    lines: dict[str, list[str]] = field(default_factory=dict)
    secrets: dict[str, list[Secret]] = field(default_factory=lambda: defaultdict(list))
    raw: list[tuple[str, str, int, str, str, bool]] = field(default_factory=list)
    references: dict[str, References] = field(default_factory=dict)
    hooks: set[str] = field(default_factory=set)
    trees: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def add(self, rule: str, path: str, line: int, *words: str, hidden: bool = False) -> None:
        """``hidden``: nothing in quotes on that line is shown."""
        message, advice = words or CATALOGUE[rule]
        self.raw.append((rule, path, line, message, advice, hidden))

    def add_flow(self, rule: str, path: str, line: int, trace: Sequence[Sequence[Any]]) -> None:
        """Add a hit whose message shows the way of the data: source, steps, sink."""
        words = CATALOGUE[rule]
        steps = " → ".join(dict.fromkeys(f"{where}:{number}" for where, number in trace))
        message = f"{words.message}: {steps}" if "→" in steps else words.message
        self.add(rule, path, line, message, words.advice)

    def left(self) -> float:
        return max(0.1, (self.deadline - time.monotonic()) * SHARE)

    def of(self, *kinds: Kind) -> list[Source]:
        return [source for source in self.sources if source.kind in kinds]


def reported(review: Review) -> Iterator[dict[str, Any]]:
    """Yield each finding once, with its line: secrets in it are masked, and no character of it controls a terminal."""
    contents = {source.path: source.content for source in review.sources}
    seen: set[tuple[str, str, int]] = set()
    for rule, path, line, message, advice, hidden in review.raw:
        if (rule, path, line) in seen:
            continue
        seen.add((rule, path, line))
        lines = review.lines.get(path, [])
        text = lines[line - 1].strip() if 0 < line <= len(lines) else ""
        # A finding on a whole file is bound to that content.
        marked = text.encode(errors="surrogatepass") if line else contents.get(path, b"")
        mark = hashlib.sha256(marked).hexdigest()[:32]
        shown = masked(text, [secret.value for secret in review.secrets.get(path, ())])
        if hidden:
            shown = QUOTED.sub("…", shown)
        visible = (char if char.isprintable() or char == "\t" else f"<U+{ord(char):04X}>" for char in shown)
        yield {
            "rule": rule,
            "path": path,
            "line": line,
            "text": "".join(visible)[:MAX_TEXT],
            "mark": mark,
            "message": message,
            "advice": advice,
        }
