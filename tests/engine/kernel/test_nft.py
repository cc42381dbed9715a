"""nftables: what the notices of the kernel say, and what listings look like."""

import socket
import struct

import pytest

from engine.kernel import nft


def notice(message: int, table: str, *, subsystem: int = 10) -> bytes:
    name = table.encode() + b"\0"
    attribute = struct.pack("=HH", 4 + len(name), 1) + name + bytes(-len(name) % 4)
    body = bytes(4) + attribute
    return struct.pack("=IHHII", 16 + len(body), subsystem << 8 | message, 0, 0, 0) + body


def test_losses_are_told_by_table_and_additions_are_not() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    theirs.send(notice(8, "berth") + notice(6, "added") + notice(2, "gone"))
    theirs.send(notice(5, "chain") + notice(11, "set") + notice(2, "other", subsystem=1))
    assert nft.tables_with_losses(ours) == {"berth", "gone", "chain", "set"}
    assert nft.tables_with_losses(ours) == set()
    ours.close()
    theirs.close()


def test_an_absent_table_is_no_error_but_everything_else_is() -> None:
    assert nft._listing(1, "", "Error: No such file or directory") is None
    assert nft._listing(0, '{"nftables": [{"table": {}}]}', "") == [{"table": {}}]
    with pytest.raises(OSError, match="Operation not permitted"):
        nft._listing(1, "", "Error: Operation not permitted\n")
