"""What disks and layers cost, beside what one would use without builderd, in one run. Needs root and the network.

    python benchmarks/storage.py [--rounds 30] [--layer-rounds 3] [--layers flask "numpy pandas"]

Disks: milliseconds beside a sparse ext4 image that is made, mounted by loop device and deleted. Layers: seconds beside
uv and pip on the bare host; cold is with an empty cache, warm with the packages in it, cached with the layer there.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from uv import find_uv_bin

from builderd.adapters.engines.oci.engine.machine import Machine
from builderd.adapters.engines.oci.storage.disks import Disks
from builderd.adapters.installers.uv import UvInstaller
from builderd.domain.bundles import BundleFile, make_bundle
from builderd.domain.ids import DiskId, TenantId
from builderd.domain.layers import BuildOutcome, LayerPlan
from builderd.domain.resources import GB
from builderd.ports.engine import EngineOptions, StoreOptions

FILES = [BundleFile("main.py", b"x" * 2_000), BundleFile("requirements.txt", b"flask\n")]
DIRTY = 20 << 20


def quiet(line: str) -> None:
    return


class Times:
    def __init__(self) -> None:
        self._spans: dict[str, list[float]] = {}

    @contextmanager
    def taking(self, name: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self._spans.setdefault(name, []).append(time.perf_counter() - begun)

    def take(self, name: str, call: Callable[..., object], *arguments: object) -> None:
        with self.taking(name):
            call(*arguments)

    async def wait(self, name: str, build: Awaitable[BuildOutcome]) -> None:
        with self.taking(name):
            outcome = await build
        if not outcome.ok:
            raise SystemExit("\n".join(outcome.output))

    def tell(self, unit: float, digits: int) -> None:
        for name, spans in self._spans.items():
            figures = (statistics.median(spans), min(spans), max(spans))
            print(f"  {name:<44}" + "".join(f"{figure * unit:>10.{digits}f}" for figure in figures))


def run(*argv: str | Path) -> None:
    subprocess.run(argv, check=True, capture_output=True)


def bench_disks(disks: Disks, rounds: int) -> Times:
    times, bundle = Times(), make_bundle(FILES)
    for n in range(rounds):
        disk, copy = DiskId(f"disk-{n}"), DiskId(f"copy-{n}")
        times.take("disk: create, with its limit", disks.create, disk, GB)
        times.take("disk: put a bundle of 2 files", disks.put_bundle, disk, bundle)
        times.take("disk: scratch, the first", disks.scratch, disk)
        times.take("disk: scratch, after a run", disks.scratch, disk)
        times.take("disk: usage", disks.usage, disk)
        times.take("disk: copy, clean", disks.clone, disk, copy, GB)
        disks.delete(copy)
        (disks.app(disk) / "dirty").write_bytes(secrets.token_bytes(DIRTY))
        times.take("disk: copy, with 20 MB dirty", disks.clone, disk, copy, GB)
        times.take("disk: delete", disks.delete, disk)
        disks.delete(copy)
    return times


def bench_images(folder: Path, rounds: int) -> Times:
    times, image, target = Times(), folder / "image", folder / "mount"
    target.mkdir()
    for _ in range(rounds):
        times.take("ext4 image: make", make_image, image)
        times.take("ext4 image: mount", run, "mount", "-o", "loop", image, target)
        (target / "dirty").write_bytes(secrets.token_bytes(DIRTY))
        times.take("ext4 image: unmount, with 20 MB dirty", run, "umount", target)
        times.take("ext4 image: copy, with 20 MB in it", run, "cp", "--sparse=always", image, folder / "copy")
        times.take("ext4 image: delete", image.unlink)
    return times


def make_image(image: Path) -> None:
    with image.open("wb") as file:
        file.truncate(GB)
    run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", image)


async def bench_layers(machine: Machine, packages: str, rounds: int) -> Times:
    times, layers = Times(), machine.layers
    for n in range(rounds):
        layers._cache.empty()
        plan = make_plan(machine, packages, f"cold-{n}")
        await times.wait(f"{packages}: cold", layers.build(plan, quiet))
        await times.wait(f"{packages}: cached layer", layers.build(plan, quiet))
        await times.wait(f"{packages}: warm", layers.build(make_plan(machine, packages, f"warm-{n}"), quiet))
        assert plan.compile_step
        await times.wait(f"{packages}: compiling, in the background", layers.compile(plan.key, plan.compile_step))
    return times


def make_plan(machine: Machine, packages: str, salt: str) -> LayerPlan:
    """A constraint that constrains nothing makes another key of the same packages."""
    files = {"requirements.txt": packages.replace(" ", "\n") + "\n-c salt.txt", "salt.txt": f"{salt}-unused"}
    bundle = make_bundle(BundleFile(path, text.encode()) for path, text in files.items())
    plan = UvInstaller("benchmark").plan(bundle, machine.base.id, TenantId("benchmark"))
    assert plan
    return plan


def bench_host(folder: Path, packages: str, rounds: int) -> Times:
    """The same by hand: an environment made by uv, and one made by pip."""
    times, uv, wanted = Times(), find_uv_bin(), packages.split()
    venv, cache = folder / "venv", folder / "cache"
    python = str(venv / "bin/python")
    for _ in range(rounds):
        for name in ("cold", "warm"):
            with times.taking(f"{packages}: uv on the bare host, {name}"):
                run(uv, "venv", "--quiet", "--python", "/usr/bin/python3", venv)
                run(uv, "pip", "install", "--python", python, "--cache-dir", cache, *wanted)
            shutil.rmtree(venv)
        shutil.rmtree(cache, ignore_errors=True)
        for name in ("cold", "warm"):
            with times.taking(f"{packages}: pip on the bare host, {name}"):
                run("/usr/bin/python3", "-m", "venv", venv)
                run(python, "-m", "pip", "--no-input", "--cache-dir", cache, "install", "--no-compile", *wanted)
            shutil.rmtree(venv)
        shutil.rmtree(cache, ignore_errors=True)
    return times


async def bench(options: argparse.Namespace, folder: Path) -> None:
    settings = EngineOptions(folder / "data", inside_port=18974, store=StoreOptions(size_bytes=30 * GB, overcommit=10))
    machine = Machine(settings)
    try:
        await machine.open(quiet)
        title("milliseconds", options.rounds)
        bench_disks(machine.disks, options.rounds).tell(1000, 2)
        bench_images(folder, options.rounds).tell(1000, 2)
        title("seconds", options.layer_rounds)
        for packages in options.layers:
            (await bench_layers(machine, packages, options.layer_rounds)).tell(1, 3)
            bench_host(folder, packages, options.layer_rounds).tell(1, 3)
    finally:
        machine.runs.close()
        machine.launcher.close()
        machine.give_back()


def title(unit: str, rounds: int) -> None:
    print(f"{unit + ', ' + str(rounds) + ' rounds':<46}{'median':>10}{'min':>10}{'max':>10}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--layer-rounds", type=int, default=3)
    parser.add_argument("--layers", nargs="*", default=["flask", "numpy pandas"])
    with tempfile.TemporaryDirectory(prefix="builderd-bench-") as folder:
        asyncio.run(bench(parser.parse_args(), Path(folder)))


if __name__ == "__main__":
    main()
