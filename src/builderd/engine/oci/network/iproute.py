"""Links, addresses and routes by ``ip``, rules by ``nft``. Standard library only, since the launcher uses it."""

from __future__ import annotations

import subprocess

IP, NFT = "/usr/sbin/ip", "/usr/sbin/nft"


def run_ip(*commands: str, descriptor: int | None = None) -> None:
    """Run commands of ``ip``, up to the first that fails: ``OSError``. One may name /proc/self/fd/``descriptor``."""
    passed = () if descriptor is None else (descriptor,)
    done = subprocess.run(
        [IP, "-batch", "-"],
        input="".join(f"{command}\n" for command in commands),
        capture_output=True,
        text=True,
        check=False,
        pass_fds=passed,
    )
    if done.returncode:
        raise OSError(0, f"ip: {' '.join(done.stderr.split())}")


def loopback_rules(ip: str, gateway: str) -> str:
    """Return the nft rules of a sandbox: what the gateway sends to a TCP port without a socket is for loopback.

    So the previews reach an app that listens on 127.0.0.1 alone; nobody else does, as only the gateway is asked for
    (docs/adr/0031). Addresses are rewritten without tracking connections, whose memory no sandbox would be charged for.
    ``socket transparent 0`` holds for each socket that the packet is for already.
    """
    return f"""\
table ip loopback {{
  chain inbound {{
    type filter hook prerouting priority raw; policy accept;
    iifname "eth0" ip saddr {gateway} ip daddr {ip} meta l4proto tcp goto without_socket
  }}
  chain without_socket {{
    socket transparent 0 accept
    ip daddr set 127.0.0.1
  }}
  chain outbound {{
    type filter hook postrouting priority raw; policy accept;
    oifname "eth0" ip saddr 127.0.0.1 ip saddr set {ip}
  }}
}}
"""


def begin_nft(rules: str) -> subprocess.Popen[str]:
    """Load rules into the network namespace of this process, without waiting: the kernel takes 20 ms to apply them.

    Failure, such as of a kernel without ``socket``, leaves the namespace without them.
    """
    begun = subprocess.Popen([NFT, "-f", "-"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert begun.stdin is not None
    begun.stdin.write(rules)
    begun.stdin.close()
    return begun
