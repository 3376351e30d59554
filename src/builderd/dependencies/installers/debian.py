"""Debian packages: those that a version names, and those of ``apt.txt`` or ``Aptfile``, in a layer above the base.

apt and the packages' scripts run in a build sandbox whose root they may change; their changes are the layer.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Sequence

from builderd.code.model import Bundle
from builderd.core.errors import InstallFailed
from builderd.dependencies.installers.npm import MAX_EXPLAINED_LINES
from builderd.dependencies.installers.requirements import read_text
from builderd.dependencies.model import MAX_PACKAGES, BuildStep, Cache, LayerPlan, package_error

#: Lines of apt, of dpkg and of the script that explain a failure; no other installer writes such.
ERROR = re.compile(r"E: |dpkg(?:-deb)?: error")
NO_PACKAGE = "E: Debian has no package"
#: Its arguments are names that Debian may lack. Five, as each is compared with some 70,000.
FIND = f"""\
import difflib, subprocess, sys
known = subprocess.run(["apt-cache", "pkgnames"], stdout=subprocess.PIPE, text=True).stdout.split()
for name in sys.argv[1:6]:
    near = difflib.get_close_matches(name, known, cutoff=0.7)
    print(f"{NO_PACKAGE} {{name}}" + (f": names like it are {{', '.join(near)}}" if near else ""))
"""
#: Arguments are FIND and the packages. No service is started, and what only apt needs is not kept.
SCRIPT = """\
find=$1; shift
export DEBIAN_FRONTEND=noninteractive HOME=/tmp LC_ALL=C.UTF-8 PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
printf '#!/bin/sh\\nexit 101\\n' >/usr/sbin/policy-rc.d && chmod 755 /usr/sbin/policy-rc.d
apt="apt-get -qq -o APT::Sandbox::User=root -o APT::Cmd::Pattern-Only=true"
$apt -o APT::Update::Error-Mode=any update
if ! $apt -s --no-install-recommends install -- "$@" >/dev/null 2>/tmp/errors; then
  cat /tmp/errors
  python3 -c "$find" $(sed -nE "s/^E: (Unable to locate p|P)ackage '?([^ ']+).*/\\2/p" /tmp/errors)
  exit 1
fi
$apt -y --no-install-recommends -o Dpkg::Use-Pty=0 install -- "$@"
cd /var && rm -rf /usr/sbin/policy-rc.d lib/apt/lists/* cache/apt/* cache/debconf/*-old lib/dpkg/*-old log/*
"""


def read_package_names(bundle: Bundle) -> tuple[str, ...]:
    """Return the names in ``apt.txt`` and ``Aptfile``, one a line, ``#`` before comments. Raises ``InstallFailed``."""
    names: list[str] = []
    for path in ("apt.txt", "Aptfile"):
        for number, line in enumerate(read_text(bundle, path).splitlines(), 1):
            for name in line.partition("#")[0].split():
                if why := package_error(name):
                    raise InstallFailed(f"{path}, line {number}: {why}")
                names.append(name)
    return tuple(names)


def plan(packages: Collection[str], base_id: str) -> LayerPlan | None:
    """Return the plan of a layer with these packages, None without any. Raises ``InstallFailed`` for too many."""
    names = sorted(set(packages))
    if len(names) > MAX_PACKAGES:
        raise InstallFailed(f"{len(names)} Debian packages are named: at most {MAX_PACKAGES} are installed.")
    if not names:
        return None
    key = hashlib.sha256(json.dumps(["apt", 1, base_id, names]).encode()).hexdigest()
    step = BuildStep("Installing Debian packages", ("/bin/sh", "-ec", SCRIPT, "sh", FIND, *names), True, Cache.NONE)
    # What runs is Debian's and none of a tenant's: all tenants share the layer. But it takes time, which is charged.
    return LayerPlan(key, {}, (step,), runs_foreign_code=False, may_run_code=True, changes_root=True)


def explain(output: Sequence[str]) -> str | None:
    """Return apt's and dpkg's errors in the output, with what to do; None where there are none."""
    errors = [line.rstrip() for line in output if ERROR.match(line)]
    if lacking := [line for line in errors if line.startswith(NO_PACKAGE)]:
        return "\n".join((*lacking, "Correct the names, or leave them out (https://packages.debian.org finds names)."))
    return "\n".join(errors[-MAX_EXPLAINED_LINES:]) or None
