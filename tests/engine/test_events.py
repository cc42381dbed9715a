"""The event stream: documents, filters, history, subscriptions."""

from __future__ import annotations

import asyncio
import json

import pytest

from engine import events as module
from engine.events import FILTERS, Event, EventBus, matches
from engine.filters import Filters

NO_FILTERS = Filters()


def filters(**wanted: list[str]) -> Filters:
    return Filters.parse(json.dumps(wanted), FILTERS)


def container_event(action: str = "start", **attributes: str) -> Event:
    return Event(
        "container", action, "c" * 64, {"name": "web", "image": "busybox:1", **attributes}, time_ns=1_500_000_000
    )


def test_container_documents_carry_the_legacy_fields() -> None:
    document = container_event().document()
    assert (document["status"], document["id"], document["from"]) == ("start", "c" * 64, "busybox:1")
    assert (document["time"], document["timeNano"], document["scope"]) == (1, 1_500_000_000, "local")
    assert document["Actor"] == {"ID": "c" * 64, "Attributes": {"name": "web", "image": "busybox:1"}}


def test_other_documents_do_not() -> None:
    assert "status" not in Event("network", "create", "n1").document()
    image = Event("image", "pull", "busybox", {"image": "x"}).document()
    assert image["status"] == "pull"
    assert "from" not in image
    assert "from" not in Event("container", "start", "c").document()


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"event": ["start", "stop"]},
        {"type": ["container"]},
        {"scope": ["local"]},
        {"container": ["web"]},
        {"container": ["/web"]},
        {"container": ["we"]},
        {"container": ["ccc"]},
        {"image": ["busybox"]},
        {"image": ["busybox:1"]},
        {"label": ["tier=db"]},
        {"label": ["tier"]},
        {"type": ["network", "container"], "event": ["start"]},
    ],
)
def test_filters_that_let_a_start_through(wanted: dict[str, list[str]]) -> None:
    assert matches(container_event(tier="db"), filters(**wanted))


@pytest.mark.parametrize(
    "wanted",
    [
        {"event": ["stop"]},
        {"type": ["network"]},
        {"scope": ["swarm"]},
        {"container": ["db"]},
        {"network": ["web"]},
        {"image": ["alpine"]},
        {"label": ["tier=web"]},
        {"event": ["start"], "container": ["db"]},
    ],
)
def test_filters_that_do_not(wanted: dict[str, list[str]]) -> None:
    assert not matches(container_event(tier="db"), filters(**wanted))


def test_actions_with_words_are_found_by_their_first() -> None:
    exec_start = container_event("exec_start: sh -c x")
    assert matches(exec_start, filters(event=["exec_start"]))
    assert matches(exec_start, filters(event=["exec_start: sh -c x"]))
    assert not matches(exec_start, filters(event=["exec_create"]))
    assert matches(container_event("health_status: healthy"), filters(event=["health_status: healthy"]))


def test_images_are_found_by_name_with_and_without_tag() -> None:
    pulled = Event("image", "pull", "busybox:1", {"name": "busybox"})
    assert matches(pulled, filters(image=["busybox:1"]))
    assert matches(pulled, filters(image=["busybox"]))
    assert not matches(pulled, filters(image=["alpine"]))
    assert not matches(pulled, filters(container=["busybox"]))


def test_a_networks_events_are_not_its_containers() -> None:
    joined = Event("network", "connect", "n1", {"name": "front", "container": "cc11"})
    assert not matches(joined, filters(container=["cc"]))
    assert matches(joined, filters(network=["front"]))
    assert matches(joined, filters(network=["n1"]))


def test_history_is_bounded_ordered_and_cut_by_time() -> None:
    bus = EventBus()
    published = [bus.publish("volume", "create", f"v{number}") for number in range(module.HISTORY + 3)]
    times = [event.time_ns for event in published]
    assert times == sorted(set(times))
    assert bus.past(NO_FILTERS, 0) == published[3:]
    assert bus.past(NO_FILTERS, times[10], times[12]) == published[10:13]
    assert bus.past(filters(volume=["v1024"]), 0) == [published[1024]]


def test_attributes_are_copied_when_published() -> None:
    attributes = {"name": "web"}
    event = EventBus().publish("container", "start", "c1", attributes)
    attributes["name"] = "changed"
    assert event.attributes == {"name": "web"}


async def test_a_subscription_sees_what_matches_from_now_on() -> None:
    bus = EventBus()
    bus.publish("container", "create", "before")
    with bus.subscribe(filters(type=["container"])) as subscription:
        assert bus.listeners == 1
        waiting = asyncio.ensure_future(subscription.next())
        await asyncio.sleep(0)
        bus.publish("volume", "create", "v1")
        bus.publish("container", "start", "c1")
        bus.publish("container", "die", "c1")
        assert (await waiting).action == "start"
        async for event in subscription:
            assert event.action == "die"
            break
    assert bus.listeners == 0
    bus.publish("container", "destroy", "c1")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(subscription.next(), 0.001)


async def test_who_does_not_read_loses_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKLOG", 2)
    bus = EventBus()
    with bus.subscribe(NO_FILTERS) as subscription:
        for number in range(5):
            bus.publish("volume", "create", f"v{number}")
        assert [(await subscription.next()).actor_id for _ in range(2)] == ["v3", "v4"]
