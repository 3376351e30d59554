"""Secret files: in the bundle, for one user, and nowhere else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from builderd.adapters.engines.oci.runtime.secret_files import bind, make_target, write


def test_the_app_alone_may_read_them(tmp_path: Path) -> None:
    write(tmp_path, {"zoho/API_KEY": "secret", "zoho/B": "", "aws/API_KEY": "other"}, os.getuid())

    top = bind(tmp_path).source
    modes = {str(path.relative_to(top)): path.stat().st_mode & 0o777 for path in top.rglob("*")}
    assert modes == {"zoho": 0o500, "aws": 0o500, "zoho/API_KEY": 0o400, "zoho/B": 0o400, "aws/API_KEY": 0o400}
    assert (top / "zoho/API_KEY").read_text() == "secret"
    assert bind(tmp_path).read_only


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../b", "a", "a/b/c"])
def test_no_path_leads_elsewhere(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="<credential>/<variable>"):
        write(tmp_path, {name: "secret"}, os.getuid())


def test_secret_files_have_a_mount_point_in_the_root(tmp_path: Path) -> None:
    make_target(tmp_path, os.getuid())
    assert (tmp_path / "run/credentials").is_dir()
