"""The order that starts an app: the one thing that runs in an instance, and nothing in it is Incus's to know."""

from __future__ import annotations

import subprocess
from pathlib import Path

from builderd.adapters.engines.incus.guest import END, ENTRY, RUN, exec_argv, order, root_argv

QUOTED = 'it\'s "quoted" $HOME `id`\nsecond line'


def test_programs_are_valid_shell(tmp_path: Path) -> None:
    for number, text in enumerate((ENTRY, RUN, END)):
        script = tmp_path / str(number)
        script.write_text(text)
        subprocess.run(["/bin/sh", "-n", script], check=True)


def test_order_passes_values_as_they_are(tmp_path: Path) -> None:
    text = order(("/bin/echo", QUOTED), {"SECRET": QUOTED}, {str(tmp_path / "hosts"): QUOTED}, {}, 1_000_000)
    shown = text.decode().replace("/run/builderd", str(tmp_path)).replace(": >/log/ordered\n", "")
    run = 'run() { env -i "$@"; env -i "$1" printenv SECRET >' + str(tmp_path / "secret") + "; }\n"
    done = subprocess.run(["/bin/sh", "-c", run + shown], capture_output=True, text=True, check=True)
    assert done.stdout == f"{QUOTED}\n"
    assert (tmp_path / "hosts").read_text() == QUOTED
    assert (tmp_path / "secret").read_text() == f"{QUOTED}\n"


def test_secret_files_are_the_apps_alone() -> None:
    text = order(("true",), {}, {}, {"/run/credentials/db/PASSWORD": "x"}, 1_000_000).decode()
    assert "umask 077" in text
    assert "chown 1000:1000 /run/credentials/db/PASSWORD" in text


def test_entry_runs_an_order_once() -> None:
    assert ENTRY.index("/log/ordered") < ENTRY.index("mkfifo")
    assert "no-new-privs" in ENTRY
    assert "--bounding-set=-all" in ENTRY


def test_commands_run_as_the_app_and_builds_without_capabilities() -> None:
    argv = exec_argv(("ls",), {"A": "b"}, "/app", joined=True)
    assert "/opt/builderd/run 1000" in argv[2]
    assert argv[3:] == ["/app", "A=b", "ls"]
    assert root_argv(("make",), {}, "/app")[:5] == ["/opt/builderd/run", "0", "/app", "1", "-all"]
    assert root_argv(("restic",), {}, "/", user=1000, kept="+dac_read_search")[4] == "-all,+dac_read_search"
