"""User namespaces of idmapped mounts: they map what they should, and leave no child, descriptor or broken memory."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.root

#: In a process of one thread, as the launcher is.
SCRIPT = """
import json, os, subprocess
from builderd.adapters.engines.oci.runtime.launcher import user_namespaces
from builderd.linux.syscalls import forbid_tracing

def seen(namespace, file):
    command = ["nsenter", f"--user=/proc/self/fd/{namespace}", "--preserve-credentials", "cat", f"/proc/self/{file}"]
    return subprocess.run(command, pass_fds=[namespace], capture_output=True, check=True).stdout.split()

def refused(outside, owners):
    try:
        with user_namespaces(outside, owners):
            return None
    except OSError as error:
        return error.errno

forbid_tracing()
kept = {str(number): str(number) * 3 for number in range(50_000)}
before = len(os.listdir("/proc/self/fd"))
with user_namespaces(700_000, [0, 5000, 0]) as maps:
    found = {owner: [[int(number) for number in seen(one, file)] for file in ("uid_map", "gid_map")]
             for owner, one in maps.items()}
for _ in range(200):
    with user_namespaces(700_000, [0]):
        pass
wrong = refused(700_000, [0, (1 << 32) - 2])
try:
    children = os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    children = None
print(json.dumps([found, wrong, children, len(os.listdir("/proc/self/fd")) - before,
                  all(value == name * 3 for name, value in kept.items())]))
"""


def test_each_owner_on_disk_has_a_namespace_and_nothing_is_left() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    found, wrong, children, descriptors, whole = json.loads(done.stdout)
    assert found == {str(owner): [[owner, 700_000, 65536]] * 2 for owner in (0, 5000)}
    assert wrong == 22, "ids beyond all"
    assert (children, descriptors, whole) == (None, 0, True)
