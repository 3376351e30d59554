"""Looks at the ports of an app by a program in its instance, whose CPU time Incus counts as the app's."""

from __future__ import annotations

from time import monotonic

from builderd.domain.sandboxes import Listening

#: Most sockets that a look lists, those of the lowest ports: an app must not keep the service busy with them.
MOST_SOCKETS = 1024
#: Lists each address and port that listens once, in lines as those of proc_pid_net(5).
_PROGRAM = """
my %found;
for my $table ('net/tcp', 'net/tcp6') {
  open(my $file, '<', "/proc/$table") or next;
  while (<$file>) {
    my @fields = split;
    $found{$fields[1]} = hex((split /:/, $fields[1])[1]) if $fields[3] eq '0A';
  }
}
my @listed = sort { $found{$a} <=> $found{$b} } keys %found;
splice @listed, MOST if @listed > MOST;
print "0: $_ 0 0A\\n" for @listed;
open(my $used, '<', '/proc/self/schedstat') or exit;
print <$used>;
""".replace("MOST", str(MOST_SOCKETS))
#: Look at the ports that listen; its last line is the program's own CPU time (proc_pid_schedstat(5)).
LOOK = ("perl", "-e", _PROGRAM)
_SCHEDSTAT_FIELDS = 3
#: Pause between two looks of one wait for a port, as a share of the time since its first look, and bounds in seconds: a
#: look is a program of Incus and of the app, 60 to 170 ms of waiting.
PAUSE_SHARE, LEAST_PAUSE, MOST_PAUSE = 0.1, 0.2, 2.0


class LookPace:
    """Pauses between the looks of one wait for a port. ``last``: what the last look found."""

    def __init__(self) -> None:
        self._begun = self._next = monotonic()
        self.last: Listening | None = None

    def is_due(self) -> bool:
        return self.last is None or monotonic() >= self._next

    def note(self, found: Listening) -> None:
        now = monotonic()
        self.last = found
        self._next = now + min(max((now - self._begun) * PAUSE_SHARE, LEAST_PAUSE), MOST_PAUSE)


def parse_look(output: str) -> tuple[str, float]:
    """Return the tables of a look, and the CPU seconds that it took, 0 where the kernel does not tell them."""
    lines = output.splitlines()
    last = lines[-1].split() if lines else []
    if len(last) == _SCHEDSTAT_FIELDS and all(map(str.isdigit, last)):
        return "\n".join(lines[:-1]), int(last[0]) / 1e9
    return output, 0.0
