"""What is measured with: an image of 4,000 files, and requests spelled once for every engine."""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

from cli.client import Client

IMAGE = "bench/files:1"
_FILES = 4000
_FILE_BYTES = 20_000


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = len(data), 1_700_000_000, 0o644
    archive.addfile(info, io.BytesIO(data))


def _layer() -> bytes:
    """About 80 MB in 4,000 files, half of it compressible, the same on every call."""
    source = random.Random(1)
    words = [source.randbytes(6).hex().encode() for _ in range(500)]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for number in range(_FILES):
            if number % 100 == 0:
                folder = tarfile.TarInfo(f"data/{number // 100:02d}")
                folder.type, folder.mode, folder.mtime = tarfile.DIRTYPE, 0o755, 1_700_000_000
                archive.addfile(folder)
            text = b" ".join(source.choices(words, k=_FILE_BYTES // 26))
            noise = source.randbytes(_FILE_BYTES - len(text))
            _add(archive, f"data/{number // 100:02d}/{number:04d}", text + noise)
    return out.getvalue()


def make_tar(path: Path) -> None:
    """The same files as a plain archive."""
    path.write_bytes(_layer())


def make_archive(path: Path) -> None:
    """Write a `docker load` archive with one layer of 4,000 files."""
    layer = _layer()
    diff_id = "sha256:" + hashlib.sha256(layer).hexdigest()
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["/none"]},
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
            "history": [{"created": "2024-01-01T00:00:00Z", "created_by": "benchmark"}],
            "created": "2024-01-01T00:00:00Z",
        }
    ).encode()
    name = hashlib.sha256(config).hexdigest()
    manifest = [{"Config": f"{name}.json", "RepoTags": [IMAGE], "Layers": ["layer/layer.tar"]}]
    with tarfile.open(path, "w") as archive:
        _add(archive, f"{name}.json", config)
        _add(archive, "layer/layer.tar", layer)
        _add(archive, "manifest.json", json.dumps(manifest).encode())


def container(command: list[str], **host_config: Any) -> dict[str, Any]:
    """The body of a create request for busybox."""
    return {"Image": "busybox", "Cmd": command, "HostConfig": host_config}


def create(client: Client, command: list[str], name: str | None = None, **host_config: Any) -> str:
    """Create a container and return its id."""
    document = client.json("POST", "/containers/create", {"name": name}, body=container(command, **host_config))
    return str(document["Id"])


def lifecycle(client: Client) -> None:
    """create, start, wait, remove."""
    identifier = create(client, ["true"])
    client.json("POST", f"/containers/{identifier}/start")
    client.json("POST", f"/containers/{identifier}/wait")
    client.json("DELETE", f"/containers/{identifier}")


def drain(client: Client, path: str, query: dict[str, Any] | None = None, body: Any = None) -> int:
    """Take a connection over and read it to its end; the number of bytes."""
    connection = client.take_over(path, query, body=body)
    total = len(connection.leftover)
    while piece := connection.sock.recv(1 << 20):
        total += len(piece)
    connection.close()
    return total
