"""Command lines, as lists: nothing in them is ever read by a shell."""

from __future__ import annotations

from pathlib import Path

from builderd.adapters.engines.oci.runtime import command
from builderd.adapters.engines.oci.runtime.command import Runtime

CRUN, RUNSC = (Runtime(name, f"/usr/bin/{name}", Path("/state")) for name in ("crun", "runsc"))


def test_gvisor_writes_through_to_the_disk_and_has_a_network_of_its_own() -> None:
    assert command.start(RUNSC, "ab")[:4] == ["/usr/bin/runsc", "--root=/state", "--overlay2=none", "--network=sandbox"]
    assert command.start(CRUN, "ab") == ["/usr/bin/crun", "--root=/state", "start", "ab"]


def test_the_shim_hands_the_runtime_s_options_on_one_by_one() -> None:
    argv = command.shim(RUNSC, "ab", Path("/b"), Path("/r"), Path("/exits"))
    handed = [argv[i + 1] for i, word in enumerate(argv) if word == "--runtime-arg"]
    assert handed == list(RUNSC.options)
    assert argv[argv.index("--exit-dir") + 1] == "/exits"


def test_a_sandbox_is_deleted_by_force_and_killed_by_name() -> None:
    assert command.delete(CRUN, "ab")[-3:] == ["delete", "--force", "ab"]
    assert command.kill(CRUN, "ab", "TERM")[-3:] == ["kill", "ab", "TERM"]
