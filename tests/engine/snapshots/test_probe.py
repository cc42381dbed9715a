"""What dockerd's storage-opts mean: a size for every container that names none."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.kernel import quota
from engine.snapshots.overlay import OverlaySnapshotter
from engine.snapshots.probe import default_size_limit


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ((), None),
        (("overlay2.override_kernel_check=true",), None),
        (("overlay2.size=10G",), "10G"),
        (("Overlay2.Size = 1.5g", "overlay2.override_kernel_check=1"), "1.5g"),
    ],
)
def test_options(options: tuple[str, ...], limit: str | None) -> None:
    assert default_size_limit("overlay2", options) == limit


@pytest.mark.parametrize(
    ("driver", "option", "words"),
    [
        ("overlay2", "overlay2.size", "Unable to parse key/value option: overlay2.size"),
        ("overlay2", "overlay2.size=x", "invalid size: 'x'"),
        ("overlay2", "size=1G", "overlay2: unknown option size"),
        ("overlay2", "dm.basesize=1G", "overlay2: unknown option dm.basesize"),
        ("vfs", "overlay2.size=1G", "vfs: unknown option overlay2.size"),
    ],
)
def test_refusals(driver: str, option: str, words: str) -> None:
    with pytest.raises(ValueError) as failure:
        default_size_limit(driver, [option])
    assert str(failure.value) == words


async def test_a_container_that_names_no_size_gets_the_daemons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[tuple[str, int]] = []
    limited = SimpleNamespace(limit_sync=lambda folder, size: limits.append((folder.name, size)))
    monkeypatch.setattr(quota, "probe_sync", lambda _root, _kind: limited)
    (tmp_path / "links" / "init").mkdir(parents=True)

    async def init_layer(_layers: object) -> str:
        return "init"

    layers: Any = SimpleNamespace(links=tmp_path / "links", init_layer=init_layer)
    nobody: Any = None
    snapshots = OverlaySnapshotter(tmp_path, layers, nobody, nobody)
    await snapshots.start()
    await snapshots.prepare("free", ())
    snapshots.default_size_limit = "1G"
    await snapshots.prepare("usual", ())
    await snapshots.prepare("own", (), "2M")
    assert limits == [("usual.new", 1 << 30), ("own.new", 2 << 20)]
