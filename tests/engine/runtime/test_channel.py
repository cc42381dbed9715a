"""Answers find who asked, events find the listener, an ended peer ends every wait."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from engine.runtime.channel import Channel, connect_sync
from engine.shim import wire


class Peer:
    """A channel and the far end of its socket."""

    def __init__(self) -> None:
        ours, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.events: list[dict[str, Any]] = []
        self.ended = asyncio.Event()
        self.channel = Channel(ours, self.events.append, self.ended.set)

    def asked(self) -> dict[str, Any]:
        message, _descriptors = wire.receive(self.far)
        assert message is not None
        return message


async def turn() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_answers_may_come_in_any_order() -> None:
    peer = Peer()
    async with asyncio.TaskGroup() as group:
        one = group.create_task(peer.channel.ask("one"))
        two = group.create_task(peer.channel.ask("two"))
        await turn()
        first, second = peer.asked(), peer.asked()
        wire.send(peer.far, {"id": second["id"], "for": second["op"]})
        wire.send(peer.far, {"id": first["id"], "for": first["op"]})
    assert (one.result()["for"], two.result()["for"]) == ("one", "two")
    peer.channel.close()
    peer.far.close()


async def test_an_error_is_raised_where_it_was_asked() -> None:
    peer = Peer()
    async with asyncio.TaskGroup() as group:

        async def ask() -> None:
            with pytest.raises(ProcessLookupError, match="not running"):
                await peer.channel.ask("kill", signal=9)

        group.create_task(ask())
        await turn()
        message = peer.asked()
        assert (message["op"], message["signal"]) == ("kill", 9)
        wire.send(peer.far, {"id": message["id"], "error": "not running", "kind": "ProcessLookupError"})
    peer.channel.close()
    peer.far.close()


async def test_the_end_of_the_peer_ends_every_wait() -> None:
    peer = Peer()

    async def ask() -> None:
        with pytest.raises(ConnectionError):
            await peer.channel.ask("hello")

    async with asyncio.TaskGroup() as group:
        group.create_task(ask())
        await turn()
        wire.send(peer.far, {"event": "last"})
        peer.far.close()
    await peer.ended.wait()
    assert peer.events == [{"event": "last"}]
    with pytest.raises(ConnectionError):
        await peer.channel.ask("again")


async def test_connecting_works_however_long_the_name(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 120)
    folder.mkdir()
    assert connect_sync(str(folder / "nobody.sock")) is None
    assert connect_sync(str(tmp_path / "missing" / "nobody.sock")) is None
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with listener:
        import os

        descriptor = os.open(folder, os.O_PATH)
        listener.bind(f"/proc/self/fd/{descriptor}/some.sock")
        os.close(descriptor)
        listener.listen(1)
        sock = connect_sync(str(folder / "some.sock"))
        assert sock is not None
        sock.close()
