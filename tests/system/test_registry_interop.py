"""One folder, two servers: what docker-registry pushed berth serves, and the other way round; skopeo drives both."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not shutil.which("docker-registry"), reason="needs Debian's docker-registry"),
    pytest.mark.skipif(not shutil.which("skopeo"), reason="needs skopeo"),
]

PROJECT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(command: list[str], port: int) -> Iterator[str]:
    process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)
        if process.stderr:
            process.stderr.close()


def config(tmp_path: Path, port: int) -> str:
    path = tmp_path / f"{port}.yml"
    path.write_text(
        f"version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n"
        f"storage: {{filesystem: {{rootdirectory: {tmp_path}/root}}, delete: {{enabled: true}}}}\n"
    )
    return str(path)


@contextmanager
def berth(tmp_path: Path) -> Iterator[str]:
    port = free_port()
    with running([sys.executable, "-m", "cli", "registry", "serve", config(tmp_path, port)], port) as address:
        yield address


@contextmanager
def registry2(tmp_path: Path) -> Iterator[str]:
    port = free_port()
    with running(["docker-registry", "serve", config(tmp_path, port)], port) as address:
        yield address


@pytest.fixture
def image(tmp_path: Path) -> str:
    """A small OCI layout made by hand."""
    layout = tmp_path / "layout"
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes, media_type: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    layer = put(b"\0" * 10240, "application/vnd.oci.image.layer.v1.tar")
    rootfs = {"type": "layers", "diff_ids": [layer["digest"]]}
    document = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": rootfs}).encode()
    settings = put(document, "application/vnd.oci.image.config.v1+json")
    manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json"}
    entry = put(json.dumps({**manifest, "config": settings, "layers": [layer]}).encode(), manifest["mediaType"])
    entry["annotations"] = {"org.opencontainers.image.ref.name": "x"}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return f"oci:{layout}:x"


def skopeo(*arguments: str) -> str:
    command = ["skopeo", "--insecure-policy", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def push(image: str, target: str, *options: str) -> None:
    skopeo("copy", "-q", "--dest-tls-verify=false", *options, image, f"docker://{target}")


def digest_of(name: str) -> str:
    return str(json.loads(skopeo("inspect", "--tls-verify=false", f"docker://{name}"))["Digest"])


def test_each_serves_what_the_other_stored(tmp_path: Path, image: str) -> None:
    with berth(tmp_path) as ours, registry2(tmp_path) as theirs:
        push(image, f"{theirs}/from/them:v1")
        push(image, f"{ours}/from/us:v1")
        push(image, f"{ours}/from/us:docker", "--format", "v2s2")
        for name in ("from/them:v1", "from/us:v1", "from/us:docker"):
            assert digest_of(f"{ours}/{name}") == digest_of(f"{theirs}/{name}")
            target = tmp_path / "copy" / name.replace(":", "-").replace("/", "-")
            target.mkdir(parents=True)
            skopeo("copy", "-q", "--src-tls-verify=false", f"docker://{ours}/{name}", f"dir:{target}")
        for address in (ours, theirs):
            with urllib.request.urlopen(f"http://{address}/v2/_catalog") as answer:
                assert json.load(answer)["repositories"] == ["from/them", "from/us"]
        # A tag that is moved by one is seen moved by the other at once.
        push(image, f"{theirs}/from/us:v1", "--format", "v2s2")
        assert digest_of(f"{ours}/from/us:v1") == digest_of(f"{theirs}/from/us:docker")
        skopeo("delete", "--tls-verify=false", f"docker://{ours}/from/them:v1")
        with pytest.raises(AssertionError, match="manifest unknown"):
            digest_of(f"{theirs}/from/them:v1")


def test_their_collector_keeps_our_images_and_ours_keeps_theirs(tmp_path: Path, image: str) -> None:
    with berth(tmp_path) as ours, registry2(tmp_path) as theirs:
        push(image, f"{ours}/a:v1")
        push(image, f"{theirs}/b:v1", "--format", "v2s2")
    configuration = config(tmp_path, 1)
    subprocess.run(["docker-registry", "garbage-collect", configuration], check=True, capture_output=True)
    command = [sys.executable, "-m", "cli", "registry"]
    ours_gc = [*command, "gc", "-m", "--grace", "0", "-c", configuration]
    subprocess.run(ours_gc, check=True, capture_output=True, cwd=PROJECT)
    subprocess.run([*command, "verify", "-c", configuration], check=True, capture_output=True, cwd=PROJECT)
    with registry2(tmp_path) as theirs:
        assert digest_of(f"{theirs}/a:v1") and digest_of(f"{theirs}/b:v1")


def test_skopeo_logs_in_and_its_credentials_are_checked(tmp_path: Path, image: str) -> None:
    root, port = tmp_path / "own", free_port()
    command = [sys.executable, "-m", "cli", "registry"]
    add = [*command, "user", "add", "ann", "--password-stdin", "--cost", "4", "--root", str(root)]
    subprocess.run(add, input=b"secret\n", check=True, cwd=PROJECT, capture_output=True)
    with running([*command, "serve", "--root", str(root), "--addr", f"127.0.0.1:{port}"], port) as address:
        push(image, f"{address}/app:v1", "--dest-creds", "ann:secret")
        with pytest.raises(AssertionError, match="unauthorized|authentication required"):
            push(image, f"{address}/app:v2", "--dest-creds", "ann:wrong")
        authority = subprocess.run(
            [*command, "ca", "--root", str(root)], check=True, cwd=PROJECT, capture_output=True
        ).stdout
        certificates = tmp_path / "certs"
        certificates.mkdir()
        (certificates / "ca.crt").write_bytes(authority)
        trusted = ["--cert-dir", str(certificates), "--creds", "ann:secret"]
        assert "Digest" in skopeo("inspect", *trusted, f"docker://localhost:{port}/app:v1")
