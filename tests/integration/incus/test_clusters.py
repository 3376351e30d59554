"""Clusters of tests: those of killed processes are removed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.incus import ROOT, start_time, sweep_clusters

pytestmark = pytest.mark.root

MAKES_ONE = """
import sys, time
from tests.incus import running_cluster
with running_cluster(1) as cluster:
    print(cluster.name, flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_cluster_of_a_killed_process_is_swept() -> None:
    tests = Path(__file__).parents[3]
    env = {**os.environ, "PYTHONPATH": f"{tests}:{os.environ.get('PYTHONPATH', '')}"}
    with subprocess.Popen([sys.executable, "-c", MAKES_ONE], stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout
        name = process.stdout.readline().strip()
        assert sweep_clusters() == []
        process.send_signal(signal.SIGKILL)
    assert name in sweep_clusters()
    assert list(ROOT.glob(f"{name}*")) == []
    assert name not in subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout


def test_process_of_another_start_time_is_not_the_owner(tmp_path: Path) -> None:
    own = os.getpid()
    (tmp_path / "bd1.owner").write_text(f"{own} {start_time(own)}")
    assert sweep_clusters(tmp_path) == []
    (tmp_path / "bd1.owner").write_text(f"{own} 1")
    assert sweep_clusters(tmp_path) == ["bd1"]
    assert list(tmp_path.iterdir()) == []
