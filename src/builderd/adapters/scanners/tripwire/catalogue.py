"""The own rules in words: what each saw, and what to do about it."""

from __future__ import annotations

from typing import NamedTuple


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
