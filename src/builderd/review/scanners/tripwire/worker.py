"""The worker: a confined process that is kept warm and forks again for each review.

``python -m …worker <descriptor of its socket> <tools as JSON>``. It reads the rules once, leaves the host behind, and
sends ``ready``. Each packet is then one request: its limits as JSON, with three descriptors: the files, a pipe for the
child's answer, and a pipe for its exit status. A child that a tenant's file took over cannot affect other tenants: it
ends with its review.
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from builderd.linux.syscalls import die_with_parent
from builderd.review.scanners.tripwire.analysis import Analyser, ToolFailed, Tools
from builderd.review.scanners.tripwire.review import Source
from builderd.sandboxing import confinement
from builderd.sandboxing.confinement import Bind
from builderd.sandboxing.privileges import Limits, lock_down

MAX_PACKET = 4_096
MAX_PROCESSES, MAX_DESCRIPTORS = 64, 256
#: Exit status of a child that Python's own memory limit, an unforeseen error or its limit of CPU time ended.
OUT_OF_MEMORY, FAILED, OUT_OF_CPU = 87, 88, 89
#: Exit status of a child that the machine did not let work: it could not be confined, a tool was killed or too slow.
UNCONFINED, TOOL_KILLED, TOOL_LATE = 90, 91, 92


class Server:
    def __init__(self, control: socket.socket, analyser: Analyser, proc: int) -> None:
        self._control = control
        self._analyser = analyser
        self._proc = proc
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)
        #: By pid: its deadline and the pipe for its exit status.
        self._children: dict[int, tuple[float, int]] = {}

    def serve(self) -> None:
        """Serve reviews until the service closes its end."""
        while True:
            deadlines = [deadline for deadline, _ in self._children.values()]
            timeout = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
            for key, _ in self._selector.select(timeout):
                if key.fileobj is not self._control:
                    self._reap(key.data, key.fd)
                elif not self._receive():
                    return
            for pid, (deadline, _) in self._children.items():
                if deadline <= time.monotonic():
                    os.kill(pid, signal.SIGKILL)

    def _receive(self) -> bool:
        packet, descriptors, _, _ = socket.recv_fds(self._control, MAX_PACKET, 3)
        if not packet:
            return False
        limits = json.loads(packet)
        files, report_pipe, ended = descriptors
        pid = os.fork()
        if pid == 0:
            self._become_child(limits, files, report_pipe)
        self._selector.register(os.pidfd_open(pid), selectors.EVENT_READ, pid)
        os.close(files)
        os.close(report_pipe)
        self._children[pid] = (time.monotonic() + limits["wall_seconds"], ended)
        return True

    def _reap(self, pid: int, pidfd: int) -> None:
        self._selector.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        deadline, ended = self._children.pop(pid)
        end = {"status": os.waitstatus_to_exitcode(status), "late": deadline <= time.monotonic()}
        with os.fdopen(ended, "wb", buffering=0) as pipe, suppress(BrokenPipeError):  # where its caller waits no longer
            pipe.write(json.dumps(end).encode())

    def _become_child(self, limits: Mapping[str, Any], files: int, report_pipe: int) -> None:
        """Review in a child of a pid namespace; never return.

        The first child ends the namespace when it ends; the second one reads the files.
        """
        try:
            for descriptor in set(range(3, MAX_DESCRIPTORS)) - {files, report_pipe, self._proc}:
                with suppress(OSError):
                    os.close(descriptor)
            confinement.new_job(self._proc)
            os.close(self._proc)
            pid = os.fork()
            if pid == 0:
                self._review(limits, files, report_pipe)
            die_with_parent(signal.SIGKILL)
            os.close(files)
            os.close(report_pipe)
            _, status, usage = os.wait4(pid, 0)
            code = os.waitstatus_to_exitcode(status)
            # At the hard limit of CPU time the kernel kills who did not get as far as to heed SIGXCPU.
            if code == -signal.SIGKILL and usage.ru_utime + usage.ru_stime >= limits["cpu_seconds"]:
                os._exit(OUT_OF_CPU)
            os._exit(code if code >= 0 else 128 - code)
        except BaseException as error:
            _log(f"a review could not be confined: {error}")
        finally:
            os._exit(UNCONFINED)

    def _review(self, limits: Mapping[str, Any], files: int, report_pipe: int) -> None:
        """Review the files and exit; never return."""
        code = UNCONFINED
        try:
            # The first process of a namespace is spared a signal that it does not handle.
            signal.signal(signal.SIGXCPU, lambda *_: os._exit(OUT_OF_CPU))
            lock_down(make_limits(int(limits["memory_bytes"]), int(limits["cpu_seconds"])))
            code = FAILED
            seen = self._analyser.analyse(*read_sources(files), limits["wall_seconds"])
            with os.fdopen(report_pipe, "wb") as report:
                report.write(json.dumps(seen).encode())
            code = 0
        except BaseException as error:
            # A thread that gets no stack is a RuntimeError.
            no_memory = isinstance(error, MemoryError) or "start new thread" in str(error)
            if no_memory:
                code = OUT_OF_MEMORY
            elif isinstance(error, ToolFailed):
                code = TOOL_LATE if error.is_late else TOOL_KILLED
            _log(f"a review failed: {type(error).__name__}: {error}")
        finally:
            os._exit(code)


def make_limits(memory: int, cpu_seconds: int) -> Limits:
    """Return the limits of each process of a review."""
    return Limits(cpu_seconds, memory, None, confinement.WORK_BYTES, MAX_PROCESSES, MAX_DESCRIPTORS)


def read_sources(descriptor: int) -> tuple[list[Source], list[str]]:
    """Unpack the files of ``pack_sources``, and the paths of the whole bundle."""
    with mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) as whole:
        length = int.from_bytes(whole[:8], "big")
        header = json.loads(whole[8 : 8 + length])
        at = 8 + length
        sources = []
        for path, kind, size in header["files"]:
            sources.append(Source(path, kind, whole[at : at + size]))
            at += size
    return sources, header["paths"]


def _log(text: str) -> None:
    sys.stderr.write(f"builderd review: {text[:500]}\n")
    sys.stderr.flush()


def main() -> None:
    """Serve on the descriptor named by the first argument."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    tools = Tools(**json.loads(sys.argv[2]))
    analyser = Analyser(tools)
    try:
        proc = confinement.confine([Bind(source, target) for source, target in tools.binds])
    except OSError as error:
        control.send(f"cannot be confined: {error}".encode())
        return
    gc.collect()
    gc.freeze()
    control.send(b"ready")
    Server(control, analyser, proc).serve()


if __name__ == "__main__":
    main()
