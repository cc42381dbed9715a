"""Ceph's object gateway on one machine: a monitor, a store in memory, radosgw. For tests of the S3 driver against a
server that people really run; needs Debian's ceph-mon, ceph-osd, ceph-common and radosgw."""

from __future__ import annotations

import datetime
import hashlib
import hmac
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any

PROGRAMS = ("ceph-mon", "ceph-osd", "ceph", "monmaptool", "radosgw", "radosgw-admin")
_START_SECONDS = 50
# That an OSD tells its place and class at its start is turned off: one that does so before the monitor's map has come
# is refused ("wrong fsid") and ends.
KEY, SECRET = "berth-key", "berth-secret"
_CONFIGURATION = """
[global]
fsid = {fsid}
mon host = v1:127.0.0.1:{mon}/0
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd crush chooseleaf type = 0
osd crush update on start = false
osd class update on start = false
mon allow pool size one = true
osd objectstore = memstore
memstore device bytes = 2147483648
run dir = {folder}
admin socket = {folder}/$name.$pid.asok
log file = {folder}/$name.log
mon data = {folder}/mon
osd data = {folder}/osd
public addr = 127.0.0.1
"""


def is_installed() -> bool:
    """Whether all programs are there."""
    return all(map(shutil.which, PROGRAMS))


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class NotStarted(Exception):
    """What Ceph's own logs say of why it does not run on this host."""


class ObjectGateway:
    """Started by the constructor, ended by `stop`. Raises ``NotStarted``."""

    def __init__(self, folder: Path) -> None:
        self._config, self._folder = folder / "ceph.conf", folder
        self._processes: list[subprocess.Popen[bytes]] = []
        fsid, osd, port, mon = uuid.uuid4(), uuid.uuid4(), free_port(), free_port()
        self.endpoint = f"http://127.0.0.1:{port}"
        self._config.write_text(_CONFIGURATION.format(fsid=fsid, mon=mon, folder=folder))
        for name in ("mon", "osd"):
            (folder / name).mkdir()
        try:
            address = f"[v1:127.0.0.1:{mon}]"
            self._run("monmaptool", "--create", "--addv", "a", address, "--fsid", str(fsid), str(folder / "monmap"))
            self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", str(folder / "monmap"))
            self._begin("ceph-mon", "-i", "a", "-f")
            self._run("ceph", "--connect-timeout", "30", "osd", "new", str(osd))
            self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", str(osd))
            self._begin("ceph-osd", "-i", "0", "-f")
            self._run("ceph", "osd", "crush", "add", "osd.0", "1", "root=default", "host=here")
            self._begin("radosgw", "-n", "client.rgw", "-f", "--rgw-frontends", f"beast endpoint=127.0.0.1:{port}")
            self._wait()
            who = ("--uid", "berth", "--display-name", "berth", "--access-key", KEY, "--secret", SECRET)
            self._run("radosgw-admin", "-n", "client.rgw", "user", "create", *who)
        except BaseException:
            self.stop()
            raise

    def _run(self, program: str, *arguments: str) -> None:
        command = [program, "-c", str(self._config), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=90)
        assert done.returncode == 0, f"{command}: {done.stderr}"

    def _begin(self, program: str, *arguments: str) -> None:
        command = [program, "-c", str(self._config), *arguments]
        self._processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    def _wait(self) -> None:
        end = time.monotonic() + _START_SECONDS
        while True:
            try:
                urllib.request.urlopen(self.endpoint, timeout=5).close()
                return
            except OSError as error:
                ended = [process.args for process in self._processes if process.poll() is not None]
                if ended or time.monotonic() > end:
                    raise NotStarted(f"radosgw did not start; ended: {ended}\n{self._last_words()}") from error
            time.sleep(0.1)

    def _last_words(self) -> str:
        logs = sorted(self._folder.glob("*.log"))
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-2000:]}" for log in logs)

    def stop(self) -> None:
        """End everything; nothing of it is kept."""
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def make_bucket(endpoint: str, name: str, key: str, secret: str) -> None:
    """Create a bucket with a request signed as AWS wants it (version 4), which the driver itself never needs."""
    host = endpoint.partition("://")[2]
    moment = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    empty = hashlib.sha256(b"").hexdigest()
    headers = {"host": host, "x-amz-content-sha256": empty, "x-amz-date": moment}
    signed = ";".join(headers)
    lines = [f"{header}:{value}" for header, value in headers.items()]
    request = "\n".join(["PUT", f"/{name}", "", *lines, "", signed, empty])
    scope = f"{moment[:8]}/us-east-1/s3/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", moment, scope, hashlib.sha256(request.encode()).hexdigest()])
    step: Any = ("AWS4" + secret).encode()
    for part in (*scope.split("/"), text):
        step = hmac.new(step, part.encode(), hashlib.sha256).digest()
    credentials = f"AWS4-HMAC-SHA256 Credential={key}/{scope}, SignedHeaders={signed}, Signature={step.hex()}"
    url = f"{endpoint}/{name}"
    urllib.request.urlopen(
        urllib.request.Request(url, method="PUT", headers={**headers, "Authorization": credentials})
    ).close()
