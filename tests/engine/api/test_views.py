"""Wish and fact of a container's place on its networks, its ports and its layers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import msgspec
import pytest
import pytest_asyncio

from engine.api.views import ContainerViews, endpoint_view
from engine.containers.model import Status
from engine.containers.settings import EndpointIPAMConfig, EndpointSettings, ExecSettings, LogConfig
from engine.images.store import ImageStore
from engine.networks.model import EndpointState, PortState, SandboxDocument
from engine.networks.service import NetworkService
from tests.support.containers import container, ended, running
from tests.support.runs import FakeImage
from tests.support.services import ServiceBench

FACT = EndpointState(
    link="veth1",
    network_id="n2",
    network_name="front",
    endpoint_id="e1",
    gateway="10.0.0.1",
    ip_address="10.0.0.2",
    ip_prefix_len=24,
    mac_address="02:42:0a:00:00:02",
    dns_names=("web", "db"),
)
SANDBOX = SandboxDocument(
    sandbox_id="5a" * 32,
    container_id="c",
    name="web",
    mode="front",
    endpoints={"front": FACT},
    ports=(PortState(port="80/tcp", host_ip="0.0.0.0", host_port=8080),),
    exposed=("80/tcp", "53/udp"),
)


class Images:
    """An image store with one image."""

    def get(self, image_id: str) -> FakeImage | None:
        return FakeImage(image_id, size=1000) if image_id.startswith("sha256:e") else None


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[ServiceBench]:
    made = ServiceBench(tmp_path)
    yield made
    await made.aclose()


@pytest.fixture
def views(bench: ServiceBench) -> ContainerViews:
    return ContainerViews(
        bench.service, cast(NetworkService, bench.networks), cast(ImageStore, Images()), Path("/data")
    )


def test_a_wish_without_fact_has_no_address() -> None:
    ipam = EndpointIPAMConfig(ipv4_address="10.0.0.9")
    wish = EndpointSettings(aliases=("db",), links=("a:b",), ipam_config=ipam, mac_address="02:42", gw_priority=3)
    view = endpoint_view(wish, None, "n2")
    assert view["IPAMConfig"] == {"IPv4Address": "10.0.0.9"}
    assert (view["Aliases"], view["Links"], view["MacAddress"], view["GwPriority"]) == (["db"], ["a:b"], "02:42", 3)
    assert (view["NetworkID"], view["IPAddress"], view["EndpointID"], view["DNSNames"]) == ("n2", "", "", None)


def test_a_fact_has_its_address() -> None:
    view = endpoint_view(None, FACT, "n2")
    assert (view["IPAddress"], view["IPPrefixLen"], view["Gateway"]) == ("10.0.0.2", 24, "10.0.0.1")
    assert (view["EndpointID"], view["MacAddress"]) == ("e1", "02:42:0a:00:00:02")
    assert view["DNSNames"] == ["web", "db"]
    assert (view["IPAMConfig"], view["Aliases"], view["Links"]) == (None, None, None)


def test_endpoints_are_those_wished_for_and_those_there(views: ContainerViews) -> None:
    record = running(2, networks={"bridge": EndpointSettings(), "gone": EndpointSettings()}, sandbox=SANDBOX)
    shown = views.endpoints(record)
    assert list(shown) == ["bridge", "gone", "front"]
    assert [shown[name]["NetworkID"] for name in shown] == ["n1", "", "n2"]
    assert shown["front"]["IPAddress"] == "10.0.0.2"
    assert views.endpoints(container(1)) == {}


def test_ports_are_those_of_a_running_container(views: ContainerViews) -> None:
    assert views.ports(running(2, sandbox=SANDBOX)) == {
        "80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}],
        "53/udp": None,
    }
    assert views.ports(ended()) == {}
    unreachable = msgspec.structs.replace(SANDBOX, endpoints={"lan": msgspec.structs.replace(FACT, link="")})
    assert views.ports(running(2, sandbox=unreachable)) == {}


async def test_sizes_add_the_image(views: ContainerViews, bench: ServiceBench) -> None:
    known, imageless = container(1), container(2, image_id="")
    bench.assembly.sizes = {known.id: 7, imageless.id: 3}
    assert await views.sizes([known, imageless]) == {
        known.id: {"SizeRw": 7, "SizeRootFs": 1007},
        imageless.id: {"SizeRw": 3, "SizeRootFs": 3},
    }


async def test_rows_have_sizes_when_asked(views: ContainerViews, bench: ServiceBench) -> None:
    record = running(2, sandbox=SANDBOX)
    assert "SizeRw" not in views.rows([record])[0]
    (row,) = views.rows([record], await views.sizes([record]))
    assert (row["SizeRootFs"], row["Image"], len(row["Ports"])) == (1000, "busybox", 2)


async def test_inspect_facts(views: ContainerViews, bench: ServiceBench) -> None:
    record = running(2, sandbox=SANDBOX, layers=("low", "high"))
    await bench.records.save(record)
    instance = bench.execs.create(record.id, ExecSettings(cmd=("ls",)))
    instance.running = True
    facts = await views.inspect_facts(record, with_size=True)
    assert facts.exec_ids == [instance.id]
    assert (facts.sandbox_id, facts.sandbox_key) == ("5a" * 32, "/run/netns/5a5a5a5a5a5a")
    assert facts.graph["LowerDir"] == "/data/layers/high/fs:/data/layers/low/fs"
    assert facts.graph["UpperDir"] == f"/data/snapshots/{record.id}/diff"
    assert (facts.size_rw, facts.size_root, facts.has_log) == (0, 1000, False)
    assert facts.apparmor == f"profile of {record.name}"


async def test_who_has_joined_anothers_network_shows_no_sandbox(views: ContainerViews) -> None:
    joined = msgspec.structs.replace(SANDBOX, mode="container:" + "b" * 64, endpoints={})
    facts = await views.inspect_facts(running(2, sandbox=joined), with_size=False)
    assert (facts.sandbox_id, facts.sandbox_key) == ("", "")


async def test_what_is_being_removed_has_no_layers(views: ContainerViews) -> None:
    going = ended(1, state={"status": Status.REMOVING}, host={"log_config": LogConfig(type="json-file")})
    facts = await views.inspect_facts(going, with_size=False)
    assert (facts.graph, facts.size_rw, facts.sandbox_key, facts.has_log) == ({}, None, "", True)
