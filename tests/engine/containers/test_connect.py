"""Networks joined and left: in the record, and at once where it runs."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest
import pytest_asyncio

from engine.containers.connect import Connector
from engine.containers.model import Container, Status
from engine.containers.settings import EndpointSettings
from engine.errors import Conflict, Forbidden, InvalidParameter, NotFound, SystemFailure
from engine.networks.ports import HeldPort, PortWish
from engine.networks.sandbox import Sandbox
from engine.networks.service import NetworkService
from engine.runtime.model import ShimLost
from engine.runtime.shims import Shim
from tests.support.containers import container, ended, running
from tests.support.runs import Bench, FakeNetwork, FakeNetworks, FakeShim

NEW = container(1, name="new", networks={"bridge": EndpointSettings()})
BOX = running(2, name="box", networks={"bridge": EndpointSettings()})
WISH = EndpointSettings(aliases=("db",))


class ConnectBench(Bench):
    """A bench with a connector."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, NEW, BOX)
        self.networks = FakeNetworks()
        self.connector = Connector(self.records, self.live, cast(NetworkService, self.networks), self.locks)

    def joined(self, record: Container) -> list[str]:
        return list(self.now(record.id).networks)


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[ConnectBench]:
    made = ConnectBench(tmp_path)
    yield made
    await made.aclose()


async def test_a_stopped_container_only_wishes(bench: ConnectBench) -> None:
    await bench.connector.connect_network("new", "n2", WISH)
    assert bench.now(NEW.id).networks == {"bridge": EndpointSettings(), "front": WISH}
    await bench.connector.disconnect_network("new", "bridge", force=False)
    assert bench.joined(NEW) == ["front"]
    assert bench.networks.log == []
    assert bench.journal.durable == [True, True]


async def test_a_running_one_joins_and_leaves_at_once(bench: ConnectBench) -> None:
    await bench.connector.connect_network("/box", "front", WISH)
    await bench.connector.disconnect_network(BOX.id, "n1", force=False)
    assert bench.joined(BOX) == ["front"]
    assert bench.networks.log == [("connect", BOX.id, "n2"), ("disconnect", BOX.id, "n1")]


@pytest.mark.parametrize("failure", [None, ShimLost("gone")])
async def test_ports_that_are_published_late_are_the_shims_to_hold(
    bench: ConnectBench, failure: Exception | None
) -> None:
    shim, live = FakeShim(BOX.id), bench.live[BOX.id]
    live.shim, live.sandbox = cast(Shim, shim), Sandbox(BOX.id, "box", "s1", "bridge")
    await bench.connector.connect_network("box", "front", WISH)
    assert shim.held == []
    live.sandbox.held = [HeldPort(PortWish("tcp", 80), "0.0.0.0", 8080, held := socket.socket())]
    live.sandbox.hold_fds = (descriptor := held.fileno(),)
    shim.hold_failure = failure
    await bench.connector.disconnect_network("box", "front", force=False)
    await bench.connector.connect_network("box", "front", WISH)
    assert shim.held == ([] if failure else [descriptor])
    assert held.fileno() == -1 and live.sandbox.hold_fds == ()
    assert bench.joined(BOX) == ["bridge", "front"]
    live.shim = None


async def test_what_failed_has_not_changed_the_record(bench: ConnectBench) -> None:
    bench.networks.failure = SystemFailure("no address left")
    with pytest.raises(SystemFailure):
        await bench.connector.connect_network("box", "front", WISH)
    with pytest.raises(SystemFailure):
        await bench.connector.disconnect_network("box", "bridge", force=False)
    assert bench.now(BOX.id) == BOX
    await bench.connector.disconnect_network("box", "bridge", force=True)
    assert bench.joined(BOX) == []


async def test_a_wish_that_no_network_grants_is_told_before_anything_else(bench: ConnectBench) -> None:
    bench.networks.wish_failure = InvalidParameter("network-scoped aliases")
    with pytest.raises(InvalidParameter, match="network-scoped aliases"):
        await bench.connector.connect_network("box", "bridge", WISH)


