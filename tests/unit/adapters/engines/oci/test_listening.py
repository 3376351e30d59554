"""Listening sockets, from what the kernel prints."""

from builderd.adapters.engines.oci.listening import parse_listening

TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1 1 0 100 0 0 10 0
   1: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1 1 0 100 0 0 10 0
   2: 0200400A:1F40 0100400A:D431 01 00000000:00000000 00:00000000 00000000  1000        0 1 1 0 100 0 0 10 0
"""
TCP6 = """\
  sl  local_address                         remote_address                        st tx_queue
   0: 00000000000000000000000000000000:0BB8 00000000000000000000000000000000:0000 0A 00000000:00000000
   1: 00000000000000000000000001000000:0BB9 00000000000000000000000000000000:0000 0A 00000000:00000000
   2: 0000000000000000FFFF00000100007F:0BBA 00000000000000000000000000000000:0000 0A 00000000:00000000
"""


def test_only_sockets_that_listen_are_told() -> None:
    assert parse_listening(TCP) == {("0.0.0.0", 8000), ("127.0.0.1", 8080)}


def test_ipv6_and_ipv4_within_it() -> None:
    assert parse_listening(TCP6) == {("::", 3000), ("::1", 3001), ("::ffff:127.0.0.1", 3002)}


def test_both_files_one_after_the_other() -> None:
    assert len(parse_listening(TCP + TCP6)) == 5
    assert parse_listening("") == frozenset()
