"""The order that starts an app: the one thing that runs in an instance, and nothing in it is Incus's to know."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from builderd.adapters.engines.incus.image import (
    BEGIN,
    DROP_SECONDS,
    DROPPED,
    END,
    ENTRY,
    RUN,
    exec_argv,
    order,
    root_argv,
    specified,
)

QUOTED = 'it\'s "quoted" $HOME `id`\nsecond line'


def test_programs_are_valid_shell(tmp_path: Path) -> None:
    for number, text in enumerate((ENTRY, RUN, END)):
        script = tmp_path / str(number)
        script.write_text(text)
        subprocess.run(["/bin/sh", "-n", script], check=True)


def test_app_writes_on_while_its_log_has_no_space(tmp_path: Path) -> None:
    """Descriptors 8 and 9 stand for s6-log, which reads nothing while it cannot write, and says so."""
    functions = ENTRY.replace("/run/builderd", f"{tmp_path}/run").replace(f"timeout {DROP_SECONDS}", "timeout 0.5")
    functions = functions.partition("umask 022\n")[2].partition("\n")[2].rpartition(". ")[0]
    steps = """\
exec 7<>$R/stuck 8<>$R/out 9<>$R/err
drop & dropping=$!
( while sleep 0.2; do echo warning >$R/stuck; done ) & warning=$!
head -c 1000000 /dev/zero >$R/out
head -c 1000000 /dev/zero >$R/err
kill $warning
read -r line <$R/err
kill $dropping
echo "$line" | tr -d "\\0"
""".replace("$R", f"{tmp_path}/run")
    argv = ["/bin/sh", "-c", functions + steps]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == f"{DROPPED}\n"


def test_commands_are_killed_for_the_memory_of_the_member_as_early_as_apps(tmp_path: Path) -> None:
    (script := tmp_path / "run").write_text(
        RUN.replace("exec /usr/bin/tini -s --", "cat /proc/self/oom_score_adj; exit\n#")
    )
    done = subprocess.run(["/bin/sh", script, "0", "0", "-all"], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("500\n", "")


def begin(tmp_path: Path, *words: str, kept: bytes = b"", stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run ``begin`` with the variables ``kept`` at descriptor 3."""
    script, variables = tmp_path / "begin", tmp_path / "variables"
    script.write_text(BEGIN)
    variables.write_bytes(kept)
    command: list[str | Path] = ["/bin/sh", "-c", 'exec "$@" 3<"$0"', variables, "perl", script, *words]
    env = {"PATH": os.environ["PATH"], "LEFT_OVER": "x"}
    return subprocess.run(command, input=stdin, capture_output=True, env=env, check=False)


def test_order_passes_values_as_they_are(tmp_path: Path) -> None:
    env = {"SECRET": QUOTED, "EMPTY": "", "OPTIND": "no number"}
    text = order(("/bin/echo", QUOTED), env, {str(tmp_path / "hosts"): QUOTED}, {}, 1_000_000)
    shown = text.decode().replace("/run/builderd", str(tmp_path)).replace(": >/log/ordered\n", "")
    done = subprocess.run(["/bin/sh", "-c", 'run() { "$@"; }\n' + shown], capture_output=True, text=True, check=True)
    assert done.stdout == f"{QUOTED}\n"
    assert (tmp_path / "hosts").read_text() == QUOTED
    kept = tmp_path / "environment"
    assert kept.stat().st_mode & 0o777 == 0o600
    app = begin(tmp_path, "app", "/usr/bin/env", "-0", kept=kept.read_bytes())
    assert sorted(app.stdout.decode().split("\0")[:-1]) == sorted(f"{name}={value}" for name, value in env.items())


def test_order_without_variables_begins_with_none(tmp_path: Path) -> None:
    text = order(("true",), {}, {}, {}, 1_000_000).decode().replace("/run/builderd", str(tmp_path))
    subprocess.run(["/bin/sh", "-c", "run() { :; }\n" + text.replace(": >/log/ordered\n", "")], check=True)
    assert begin(tmp_path, "app", "/usr/bin/env", kept=(tmp_path / "environment").read_bytes()).stdout == b""