async def test_twice_or_not_at_all_is_forbidden(bench: ConnectBench) -> None:
    with pytest.raises(Forbidden, match="endpoint with name box already exists in network bridge"):
        await bench.connector.connect_network("box", "bridge", WISH)
    with pytest.raises(Forbidden, match=f"container {BOX.id} is not connected to network front"):
        await bench.connector.disconnect_network("box", "front", force=False)


async def test_unknown_names(bench: ConnectBench) -> None:
    with pytest.raises(NotFound, match="network nowhere not found"):
        await bench.connector.connect_network("box", "nowhere", WISH)
    await bench.connector.connect_network("new", "nowhere", WISH)  # may be made before it starts
    assert bench.joined(NEW) == ["bridge", "nowhere"]
    with pytest.raises(NotFound, match="No such container: nobody"):
        await bench.connector.connect_network("nobody", "front", WISH)
    with pytest.raises(NotFound):
        await bench.connector.disconnect_network("nobody", "front", force=False)


async def test_a_network_that_is_gone_can_be_left(bench: ConnectBench) -> None:
    lost = {"bridge": EndpointSettings(), "gone": EndpointSettings()}
    await bench.records.save(container(6, name="stopped", networks=lost))
    await bench.records.save(running(7, name="runs", networks=lost))
    await bench.connector.disconnect_network("stopped", "gone", force=False)
    assert bench.joined(bench.store.find("stopped")) == ["bridge"]
    with pytest.raises(NotFound, match="network gone not found"):
        await bench.connector.disconnect_network("runs", "gone", force=False)
    bench.networks.failure = SystemFailure("there is no such network to leave")
    await bench.connector.disconnect_network("runs", "gone", force=True)
    assert bench.joined(bench.store.find("runs")) == ["bridge"]
    with pytest.raises(Forbidden, match="is not connected to the network never"):
        await bench.connector.disconnect_network("runs", "never", force=True)


async def test_an_unknown_container_and_network_are_an_error_even_by_force(bench: ConnectBench) -> None:
    for network, words in (("never", "network never not found"), ("front", "endpoint nobody not found")):
        with pytest.raises(NotFound, match=words):
            await bench.connector.disconnect_network("nobody", network, force=True)


async def test_none_and_host_are_beside_no_other(bench: ConnectBench) -> None:
    bench.networks.known += (FakeNetwork("n3", "none"), FakeNetwork("n4", "host"))
    await bench.records.save(running(6, name="alone", networks={"none": EndpointSettings()}))
    for name, network in (("alone", "front"), ("box", "none"), ("new", "none")):
        with pytest.raises(Forbidden, match=r"one of the networks in private \(none\) mode"):
            await bench.connector.connect_network(name, network, WISH)
    with pytest.raises(InvalidParameter, match="^cannot connect container to host network"):
        await bench.connector.connect_network("box", "host", WISH)
    onhost = {"networks": {"host": EndpointSettings()}, "host": {"network_mode": "host"}}
    await bench.records.save(running(7, name="onhost", **onhost))
    for force in (False, True):
        with pytest.raises(InvalidParameter, match="^cannot disconnect container from host network"):
            await bench.connector.disconnect_network("onhost", "host", force=force)
    await bench.records.save(container(8, name="once", **onhost))
    await bench.connector.disconnect_network("once", "host", force=False)
    assert bench.joined(bench.store.find("once")) == []
    await bench.connector.disconnect_network("alone", "none", force=False)
    await bench.connector.connect_network("alone", "none", WISH)
    assert bench.joined(bench.store.find("alone")) == ["none"]


@pytest.mark.parametrize("mode", ["host", "container:" + "a" * 64])
async def test_who_has_no_network_of_its_own_joins_none(bench: ConnectBench, mode: str) -> None:
    await bench.records.save(container(6, name="shared", host={"network_mode": mode}))
    words = "with another container or host cannot be connected to any other network"
    with pytest.raises(InvalidParameter, match=words):
        await bench.connector.connect_network("shared", "front", WISH)
    with pytest.raises(Forbidden, match="is not connected to the network front"):
        await bench.connector.disconnect_network("shared", "front", force=False)


async def test_what_is_being_removed_joins_none(bench: ConnectBench) -> None:
    await bench.records.save(ended(6, name="going", state={"status": Status.REMOVING}))
    with pytest.raises(Conflict, match="marked for removal"):
        await bench.connector.connect_network("going", "front", WISH)
