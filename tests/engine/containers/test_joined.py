"""What a container takes over from another."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from engine.containers import joined as module
from engine.containers import rundir
from engine.containers.host import HostFacts
from engine.containers.joined import Joined, Users
from engine.containers.model import Container
from engine.errors import Conflict, InvalidParameter, SystemFailure
from engine.kernel.idmap import IdMap, IdRange
from tests.support.containers import container, ended, running
from tests.support.runs import Bench as Runs

IDS = IdMap((IdRange(0, 100000, 65536),), (IdRange(0, 100000, 65536),))
OTHER = running(2, config={"hostname": "h", "domainname": "d"})


class Bench:
    """Some containers; ``maps`` says which ids processes have, ``places`` in which namespaces they are."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, ids: IdMap | None = IDS) -> None:
        store = Runs(root, OTHER, running(3), ended(4)).store
        self.maps: dict[int, IdMap] = {4002: IDS, 4003: IDS}
        self.places = {4002: 1, 4003: 2}
        self.joined = Joined(store, HostFacts(ids=ids), lambda container_id: root / container_id)
        monkeypatch.setattr(module, "idmap_of_process_sync", lambda pid: self.maps[pid])
        monkeypatch.setattr(
            module, "same_user_namespace_sync", lambda pids: len({self.places[pid] for pid in pids}) == 1
        )


def joining(**modes: str) -> Container:
    return container(1, host=modes)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def test_names_are_those_of_the_network(bench: Bench) -> None:
    plain = joining()
    assert bench.joined.with_shared_names(plain) is plain
    named = bench.joined.with_shared_names(joining(network_mode="container:box2")).config
    assert (named.hostname, named.domainname) == ("h", "d")


def test_the_processes_whose_namespaces_are_joined(bench: Bench) -> None:
    assert bench.joined.network_pid(joining()) is None
    assert bench.joined.network_pid(joining(network_mode="container:box2")) == 4002
    assert bench.joined.pids(joining(pid_mode="container:box2", ipc_mode="container:box3")) == {
        "ipc": 4003,
        "pid": 4002,
    }
    with pytest.raises(Conflict, match="cannot join network of a non running container"):
        bench.joined.network_pid(joining(network_mode="container:box4"))
    with pytest.raises(SystemFailure, match="failed to join PID namespace: container .* is not running"):
        bench.joined.pids(joining(pid_mode="container:box4"))
    with pytest.raises(SystemFailure, match="cannot join own network"):
        bench.joined.network_pid(running(2, host={"network_mode": "container:box2"}))


async def test_users_are_the_hosts_the_daemons_or_those_of_whom_is_joined(bench: Bench) -> None:
    assert await bench.joined.users(joining()) == Users(IDS)
    assert await bench.joined.users(joining(userns_mode="host", network_mode="container:box2")) is None
    assert await bench.joined.users(joining(network_mode="container:box2")) == Users(IDS, 4002)
    assert await bench.joined.users(joining(pid_mode="container:box3")) == Users(IDS, 4003)
    assert await bench.joined.users(joining(pid_mode="container:box3", ipc_mode="container:box3")) == Users(IDS, 4003)


async def test_users_that_do_not_agree_are_told(bench: Bench) -> None:
    with pytest.raises(Conflict, match="in different user namespaces"):
        await bench.joined.users(joining(pid_mode="container:box3", network_mode="container:box2"))
    bench.maps[4002] = IdMap((IdRange(0, 0, 2**32 - 1),), (IdRange(0, 0, 2**32 - 1),))
    with pytest.raises(Conflict, match="does not have this daemon's user namespace"):
        await bench.joined.users(joining(network_mode="container:box2"))


async def test_what_was_created_without_the_setting_may_not_go_with_it(bench: Bench) -> None:
    with pytest.raises(InvalidParameter, match="cannot share the host's network namespace"):
        await bench.joined.users(joining(network_mode="host"))


async def test_without_the_setting_everybody_has_the_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path, monkeypatch, ids=None)
    assert await bench.joined.users(joining(network_mode="container:box2")) is None


async def test_shared_memory_is_container_roots(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Path, int, tuple[int, int]]] = []
    monkeypatch.setattr(rundir, "mount_shared_memory_sync", lambda *given: made.append(given))
    async with contextlib.AsyncExitStack() as undo:
        assert await bench.joined.shared_memory(joining(ipc_mode="private"), (0, 0), undo) is None
        one = joining(ipc_mode="shareable")
        folder = tmp_path / one.id / "shm"
        assert await bench.joined.shared_memory(one, IDS.root, undo) == str(folder)
        assert made == [(folder, one.host_config.shm_size, (100000, 100000))]
        (tmp_path / OTHER.id / "shm").mkdir(parents=True)
        shown = await bench.joined.shared_memory(joining(ipc_mode="container:box2"), (0, 0), undo)
        assert shown == str(tmp_path / OTHER.id / "shm")
        with pytest.raises(Conflict, match="non-shareable IPC"):
            await bench.joined.shared_memory(joining(ipc_mode="container:box3"), (0, 0), undo)
