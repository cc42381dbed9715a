"""userns-remap: containers whose root is nobody on the host. Who owns what, and what that means on disk.

**Ids.** With ``userns-remap`` each container runs in a user namespace of its own, made together with its network
namespace (``kernel/idmap.py``), unless it says ``--userns=host``; one that joins another's network or pid or IPC
namespace joins the user namespace too. Container ids count up from 0 through the user's ranges in /etc/subuid.

**On disk** everything below the data root has the ids that containers see: 0 is container root, mapped or not. Layers,
snapshots, volumes and name files are the same for both kinds of container, so images are unpacked once, nothing is
ever chowned, and the setting may be turned on and off: a container has at its next start what the daemon says then.
What reads snapshots on disk (diff, commit, export, cp, sizes) need not know of it.

**Shown** to a mapped container is the *mapped view*: the data root once more, bound below the run folder in the shim's
mount namespace, with the ids mapped by the kernel. Overlays take their folders from it, volumes and name files are
bound from it. What is mounted below the data root (a volume of NFS or tmpfs) is not in it and keeps its ids, as do
folders of the host (``-v /srv:/srv``): a file that container root makes there belongs to the subordinate uid.

**After a crash** nothing of it is left: the view is a mount of the shim's, the namespaces live by the container's
processes alone. A container that runs on while the setting changes keeps its ids to its end; workers that look into it
enter the user namespace that it is in. A stopped one's folders of the host they see with the ids turned round.

**Other users of the host** cannot run what container root has marked setuid, although it is root's on disk: with the
setting on, the folder of volumes is closed to them, as those of layers and snapshots always are.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from engine.containers.host import HostFacts
from engine.containers.rootview import OciMount, mount_of
from engine.containers.settings import HostConfig
from engine.kernel.idmap import IdMap
from engine.kernel.mount import MountStep

_PRIVILEGED = (
    "privileged mode is incompatible with user namespaces.  You must run the container in the host namespace when "
    "running privileged mode"
)
_NETWORK = "cannot share the host's network namespace when user namespaces are enabled"
_PID = "cannot share the host PID namespace when user namespaces are enabled"
_IPC = "cannot share the host IPC namespace when user namespaces are enabled"


def ids_of(host: HostConfig, facts: HostFacts) -> IdMap | None:
    """The ids of a container with these settings; None where they are the host's."""
    return None if host.userns_mode == "host" else facts.ids


def check_remapped(host: HostConfig, facts: HostFacts) -> None:
    """What a mapped container cannot have. Raises ``ValueError`` with dockerd's sentence."""
    if ids_of(host, facts) is None:
        return
    for asked, words in (
        (host.privileged, _PRIVILEGED),
        (host.network_mode == "host", _NETWORK),
        (host.pid_mode == "host", _PID),
        (host.ipc_mode == "host", _IPC),
    ):
        if asked:
            raise ValueError(words)


class MappedView:
    """The data root as one mapped container sees it."""

    def __init__(self, data_root: Path, run_dir: Path, namespace: str) -> None:
        """``namespace`` is the path of the container's user namespace."""
        self._root = str(data_root)
        self._view = str(run_dir / "mapped")
        self._namespace = namespace

    def steps(self, steps: Iterable[MountStep]) -> tuple[MountStep, ...]:
        """The view itself, then the steps with all that they take from the data root taken from there."""
        view = MountStep(self._root, self._view, "", ("bind",), mapping=self._namespace)
        return (view, *(self._step(step) for step in steps))

    def _step(self, step: MountStep) -> MountStep:
        options = []
        for option in step.options:
            key, equals, value = option.partition("=")
            options.append(f"{key}={self._shown(value)}" if equals and key in ("upperdir", "workdir") else option)
        is_written = any(option.startswith("upperdir=") for option in options)
        return replace(
            step,
            source=self._shown(step.source),
            options=tuple(options),
            cwd=self._shown(step.cwd) if step.cwd else step.cwd,
            mapping=self._namespace if is_written else "",
        )

    def mounts(self, mounts: Sequence[OciMount], mountinfo: str) -> list[OciMount]:
        """Binds of the daemon's own files, from the view; what is mounted among these has the host's ids."""
        return [
            {**mount, "source": self._shown(mount["source"])}
            if mount["type"] == "bind" and has_inner_ids(mount["source"], self._root, mountinfo)
            else mount
            for mount in mounts
        ]

    def _shown(self, path: str) -> str:
        rest = _inside(path, self._root)
        return path if rest is None else self._view + rest


def has_inner_ids(path: str, data_root: str, mountinfo: str) -> bool:
    """Whether files there have the ids that containers see: they are the daemon's, and nothing is mounted there."""
    rest, place = _inside(path, data_root), os.path.realpath(data_root)
    return rest is not None and mount_of(place + rest, mountinfo)[0] == mount_of(place, mountinfo)[0]


def _inside(path: str, data_root: str) -> str | None:
    """What follows the data root in a path, which may name it through a link or not; None for a path elsewhere."""
    for root in (data_root, os.path.realpath(data_root)):
        if path == root or path.startswith(f"{root}/"):
            return path[len(root) :]
    return None