def test_command_gets_the_apps_variables_and_its_own(tmp_path: Path) -> None:
    wanted = specified(("/bin/sh", "-c", 'printf "%s|" "$A" "$B" "$PWD"; cat'), {"B": QUOTED}, "/usr")
    done = begin(tmp_path, "command", "", kept=b"A=app\0B=app\0", stdin=wanted + b"input")
    asked, _, rest = done.stdout.partition(b"\x06")
    assert asked == b"\x05"
    assert rest.partition(b"\n")[2].decode() == f"app|{QUOTED}|/usr|input"


@pytest.mark.parametrize(
    ("wanted", "output", "code"),
    [
        (specified(("true",), {}, "/no such folder"), b"\x05\x15", 1),
        (specified(("true",), {}, "/")[:-1], b"\x05", 1),
        (b"", b"\x05", 1),
    ],
)
def test_command_without_folder_or_specification_does_not_begin(
    tmp_path: Path, wanted: bytes, output: bytes, code: int
) -> None:
    done = begin(tmp_path, "command", "", stdin=wanted)
    assert (done.stdout, done.returncode) == (output, code)


def test_missing_program_ends_with_127(tmp_path: Path) -> None:
    done = begin(tmp_path, "command", "", stdin=specified(("no-such-program",), {}, "/"))
    assert (done.returncode, b"no-such-program: No such file" in done.stderr) == (127, True)


def test_secret_files_are_the_apps_alone(tmp_path: Path) -> None:
    # As builderd names them: below the folder of secrets.
    secrets = {"zoho/API_KEY": QUOTED, "zoho/B": "", "_job/stdin": "one\ntwo\n"}
    text = order(("true",), {}, {}, secrets, 1_000_000).decode()
    assert text.count(" /run/credentials ") == 3
    assert "chown 1000:1000 " in text
    top = tmp_path / "credentials"
    here = text.replace("/run/credentials", str(top)).replace("/run/builderd", str(tmp_path))
    own = here.replace(": >/log/ordered\n", "").replace("chown 1000:1000", f"chown {os.getuid()}:{os.getgid()}")
    subprocess.run(["/bin/sh", "-ec", "umask 022; run() { :; }\n" + own], cwd=tmp_path, check=True)
    modes = {str(path.relative_to(top)): path.stat().st_mode & 0o777 for path in (top, *top.rglob("*"))}
    folders = {".": 0o500, "zoho": 0o500, "_job": 0o500}
    assert modes == {**folders, "zoho/API_KEY": 0o400, "zoho/B": 0o400, "_job/stdin": 0o400}
    assert {name: (top / name).read_text() for name in secrets} == secrets
    assert {path.name for path in tmp_path.iterdir()} == {"credentials", "environment"}


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../b", "a", "a/b/c"])
def test_no_secret_file_leads_elsewhere(name: str) -> None:
    with pytest.raises(ValueError, match="<credential>/<variable>"):
        order(("true",), {}, {}, {name: "secret"}, 1_000_000)


def test_entry_runs_an_order_once() -> None:
    assert ENTRY.index("/log/ordered") < ENTRY.index("mkfifo")
    assert "no-new-privs" in ENTRY
    assert "--bounding-set=-all" in ENTRY


def test_commands_run_as_the_app_and_builds_without_capabilities() -> None:
    assert exec_argv(joined=True) == ["/opt/builderd/run", "1000", "1", "-all"]
    assert root_argv() == ["/opt/builderd/run", "0", "1", "-all"]
    assert root_argv(user=1000, kept="+dac_read_search")[3] == "-all,+dac_read_search"
    assert '--bounding-set="$kept"' in RUN
    assert "--no-new-privs" in RUN
