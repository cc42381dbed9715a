"""Containers found by id, name and prefix; what the journal has is what a client was told."""

from __future__ import annotations

from typing import cast

import pytest

from engine.containers import store as module
from engine.containers.store import ContainerStore
from engine.errors import Conflict, InvalidParameter, NotFound
from engine.journal import Journal
from tests.support.containers import container
from tests.support.runs import FakeJournal

ONE = container(1, id="abc1" + "0" * 60, name="one")
TWO = container(2, id="abd2" + "0" * 60, name="two")


@pytest.fixture
def journal() -> FakeJournal:
    return FakeJournal()


@pytest.fixture
def store(journal: FakeJournal) -> ContainerStore:
    return ContainerStore(cast(Journal, journal))


async def test_containers_are_found_in_every_way(store: ContainerStore) -> None:
    await store.save(ONE)
    await store.save(TWO)
    for reference in (ONE.id, "one", "/one", "abc", "abc10000"):
        assert store.find(reference) is ONE
    assert store.get(TWO.id) is TWO
    assert store.require(TWO.id) is TWO
    assert len(store) == len(list(store)) == 2
    assert store.newest_first() == [TWO, ONE]


async def test_what_is_not_there_or_not_unique_is_said(store: ContainerStore) -> None:
    await store.save(ONE)
    await store.save(TWO)
    with pytest.raises(NotFound, match="^No such container: three$"):
        store.find("three")
    with pytest.raises(InvalidParameter, match="^invalid container name or ID: value is empty$"):
        store.find("")
    with pytest.raises(InvalidParameter, match="Multiple IDs found with provided prefix: ab"):
        store.find("ab")
    with pytest.raises(NotFound):
        store.require("abc")
    assert store.get("abc") is None


async def test_a_container_that_is_being_created_is_not_there(store: ContainerStore) -> None:
    store.reserve_name("soon", "e" * 64)
    for reference in ("soon", "/soon", "soon/alias"):
        with pytest.raises(NotFound, match=f"^No such container: {reference}$"):
            store.find(reference)


async def test_whose_network_a_container_has(store: ContainerStore) -> None:
    await store.save(ONE)
    joined = container(3, name="joined", host={"network_mode": f"container:{ONE.id}"})
    again = container(4, name="again", host={"network_mode": "container:joined"})
    for one in (joined, again):
        await store.save(one)
    assert store.network_owner(again) is store.network_owner(joined) is store.network_owner(ONE) is ONE
    circle = container(5, name="circle", host={"network_mode": "container:circle"})
    await store.save(circle)
    assert store.network_owner(circle) is circle
    with pytest.raises(NotFound):
        store.network_owner(container(6, host={"network_mode": "container:lost"}))


async def test_a_name_goes_before_a_prefix(store: ContainerStore) -> None:
    await store.save(ONE)
    named = container(3, id="f" * 64, name="abc1")
    await store.save(named)
    assert store.find("abc1") is named


async def test_records_survive_a_restart(store: ContainerStore, journal: FakeJournal) -> None:
    await store.save(ONE, durable=True)
    await store.save(TWO)
    assert journal.durable == [True, False]
    again = ContainerStore(cast(Journal, journal))
    again.load()
    assert again.find("two") == TWO
    assert again.find("abc") == ONE


async def test_a_deleted_container_frees_its_names(store: ContainerStore, journal: FakeJournal) -> None:
    await store.save(ONE)
    await store.delete(ONE)
    assert store.get(ONE.id) is None
    assert journal.documents == {}
    for reference in ("one", "abc"):
        with pytest.raises(NotFound):
            store.find(reference)
    store.reserve_name("one", TWO.id)


async def test_a_new_container_that_the_journal_refuses_is_not_there(
    store: ContainerStore, journal: FakeJournal
) -> None:
    await store.save(ONE)
    journal.failure = OSError("disk full")
    with pytest.raises(OSError, match="disk full"):
        await store.save(TWO)
    assert list(store) == [ONE]
    changed = container(1, id=ONE.id, name="one", state={"exit_code": 5})
    with pytest.raises(OSError, match="disk full"):
        await store.save(changed)
    assert store.find("one") is changed


def test_a_reserved_name_is_taken(store: ContainerStore) -> None:
    store.reserve_name("one", ONE.id)
    store.reserve_name("one", ONE.id)
    with pytest.raises(Conflict, match=f'"/one" is already in use by container "{ONE.id}"'):
        store.reserve_name("one", TWO.id)
    store.release_name("one", TWO.id)
    with pytest.raises(Conflict):
        store.reserve_name("one", TWO.id)
    store.release_name("one", ONE.id)
    store.reserve_name("one", TWO.id)


def test_random_names_avoid_each_other(store: ContainerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "random_name", lambda: "calm_cook")
    assert store.reserve_random_name("a") == "calm_cook"
    assert store.reserve_random_name("b") == "calm_cook6"
    for number in range(7, 100):
        assert store.reserve_random_name("c") == f"calm_cook{number}"
    with pytest.raises(Conflict, match="no free container name"):
        store.reserve_random_name("d")


async def test_a_linked_container_is_found_by_its_alias(store: ContainerStore) -> None:
    await store.save(ONE)
    await store.save(container(3, id="e" * 64, name="app", host={"links": ("one:/db", "app/web:web")}))
    assert store.find("app/db") is ONE
    assert store.find("/app/db") is ONE
    for unknown in ("app/web", "nobody/db", "app/cache"):
        with pytest.raises(NotFound, match=f"^No such container: {unknown}$"):
            store.find(unknown)
