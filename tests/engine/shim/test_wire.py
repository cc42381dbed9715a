"""Packets, descriptors beside them, and errors that arrive as what they were."""

import errno
import os
import socket

import pytest

from engine.shim import wire


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def test_a_message_and_its_descriptors_arrive_together() -> None:
    ours, theirs = pair()
    reader, writer = os.pipe()
    with ours, theirs:
        wire.send(ours, {"op": "attach", "id": 1}, (writer,))
        message, descriptors = wire.receive(theirs)
        assert message == {"op": "attach", "id": 1}
        os.write(descriptors[0], b"through")
        assert os.read(reader, 100) == b"through"
        assert not os.get_inheritable(descriptors[0])
        for descriptor in (reader, writer, *descriptors):
            os.close(descriptor)


def test_the_end_is_none() -> None:
    ours, theirs = pair()
    with theirs:
        ours.close()
        assert wire.receive(theirs) == (None, [])


def test_what_is_no_object_is_refused() -> None:
    ours, theirs = pair()
    with ours, theirs:
        ours.send(b"[1]")
        with pytest.raises(ValueError):
            wire.receive(theirs)


def test_a_packet_has_a_bound() -> None:
    with pytest.raises(ValueError, match="exceeds"):
        wire.encode({"text": "x" * wire.MAX_PACKET})


def test_the_header_is_dockers() -> None:
    assert wire.header(wire.STDERR, 0x01020304) == b"\x02\0\0\0\x01\x02\x03\x04"


def test_errors_of_the_system_cross_whole() -> None:
    raised = NotADirectoryError(errno.ENOTDIR, "Not a directory", "/etc/passwd/x")
    error = wire.exception(wire.failure(raised))
    assert isinstance(error, NotADirectoryError)
    assert (error.errno, error.strerror, error.filename) == (errno.ENOTDIR, "Not a directory", "/etc/passwd/x")


@pytest.mark.parametrize(
    ("raised", "arrives"),
    [
        (ProcessLookupError("not running"), ProcessLookupError),
        (FileExistsError("twice"), FileExistsError),
        (ValueError("odd"), ValueError),
        (KeyError("missing"), LookupError),
        (PermissionError("no"), OSError),
    ],
)
def test_errors_cross_as_built_ins(raised: Exception, arrives: type[Exception]) -> None:
    error = wire.exception(wire.failure(raised))
    assert type(error) is arrives
    assert str(error) == str(raised)
