"""Paths by which a running container's namespace is entered."""

from __future__ import annotations

import os
from pathlib import Path

from engine.networks.handles import NamespaceHandles
from engine.networks.model import SandboxDocument


def sandbox(mode: str = "bridge") -> SandboxDocument:
    return SandboxDocument(sandbox_id="5a" * 32, container_id="c", name="web", mode=mode)


def test_a_path_leads_to_the_namespace_while_its_owner_runs(tmp_path: Path) -> None:
    handles = NamespaceHandles(tmp_path)
    handles.start_sync()
    handles.put_sync(sandbox().sandbox_id, os.getpid())
    path = Path(handles.path(sandbox()))
    assert path == tmp_path / "netns" / "5a5a5a5a5a5a"
    assert path.stat().st_ino == Path("/proc/self/ns/net").stat().st_ino
    handles.put_sync(sandbox().sandbox_id, 1)
    assert os.readlink(path) == "/proc/1/ns/net"
    handles.drop_sync(sandbox().sandbox_id)
    handles.drop_sync(sandbox().sandbox_id)
    assert not path.is_symlink()


def test_the_hosts_own_has_one_and_a_joined_one_none(tmp_path: Path) -> None:
    handles = NamespaceHandles(tmp_path)
    handles.start_sync()
    default = Path(handles.path(sandbox("host")))
    assert default == tmp_path / "netns" / "default"
    assert default.stat().st_ino == Path("/proc/self/ns/net").stat().st_ino
    assert handles.path(sandbox("container:x")) == ""


def test_what_an_earlier_daemon_left_is_swept_and_the_folder_goes_at_the_end(tmp_path: Path) -> None:
    handles = NamespaceHandles(tmp_path)
    handles.start_sync()
    handles.put_sync("6b" * 32, 2**22 + 5)
    handles.start_sync()
    assert [link.name for link in (tmp_path / "netns").iterdir()] == ["default"]
    handles.remove_sync()
    handles.remove_sync()
    assert list(tmp_path.iterdir()) == []
