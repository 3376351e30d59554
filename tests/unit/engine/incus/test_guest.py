"""An instance: the order that starts its app, the document that confines it, and its denied system calls."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from builderd.core.errors import ValidationFailed
from builderd.engine.incus.image import DROP_SECONDS, DROPPED, PROGRAMS, order, specified
from builderd.engine.incus.instance import Instance, Volume, denied_calls, document, mirror

QUOTED = 'it\'s "quoted" $HOME `id`\nsecond line'


def test_app_writes_on_while_its_log_has_no_space(tmp_path: Path) -> None:
    """Descriptors 8 and 9 stand for s6-log, which reads nothing while it cannot write, and says so."""
    functions = (
        PROGRAMS["entry"].replace("/run/builderd", f"{tmp_path}/run").replace(f"timeout {DROP_SECONDS}", "timeout 0.5")
    )
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
        PROGRAMS["run"].replace("exec /usr/bin/tini -s --", "cat /proc/self/oom_score_adj; exit\n#")
    )
    done = subprocess.run(["/bin/sh", script, "0", "0", "-all"], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("500\n", "")


def begin(tmp_path: Path, *words: str, kept: bytes = b"", stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run ``begin`` with the variables ``kept`` at descriptor 3."""
    script, variables = tmp_path / "begin", tmp_path / "variables"
    script.write_text(PROGRAMS["begin"])
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


def make(**changes: object) -> dict[str, dict[str, str]]:
    values: dict[str, object] = {
        "name": "s-1",
        "image": "base",
        "pool": "default",
        "cpu": 0.5,
        "memory_bytes": 1 << 28,
        "processes": 512,
        "root_bytes": 1 << 30,
    }
    return document(Instance(**{**values, **changes}), "builderd")  # type: ignore[arg-type]


def test_only_the_service_starts_an_instance() -> None:
    config = make()["config"]
    assert (config["boot.autostart"], config["cluster.evacuate"]) == ("false", "stop")
    assert "lxc.init.cmd = /usr/bin/tini -s -- /opt/builderd/entry" in config["raw.lxc"]


def test_end_calls_incus_alone_and_not_the_wait_of_lxcfs(tmp_path: Path) -> None:
    *_, cleared, hook = make()["config"]["raw.lxc"].splitlines()
    assert cleared == "lxc.hook.post-stop ="
    command = hook.removeprefix("lxc.hook.post-stop = ")
    # As LXC runs it. This program stands for the monitor, which is Incus's; it takes its first argument for a script.
    (tmp_path / "callhook").write_text("import sys; print(sys.argv)")
    monitor = f"import subprocess; subprocess.run(['sh', '-c', {'exec ' + command!r}], check=True)"
    done = subprocess.run([sys.executable, "-c", monitor], cwd=tmp_path, env={}, capture_output=True, check=True)
    assert done.stdout.decode().strip() == str(["callhook", "/var/lib/incus", "builderd", "s-1", "stop"])


def test_app_is_killed_for_the_memory_of_the_member_before_the_members_own_processes() -> None:
    assert "lxc.proc.oom_score_adj = 500" in make()["config"]["raw.lxc"].splitlines()


def test_instance_without_egress_has_no_way_out() -> None:
    raw = make(address="10.99.192.2", gateway="10.99.0.1", routed=False)["config"]["raw.lxc"]
    assert "lxc.net.0.ipv4.address = 10.99.192.2/16" in raw
    assert "gateway" not in raw


def test_volumes_are_hidden_but_for_what_is_bound() -> None:
    volumes = (Volume("disk-1", "/disk"), Volume("layer-1", "/layer", read_only=True))
    body = make(volumes=volumes, binds=(("/disk/app", "/app"), mirror("web/it's")), hidden=("/disk", "/layer"))
    assert body["devices"]["volume1"]["readonly"] == "true"  # type: ignore[index]
    (hook,) = [line for line in body["config"]["raw.lxc"].splitlines() if line.startswith("lxc.hook.mount")]
    assert hook.index("mount --bind disk/app app") < hook.index("tmpfs disk")
    script = shlex.split(hook.partition("= ")[2])[2]
    assert "[ ! -L app/web ]" in script
    target = shlex.quote("app/web/it's/node_modules")
    assert f"mount --bind layer/node_modules {target}" in script


@pytest.mark.parametrize("value", ["a\nlxc.hook.start-host = /bin/sh", "a\r", "a\0"])
def test_value_with_a_line_end_adds_no_key_of_lxc(value: str) -> None:
    with pytest.raises(ValidationFailed):
        make(binds=(mirror(value),))
    with pytest.raises(ValidationFailed):
        make(hostname=value)


#: Upper bits of an argument that the kernel ignores.
FAR = 1 << 32


def answer(call: str, *arguments: int) -> int | None:
    """Return the error with which the policy answers the call; None if it lets it pass."""
    for line in denied_calls().splitlines():
        name, _, error, *conditions = line.split()
        if name == call and all(is_met(condition, arguments) for condition in conditions):
            return int(error)
    return None


def is_met(condition: str, arguments: tuple[int, ...]) -> bool:
    parsed = re.fullmatch(r"\[(\d),(\w+),SCMP_CMP_(GT|MASKED_EQ)(?:,(\w+))?\]", condition)
    assert parsed, condition
    argument, value = arguments[int(parsed[1])], int(parsed[2], 0)
    return argument > value if parsed[3] == "GT" else argument & int(parsed[4], 0) == value


@pytest.mark.parametrize("upper", [0, FAR])
@pytest.mark.parametrize("flag", [0x10000000, 0x20000, 0x40000000])
def test_clone_into_a_namespace_is_denied(flag: int, upper: int) -> None:
    assert answer("clone", upper | flag | 17) == 1
    assert answer("clone", upper | 17) is None


@pytest.mark.parametrize("upper", [0, FAR])
@pytest.mark.parametrize("family", [2, 10])
@pytest.mark.parametrize(
    ("kind", "protocol"), [(1, 262), (2, 136), (1, 132), (5, 132), (5, 0), (6, 33), (6, 0), (2, 115)]
)
def test_rare_protocol_of_the_internet_is_unknown(family: int, kind: int, protocol: int, upper: int) -> None:
    assert answer("socket", family, kind, upper | protocol) in (93, 1)
    assert answer("socket", upper | family, upper | kind, protocol) == 93


def test_raw_sockets_are_denied_and_local_ones_open() -> None:
    assert answer("socket", 2, 3, 1) == answer("socket", 10, FAR | 3, 0) == 1
    assert [answer("socket", 1, kind, 0) for kind in (1, 2, 5)] == [None] * 3
    assert answer("socket", 16, 3, 0) is None
    assert answer("socket", 16, 3, 9) == answer("socket", 16, 3, FAR | 9) == 93


@pytest.mark.parametrize("upper", [0, FAR])
def test_filters_and_multicast_groups_are_denied(upper: int) -> None:
    assert answer("setsockopt", 3, upper | 1, upper | 26) == 1
    assert answer("setsockopt", 3, upper | 0, upper | 35) == answer("setsockopt", 3, upper | 41, upper | 20) == 105
    assert answer("setsockopt", 3, 1, 2) is answer("setsockopt", 3, 6, 26) is None
    assert answer("prctl", upper | 22) == 22
    assert answer("prctl", 38) is None
