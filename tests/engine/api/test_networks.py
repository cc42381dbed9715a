"""The networks resource over a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from engine.api.networks import NetworkRoutes
from engine.config import Config
from engine.containers.settings import EndpointSettings
from engine.errors import no_such_container
from engine.events import EventBus
from engine.journal import Journal
from engine.networks.service import NetworkService
from engine.tasks import run_blocking
from tests.engine.api.conftest import Serve
from tests.support.played_networks import PlayedDriver, PlayedLinks, absent_firewall


class Connector:
    """Writes down who was to be connected where."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    async def connect_network(self, container: str, network: str, settings: EndpointSettings) -> None:
        if container == "nobody":
            raise no_such_container(container)
        self.calls.append(("connect", container, network, settings))

    async def disconnect_network(self, container: str, network: str, *, force: bool) -> None:
        self.calls.append(("disconnect", container, network, force))


@pytest.fixture
def connector() -> Connector:
    return Connector()


@pytest_asyncio.fixture
async def client(short_root: Path, connector: Connector, serve: Serve) -> AsyncIterator[aiohttp.ClientSession]:
    journal = Journal(short_root / "journal")
    await run_blocking(journal.open_sync)
    driver = PlayedDriver()
    service = NetworkService(
        Config(data_root=short_root, exec_root=short_root),
        journal,
        EventBus(),
        links=PlayedLinks(),
        firewall=absent_firewall(),
        drivers=dict.fromkeys(("bridge", "host", "null"), driver),
    )
    await service.start()
    yield (await serve(NetworkRoutes(service, connector).table())).session
    await service.aclose()
    await journal.aclose()


async def create(client: aiohttp.ClientSession, version: str = "1.51", **body: Any) -> tuple[int, dict[str, Any]]:
    async with client.post(f"/v{version}/networks/create", json=body) as response:
        return response.status, await response.json()


async def test_create_inspect_list_and_remove(client: aiohttp.ClientSession) -> None:
    ipam = {"Driver": "default", "Config": [{"Subnet": "10.9.8.0/24", "IPRange": "10.9.8.128/25"}], "Options": {}}
    status, made = await create(
        client, Name="town", IPAM=ipam, Labels={"a": "b"}, Internal=True, CheckDuplicate=True, Options=None
    )
    assert status == 201 and made["Warning"] == ""
    async with client.get("/v1.51/networks/town") as response:
        shape = await response.json()
    assert shape["IPAM"] == {
        "Driver": "default",
        "Options": {},
        # a gateway that nobody asked for is not shown
        "Config": [{"Subnet": "10.9.8.0/24", "IPRange": "10.9.8.128/25"}],
    }
    assert (shape["Id"], shape["Internal"], shape["Labels"], shape["Containers"]) == (made["Id"], True, {"a": "b"}, {})
    assert set(shape) == {
        *("Name", "Id", "Created", "Scope", "Driver", "EnableIPv4", "EnableIPv6", "IPAM", "Internal", "Attachable"),
        *("Ingress", "ConfigFrom", "ConfigOnly", "Containers", "Options", "Labels"),
    }
    async with client.get("/networks", params={"filters": '{"name":{"town":true}}'}) as response:
        assert [network["Id"] for network in await response.json()] == [made["Id"]]
    async with client.delete(f"/networks/{made['Id'][:12]}") as response:
        assert response.status == 204
    async with client.get("/networks/town") as response:
        assert (response.status, await response.json()) == (404, {"message": "network town not found"})


async def test_networks_of_old_versions_have_ipv4(client: aiohttp.ClientSession) -> None:
    for version, name in (("1.46", "old"), ("1.47", "new")):
        await create(client, version, Name=name, EnableIPv4=False, EnableIPv6=True)
        async with client.get(f"/networks/{name}") as response:
            assert (await response.json())["EnableIPv4"] is (name == "old")


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({}, 400, "name is empty"),
        ({"Name": "host"}, 403, "predefined host network"),
        ({"Name": "x", "Driver": "nope"}, 404, 'plugin "nope" not found'),
        ({"Name": "x", "IPAM": {"Config": [{"Subnet": "bogus"}]}}, 400, "invalid subnet bogus"),
        ({"Name": "x", "IPAM": {"Config": [{"Subnet": "172.17.1.0/24"}]}}, 403, "Pool overlaps"),
        ({"Name": 7}, 400, "invalid JSON"),
    ],
)
async def test_requests_that_are_refused(client: aiohttp.ClientSession, body: Any, status: int, words: str) -> None:
    found, answer = await create(client, **body)
    assert found == status and words in answer["message"]


async def test_connect_and_disconnect_go_to_the_containers(client: aiohttp.ClientSession, connector: Connector) -> None:
    await create(client, Name="town")
    config = {"IPAMConfig": {"IPv4Address": "10.0.0.9"}, "Aliases": ["www"], "DriverOpts": None, "MacAddress": ""}
    body = {"Container": "web", "EndpointConfig": config}
    async with client.post("/networks/town/connect", json=body) as response:
        assert response.status == 200
    async with client.post("/networks/town/disconnect", json={"Container": "web", "Force": True}) as response:
        assert response.status == 200
    (action, container, network, settings), off = connector.calls
    assert (action, container, network) == ("connect", "web", "town")
    assert settings.aliases == ("www",) and settings.ipam_config.ipv4_address == "10.0.0.9"
    assert off == ("disconnect", "web", "town", True)
    for target, bad, status in (
        ("town", {"Container": "nobody"}, 404),
        ("town", {}, 400),
    ):
        async with client.post(f"/networks/{target}/connect", json=bad) as response:
            assert response.status == status


async def test_prune_names_what_it_removed(client: aiohttp.ClientSession) -> None:
    await create(client, Name="town")
    async with client.post("/networks/prune", params={"filters": '{"until":["1h"]}'}) as response:
        assert await response.json() == {"NetworksDeleted": None}
    async with client.post("/networks/prune") as response:
        assert await response.json() == {"NetworksDeleted": ["town"]}
    async with client.post("/networks/prune", params={"filters": '{"odd":["1h"]}'}) as response:
        assert response.status == 400
