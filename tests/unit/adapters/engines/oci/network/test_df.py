"""``df`` of sandboxes, on output of GNU df."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from builderd.adapters.engines.oci.network import df
from builderd.adapters.engines.oci.network.df import make_table, read_limits, split_words, without_single_files
from builderd.adapters.engines.oci.runtime.proc_files import make_disk
from builderd.adapters.engines.oci.storage.quotas import NO_SPACE, DiskSpace

GB, MB = 1 << 30, 1 << 20
SPACE = DiskSpace(3 * GB, 5 * MB, 256 * MB, MB)
GNU = f"""\
Filesystem Type 1B-blocks Used Mounted on
overlay overlay {500 * GB} {40 * GB} /
tmpfs tmpfs 65536 0 /dev
/dev/loop1 btrfs {500 * GB} {40 * GB} /app
/dev/loop1 btrfs {500 * GB} {40 * GB} /home/app
none none - - /a folder
"""


def limits_of(folder: Path, space: DiskSpace) -> dict[str, tuple[int, int]]:
    (folder / "disk").write_text(make_disk(space))
    return dict(read_limits(str(folder / "disk")))


def rows_of(folder: Path, *options: str) -> dict[str, list[str]]:
    table = make_table(GNU, limits_of(folder, SPACE), options)
    return {line.split()[-1]: line.split() for line in table[1:]}


def test_disk_and_scratch_are_shown_with_their_own_limits(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, "-h")
    assert rows["/app"] == ["/dev/loop1", "3.0G", "5.0M", "3.0G", "1%", "/app"]
    assert rows["/home/app"][1:4] == rows["/app"][1:4]
    assert rows["/"] == ["overlay", "256M", "1.0M", "255M", "1%", "/"]
    assert rows["/dev"][1] == "64K"
    assert rows["folder"][:5] == ["none", "0", "0", "0", "-"]


@pytest.mark.parametrize(
    ("option", "head", "size"),
    [("-k", "1K-blocks", "3145728"), ("-m", "1M-blocks", "3072"), ("-BG", "1G-blocks", "3"), ("-H", "Size", "3.3G")],
)
def test_unit_is_the_one_that_was_asked_for(tmp_path: Path, option: str, head: str, size: str) -> None:
    assert head in make_table(GNU, {}, [option])[0].split()
    assert rows_of(tmp_path, option)["/app"][1] == size


def test_type_is_shown_on_request(tmp_path: Path) -> None:
    assert rows_of(tmp_path, "-T")["/app"][1] == "btrfs"


@pytest.mark.parametrize(
    ("words", "rows", "options"),
    [
        (["-hT", "/app"], ["/app"], ["-h", "-T"]),
        (["-t", "btrfs", "-x", "tmpfs", "."], ["-t", "btrfs", "-x", "tmpfs", "."], []),
        (["--", "-h"], ["--", "-h"], []),
        (["-t"], ["-t"], []),
        (["-tbtrfs", "-hxtmpfs"], ["-tbtrfs", "-xtmpfs"], ["-h"]),
        (["-ht", "btrfs", "-aB1"], ["-t", "btrfs", "-a"], ["-h", "-B1"]),
    ],
)
def test_df_tells_rows_from_options(words: list[str], rows: list[str], options: list[str]) -> None:
    assert split_words(words) == (rows, options)


@pytest.mark.parametrize("word", ["-i", "--output=size", "--total", "--help", "-B512", "-hi", "-h-", "--block-size=M"])
def test_options_that_are_not_known_are_left_to_gnu_df(word: str) -> None:
    assert split_words([word]) is None


@pytest.mark.parametrize("text", ["", "/app 0 0\n", "/app\n", "a b c d\n"])
def test_file_without_limits_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "disk").write_text(text)
    assert read_limits(str(tmp_path / "disk")) == {}
    assert limits_of(tmp_path, NO_SPACE) == {}


def test_gnu_df_runs_in_place_of_it_where_nothing_is_known() -> None:
    command = [sys.executable, "-I", str(df.__file__), "-k", "/"]
    own, gnu = (subprocess.run(words, stdout=subprocess.PIPE, check=True) for words in (command, [df.GNU, "-k", "/"]))
    assert own.stdout.splitlines()[0] == gnu.stdout.splitlines()[0]


def test_other_use_of_the_disk_than_its_limit_leaves_nothing_free() -> None:
    (row,) = make_table("head\n/dev/loop1 btrfs 9 9 /app\n", {"/app": (10, 12)}, ["-B1"])[1:]
    assert row.split() == ["/dev/loop1", "10", "12", "0", "100%", "/app"]


def test_files_that_are_mounted_alone_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "a file"
    file.touch()
    head, folder = "Filesystem Type 1B-blocks Used Mounted on", f"overlay overlay 1 1 {tmp_path}"
    assert without_single_files(f"{head}\n/dev/vda ext4 9 9 {file}\n{folder}\n") == f"{head}\n{folder}"
    assert without_single_files("") == ""
