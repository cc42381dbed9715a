"""The keeper of the table, with an nftables that only writes down what it is told."""

import asyncio
import socket
import threading
from typing import Any

import pytest

from engine.kernel import nft
from engine.networks import firewall as module
from engine.networks import ruleset
from engine.networks.firewall import Firewall
from engine.networks.ruleset import BridgeRules, Passage, PublishedPort

WEB = PublishedPort("tcp", "0.0.0.0", 8080, "172.17.0.2", 80)
OTHER = PublishedPort("tcp", "0.0.0.0", 8080, "172.17.0.3", 80)

LOST = b"\x1e\0\0\0\x02\x0a" + bytes(10) + bytes(4) + b"\x0a\0\x01\0berth\0"
"""A notice that table ``berth`` has lost something."""


class Recorder:
    """An nftables of words: keeps scripts, fails when told to, lists what it is given."""

    def __init__(self) -> None:
        self.scripts: list[str] = []
        self.failures = 0
        self.listing: list[dict[str, Any]] | None = None

    def run_sync(self, script: str) -> None:
        if self.failures:
            self.failures -= 1
            raise OSError("refused")
        self.scripts.append(script)

    def list_sync(self, family: str, table: str) -> list[dict[str, Any]] | None:
        return self.listing


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    monkeypatch.setattr(nft, "open_watch", lambda: ours)
    monkeypatch.setattr(module, "GATHER_SECONDS", 0)
    monkeypatch.setattr(module, "REPAIR_SECONDS", 0)
    return theirs


@pytest.fixture
def wall(recorder: Recorder, watch: socket.socket) -> Firewall:
    return Firewall("berth", open_nft=lambda: recorder)


async def test_nothing_is_applied_before_the_first_apply_and_all_of_it_then(
    wall: Firewall, recorder: Recorder, watch: socket.socket
) -> None:
    await wall.set_bridge("n1", BridgeRules("docker0"))
    wall.adopt("c1", [WEB])
    assert recorder.scripts == []
    await wall.apply()
    assert recorder.scripts == [ruleset.render(wall.model)]
    assert WEB in wall.model.ports
    await wall.remove_bridge("n1")
    assert len(recorder.scripts) == 2 and "docker0" not in recorder.scripts[1]
    await wall.aclose(remove=True)
    assert recorder.scripts[-1] == ruleset.render_removal("berth")
    watch.close()


async def test_a_port_comes_and_goes_by_itself(wall: Firewall, recorder: Recorder, watch: socket.socket) -> None:
    await wall.apply()
    await wall.publish("c1", [WEB])
    assert recorder.scripts[-1] == ruleset.render_ports("berth", add=[WEB])
    await wall.unpublish("c1")
    assert recorder.scripts[-1] == ruleset.render_ports("berth", remove=[WEB])
    await wall.unpublish("c1")
    assert len(recorder.scripts) == 3
    await wall.aclose()
    watch.close()


async def test_a_port_taken_over_is_exchanged_in_one_transaction(
    wall: Firewall, recorder: Recorder, watch: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GATHER_SECONDS", 0.01)
    await wall.apply()
    await wall.publish("c1", [WEB])
    leaving = asyncio.create_task(wall.unpublish("c1"))
    await asyncio.sleep(0)
    await wall.publish("c2", [OTHER])
    assert recorder.scripts[-1] == ruleset.render_ports("berth", add=[OTHER], remove=[WEB])
    await leaving
    assert len(recorder.scripts) == 3  # nothing was left to remove
    await wall.aclose()
    watch.close()


async def test_a_refused_change_falls_back_to_the_whole_table_and_then_gives_up(
    wall: Firewall, recorder: Recorder, watch: socket.socket
) -> None:
    await wall.apply()
    recorder.failures = 1
    await wall.publish("c1", [WEB])
    assert recorder.scripts[-1] == ruleset.render(wall.model)
    recorder.failures = 2
    with pytest.raises(OSError, match="refused"):
        await wall.publish("c2", [OTHER])
    assert wall.model.ports == (WEB,)
    recorder.failures = 1
    await wall.unpublish("c1")
    assert recorder.scripts[-1] == ruleset.render(wall.model)
    await wall.aclose()
    watch.close()


async def test_damage_from_outside_is_repaired_and_our_own_changes_are_not(
    wall: Firewall, recorder: Recorder, watch: socket.socket
) -> None:
    await wall.apply()
    recorder.listing = listed(wall.model)
    watch.send(LOST)
    await settled(wall)
    assert len(recorder.scripts) == 1
    recorder.listing = None
    watch.send(LOST)
    await settled(wall)
    assert len(recorder.scripts) == 2
    await wall.aclose()
    watch.close()


def listed(model: ruleset.FirewallModel) -> list[dict[str, Any]]:
    """The table as nftables would list it."""
    listing: list[dict[str, Any]] = [{"chain": {"name": name}} for name in ruleset.rules(model)]
    for chain, statements in ruleset.rules(model).items():
        listing += [{"rule": {"chain": chain}} for _ in statements]
    return listing + [{"set": {"name": name, "elem": sorted(set(e))}} for name, e in ruleset.elements(model).items()]


async def test_changes_that_come_while_the_table_is_looked_at_are_no_damage(
    wall: Firewall, recorder: Recorder, watch: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    passage = Passage("172.17.0.3", "172.17.0.2", "tcp", 80)
    await wall.set_passages("c3", [passage, passage])
    await wall.apply()
    await wall.publish("c1", [WEB])
    looking, go_on = threading.Event(), threading.Event()
    listing = listed(wall.model)

    def list_slowly(family: str, table: str) -> list[dict[str, Any]]:
        looking.set()
        go_on.wait(5)
        return listing

    recorder.list_sync = list_slowly  # type: ignore[method-assign]
    watch.send(LOST)
    while not looking.is_set():
        await asyncio.sleep(0)
    port = PublishedPort("tcp", "0.0.0.0", 8081, "172.17.0.2", 80)
    changes = [
        asyncio.create_task(change)
        for change in (wall.set_bridge("n2", BridgeRules("br-2")), wall.publish("c2", [port]), wall.unpublish("c1"))
    ]
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(*changes)
    assert wall._repair is not None
    await wall._repair
    assert "from outside" not in caplog.text
    listing = listed(wall.model)
    watch.send(LOST)
    await settled(wall)
    assert "from outside" not in caplog.text
    await wall.aclose()
    watch.close()


async def settled(wall: Firewall) -> None:
    """Until the notice was heard and what it caused is done."""
    before = wall._repair
    while wall._repair is before:
        await asyncio.sleep(0)
    assert wall._repair is not None
    await wall._repair


async def test_passages_follow_their_owner(wall: Firewall, recorder: Recorder, watch: socket.socket) -> None:
    await wall.apply()
    passage = Passage("172.17.0.3", "172.17.0.2", "tcp", 80)
    await wall.set_passages("c2", [passage])
    assert wall.model.passages == (passage,)
    await wall.set_passages("c2", [passage])
    await wall.set_passages("c2", [])
    assert wall.model.passages == () and len(recorder.scripts) == 3
    await wall.aclose()
    watch.close()


async def test_a_daemon_told_to_keep_out_touches_nothing(recorder: Recorder) -> None:
    wall = Firewall("berth", is_enabled=False, open_nft=lambda: recorder)
    await wall.apply()
    await wall.set_bridge("n", BridgeRules("docker0"))
    await wall.publish("c1", [WEB])
    await wall.unpublish("c1")
    await wall.aclose(remove=True)
    assert recorder.scripts == []
