"""Every event of a container says what it is."""

from __future__ import annotations

from pathlib import Path

from tests.support.containers import container
from tests.support.runs import Bench

BOX = container(config={"labels": {"tier": "db"}}, name="box")


async def test_saving_is_for_the_store(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    await bench.records.save(BOX, durable=True)
    assert bench.store.find("box") is BOX
    assert bench.journal.durable == [True]


async def test_events_have_labels_image_name_and_more(tmp_path: Path) -> None:
    bench = Bench(tmp_path, BOX)
    bench.records.event(BOX, "kill", {"signal": "9"})
    assert bench.actions() == ["kill"]
    assert bench.attributes("kill") == {"tier": "db", "image": "busybox", "name": "box", "signal": "9"}
