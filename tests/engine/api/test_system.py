"""The engine as a whole: ping, version, info, events, disk usage, and no swarm."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_asyncio

from engine.api.system import SystemRoutes, _file_system
from engine.api.usage import DiskUsageReport
from engine.api.views import ContainerViews
from engine.config import Config
from engine.containers.assembly import Host
from engine.containers.host import HostFacts
from engine.containers.model import Status
from engine.images.service import ImageService
from engine.images.store import ImageStore
from engine.networks.service import NetworkService
from engine.runtime.cgroups import Cgroups
from engine.runtime.oci import Runtime, Runtimes
from engine.volumes.service import VolumeService
from tests.engine.api.conftest import Serve
from tests.support.containers import container, ended, running
from tests.support.runs import FakeImages
from tests.support.served import Served
from tests.support.services import ServiceBench


class NoCgroups:
    """Names its driver."""

    driver = "cgroupfs"


class OneRuntime:
    """What is asked of a runtime here."""

    name, version, commit, path = "crun", "1.8", "abc", "/usr/bin/crun"


class EmptyImages(FakeImages):
    """An image store and an image service without images."""

    def all(self) -> list[object]:
        return []

    def get(self, name: str) -> Any:
        return None

    def list(self, *_: object, **__: object) -> list[object]:
        return []


class EmptyVolumes:
    """A volume service without volumes."""

    async def usage(self) -> tuple[object, ...]:
        return ()


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[ServiceBench]:
    made = ServiceBench(
        tmp_path,
        container(1),
        running(2),
        running(3, state={"status": Status.PAUSED}),
        ended(4, state={"status": Status.RESTARTING}),
        ended(5),
    )
    made.assembly.sizes = {container(1).id: 7}
    yield made
    await made.aclose()


@pytest_asyncio.fixture
async def routes(bench: ServiceBench, tmp_path: Path) -> SystemRoutes:
    config = Config(
        data_root=tmp_path,
        labels=("a=b",),
        registry_mirrors=("https://mirror",),
        insecure_registries=("10.0.0.0/8", "old:5000"),
        default_address_pools=(("10.9.0.0/16", 24),),
    )
    facts = HostFacts(cgroup_version=2, supports=frozenset({"memory", "pids"}), cpus=3, memory_total=99, apparmor=True)
    runtimes = Runtimes({"crun": cast(Runtime, OneRuntime())}, "crun")
    host = Host(facts, cast(Cgroups, NoCgroups()), runtimes, "/usr/bin/tini")
    images = EmptyImages()
    views = ContainerViews(bench.service, cast(NetworkService, bench.networks), cast(ImageStore, images), tmp_path)
    usage = DiskUsageReport(
        bench.service, views, cast(ImageService, images), cast(VolumeService, EmptyVolumes()), lambda: 55
    )
    return SystemRoutes(config, host, "id1", bench.store, cast(ImageStore, images), bench.events, usage, "overlay2")


@pytest_asyncio.fixture
async def api(routes: SystemRoutes, serve: Serve) -> Served:
    return await serve(routes.table())


async def ask(api: Served, path: str, **params: str) -> tuple[int, Any]:
    status, text = await api.get(path, params=params)
    return status, json.loads(text)


async def lines(api: Served, **params: str) -> list[str]:
    status, text = await api.get("/events", params=params)
    assert status == 200
    return [json.loads(line)["Action"] for line in text.splitlines()]


async def test_ping(api: Served) -> None:
    async with api.session.get("/_ping") as response:
        assert (response.status, await response.text()) == (200, "OK")
        assert response.headers["Builder-Version"] == "1"
        assert response.headers["Swarm"] == "inactive"
        assert "no-cache" in response.headers["Cache-Control"]
        assert response.headers["Api-Version"] == "1.51"
    async with api.session.head("/v1.40/_ping") as response:
        assert (response.status, await response.read()) == (200, b"")


async def test_info_shows_proxies_without_their_passwords(
    api: Served, routes: SystemRoutes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://env:1")
    routes.reloaded(Config(http_proxy="http://joe:secret@proxy:3128", no_proxy="a,b"))
    _, info = await ask(api, "/info")
    assert info["HttpProxy"] == "http://xxxxx:xxxxx@proxy:3128"
    assert (info["HttpsProxy"], info["NoProxy"]) == ("http://env:1", "a,b")


async def test_info_shows_what_cdi_offers(bench: ServiceBench, routes: SystemRoutes, serve: Serve) -> None:
    folder = routes.config.data_root / "cdi"
    folder.mkdir()
    kind = {"cdiVersion": "0.6.0", "kind": "vendor.com/net"}
    (folder / "a.json").write_text(json.dumps({**kind, "devices": [{"name": "b"}, {"name": "a"}]}))
    (folder / "b.yaml").write_text("{")
    routes._cdi = Config(cdi_spec_dirs=(str(folder),))
    api = await serve(routes.table())
    _, info = await ask(api, "/info")
    assert info["CDISpecDirs"] == [str(folder)]
    assert info["DiscoveredDevices"] == [{"Source": "cdi", "ID": f"vendor.com/net={name}"} for name in "ab"]
    assert any(f"spec file {folder}/b.yaml: failed to load CDI Spec" in words for words in info["Warnings"])
    assert "DiscoveredDevices" not in (await ask(api, "/v1.49/info"))[1]
    routes._cdi = Config(cdi_spec_dirs=(str(folder),), features={"cdi": False})
    _, info = await ask(api, "/info")
    assert (info["CDISpecDirs"], info["DiscoveredDevices"]) == ([], [])


async def test_info_warns(api: Served, routes: SystemRoutes) -> None:
    routes.reloaded(Config(hosts=("unix:///x", "tcp://0.0.0.0:2375"), seccomp_profile="/p.json"))
    _, info = await ask(api, "/info")
    assert info["Warnings"][0].startswith(
        "[DEPRECATION NOTICE]: API is accessible on http://0.0.0.0:2375 without encryption."
    )
    assert info["Warnings"][1:] == [
        *("WARNING: No swap limit support", "WARNING: No cpu cfs quota support"),
        *("WARNING: No cpu cfs period support", "WARNING: No cpu shares support", "WARNING: No cpuset support"),
        "WARNING: daemon is not using the default seccomp profile",
    ]
    routes.reloaded(Config(hosts=("tcp://0.0.0.0:2376",), tls=True))
    assert "https://0.0.0.0:2376 without TLS client" in (await ask(api, "/info"))[1]["Warnings"][0]
    routes.reloaded(Config(hosts=("tcp://0.0.0.0:2376",), tls=True, tlsverify=True))
    assert "0.0.0.0:2376" not in (await ask(api, "/info"))[1]["Warnings"][0]


async def test_version(api: Served) -> None:
    _, version = await ask(api, "/version")
    assert (version["ApiVersion"], version["MinAPIVersion"], version["Os"]) == ("1.51", "1.24", "linux")
    assert [c["Name"] for c in version["Components"]] == ["Engine", "berth", "crun"]
    assert version["Components"][2]["Details"] == {"GitCommit": "abc"}


async def test_info(api: Served, routes: SystemRoutes) -> None:
    _, info = await ask(api, "/info")
    counts = {key: info[f"Containers{key}"] for key in ("", "Running", "Paused", "Stopped")}
    assert counts == {"": 5, "Running": 2, "Paused": 1, "Stopped": 2}
    assert (info["ID"], info["NCPU"], info["MemTotal"], info["Driver"]) == ("id1", 3, 99, "overlay2")
    assert (info["MemoryLimit"], info["SwapLimit"], info["PidsLimit"]) == (True, False, True)
    assert (info["CgroupVersion"], info["CgroupDriver"]) == ("2", "cgroupfs")
    assert info["SecurityOptions"] == ["name=apparmor", "name=seccomp,profile=builtin", "name=cgroupns"]
    assert (info["Labels"], info["DefaultRuntime"], info["InitBinary"]) == (["a=b"], "crun", "tini")
    assert info["DefaultAddressPools"] == [{"Base": "10.9.0.0/16", "Size": 24}]
    registries = info["RegistryConfig"]
    assert registries["Mirrors"] == ["https://mirror/"]
    assert registries["InsecureRegistryCIDRs"] == ["10.0.0.0/8", "::1/128", "127.0.0.0/8"]
    assert registries["IndexConfigs"]["old:5000"]["Secure"] is False
    assert info["Plugins"]["Network"] == ["bridge", "host", "ipvlan", "macvlan", "null"]
    assert info["FirewallBackend"] == {"Driver": "nftables"}
    assert "FirewallBackend" not in (await ask(api, "/v1.48/info"))[1]
    settings = Config(default_cgroupns_mode="host", no_new_privileges=True, debug=True)
    routes.reloaded(settings)
    _, info = await ask(api, "/info")
    assert info["Debug"] is True
    assert info["SecurityOptions"][2:] == ["name=no-new-privileges"]
    assert "DefaultAddressPools" not in info


async def test_past_events(api: Served, bench: ServiceBench) -> None:
    bench.records.event(running(2), "start")
    bench.records.event(running(2), "die", {"exitCode": "0"})
    assert await lines(api, since="0", until="1970-01-02") == []
    now = str(bench.events._last_ns // 10**9 + 1)
    assert await lines(api, since="0", until=now) == ["start", "die"]
    assert await lines(api, since="0", until=now, filters='{"event":["die"]}') == ["die"]
    assert await lines(api, until="5") == []
    assert await lines(api, until=now) == ["start", "die"]


async def test_live_events_follow_past_ones(api: Served, bench: ServiceBench) -> None:
    bench.records.event(running(2), "start")
    async with api.session.get("/events", params={"since": "0", "filters": '{"type":["container"]}'}) as response:
        assert json.loads(await asyncio.wait_for(response.content.readline(), 5))["Action"] == "start"
        assert bench.events.listeners == 1
        bench.events.publish("volume", "create", "v1")
        bench.records.event(running(2), "die")
        assert json.loads(await asyncio.wait_for(response.content.readline(), 5))["Action"] == "die"
        response.close()
    async with asyncio.timeout(5):
        while bench.events.listeners:
            await asyncio.sleep(0.001)


async def test_events_end_at_until(api: Served) -> None:
    async with asyncio.timeout(5):
        assert await lines(api, until="-10ms") == []


async def test_event_parameters_are_checked(api: Served) -> None:
    assert await ask(api, "/events", since="10", until="5") == (
        400,
        {"message": "`since` time cannot be after `until` time"},
    )
    assert (await ask(api, "/events", since="soon"))[0] == 400
    assert (await ask(api, "/events", filters="[1"))[0] == 400


async def test_disk_usage(api: Served) -> None:
    _, everything = await ask(api, "/system/df")
    assert (everything["LayersSize"], everything["Images"], everything["Volumes"]) == (55, [], [])
    assert len(everything["Containers"]) == 5
    assert sum(row["SizeRw"] for row in everything["Containers"]) == 7
    _, volumes = await ask(api, "/system/df", type="volume")
    assert (volumes["LayersSize"], volumes["Images"], volumes["Containers"], volumes["Volumes"]) == (0, None, None, [])
    assert await ask(api, "/system/df", type="dust") == (400, {"message": "unknown object type: dust"})


@pytest.mark.parametrize("path", ["/swarm", "/services", "/nodes", "/tasks", "/secrets", "/configs"])
async def test_there_is_no_swarm(api: Served, path: str) -> None:
    status, answer = await ask(api, path)
    assert status == 503
    assert answer["message"].startswith("This node is not a swarm manager.")


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/swarm/leave?force=True", 503, "This node is not part of a swarm"),
        ("/v1.51/swarm/init", 501, "swarm mode is not supported by this engine"),
        ("/services/create", 503, "This node is not a swarm manager."),
        ("/nodes/abc/update?version=1", 503, "This node is not a swarm manager."),
    ],
)
async def test_swarm_commands_say_why_not(api: Served, path: str, status: int, words: str) -> None:
    async with api.session.post(path) as response:
        assert response.status == status
        assert (await response.json())["message"].startswith(words)


async def test_the_commits_that_were_expected_are_told_to_older_clients(api: Served) -> None:
    _, today = await ask(api, "/info")
    _, older = await ask(api, "/v1.48/info")
    assert today["RuncCommit"] == {"ID": "abc"}
    assert older["RuncCommit"] == {"ID": "abc", "Expected": "abc"}
    assert "BridgeNfIptables" not in today
    assert older["BridgeNfIptables"] is False


async def test_there_are_no_plugins(api: Served) -> None:
    assert await ask(api, "/plugins") == (200, [])


def test_file_systems_are_named() -> None:
    assert _file_system(Path("/proc/self")) == "proc"
    assert _file_system(Path("/sys")) == "sysfs"


async def test_pruning_the_build_cache_finds_nothing(api: Served) -> None:
    async with api.session.post("/build/prune") as response:
        assert response.status == 200
        assert await response.json() == {"CachesDeleted": None, "SpaceReclaimed": 0}
