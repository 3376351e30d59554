"""Apps that behave alike on every engine: the command a real one runs, and the script a fake one follows."""

from __future__ import annotations

from dataclasses import dataclass

from tests.fakes.processes import Answer
from tests.fakes.sandboxes import Behaviour

from builderd.sandboxes.model import IPV6_ONLY

PORT = 8000


@dataclass(frozen=True, slots=True)
class App:
    entrypoint: str
    behaviour: Behaviour


@dataclass(frozen=True, slots=True)
class Command:
    text: str
    answer: Answer


def _server(address: str, port: int) -> str:
    return f"python3 -m http.server --bind {address} {port}"


SERVER = App(_server("0.0.0.0", PORT), Behaviour())
LOOPBACK_SERVER = App(_server("127.0.0.1", PORT), Behaviour(address="127.0.0.1"))
IPV6_SERVER = App(
    f"""python3 -c "
import socket, time
server = socket.create_server(('::', {PORT}), family=socket.AF_INET6)
time.sleep(1000)"
""",
    Behaviour(address=IPV6_ONLY),
)
OTHER_PORT_SERVER = App(_server("0.0.0.0", 9000), Behaviour(port=9000))
SILENT = App("sleep 1000", Behaviour(listens_at=None))
FAILING = App("echo good bye; exit 7", Behaviour(listens_at=None, exits_at=1, exit_code=7, lines=("good bye",)))
DONE = App("echo done", Behaviour(listens_at=None, exits_at=1, lines=("done",)))
HOG = App(
    "exec python3 -c 'b = bytearray(1 << 30)'",
    Behaviour(listens_at=None, exits_at=1, exit_code=137, out_of_memory=True),
)
GREETER = App("cat /venv/greeting", Behaviour(listens_at=None, exits_at=1, lines=("hello",)))
COUNTING = App("seq 100", Behaviour(listens_at=None, exits_at=1, lines=tuple(str(n) for n in range(1, 101))))
APPS = (SERVER, LOOPBACK_SERVER, IPV6_SERVER, OTHER_PORT_SERVER, SILENT, FAILING, DONE, HOG, GREETER, COUNTING)

BOTH_STREAMS = Command("echo one; echo two >&2; exit 3", Answer(3, "one\ntwo\n"))
LONG_OUTPUT = Command("yes | head -c 100000", Answer(0, "y\n" * 50_000))
SLOW = Command("echo begun; sleep 1000", Answer(0, "begun\n", seconds=1000))
ECHO = Command("cat", Answer(echoes=True))
SPLIT = Command("echo out; echo err >&2", Answer(0, "out\n", errors="err\n"))
COMMANDS = (BOTH_STREAMS, LONG_OUTPUT, SLOW, ECHO, SPLIT)
