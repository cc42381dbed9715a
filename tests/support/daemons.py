"""Real daemons as child processes: a berth and a dockerd, each with roots, socket and network of its own.

Nothing is shared with what else runs on the machine. dockerd gets a network and mount namespace of its own, because its
firewall rules and mounts are global otherwise (it sets the FORWARD policy to DROP); berth needs neither.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TypeVar

from tests.support.source_tree import PROJECT

_START_SECONDS = 40.0
_STOP_SECONDS = 40.0
BUSYBOX_CHANGES = ("-c", 'CMD ["sh"]', "-c", "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")


def free_port() -> int:
    """A TCP port on the loopback address that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def free_subnet() -> str:
    """The address of a bridge in a /16 that no route of this machine leads to; processes begin at different ones."""
    routes = Path("/proc/net/route").read_text(encoding="ascii")
    taken = {bytes.fromhex(line.split()[1])[::-1] for line in routes.splitlines()[1:]}
    for number in range(50):
        second = 200 + (os.getpid() + number) % 50
        if bytes([10, second, 0, 0]) not in taken:
            return f"10.{second}.0.1/16"
    raise RuntimeError("no free subnet in 10.200.0.0 to 10.249.255.255")


class Engine:
    """A daemon of either kind: where it is, and docker's command line pointed at it."""

    name = "engine"

    def __init__(self, root: Path | None = None) -> None:
        # On disk, under a short path: overlay needs a real file system, unix sockets at most 107 bytes.
        self.root = root or Path(tempfile.mkdtemp(prefix=f"{self.name}-test-", dir="/var/tmp"))
        self.socket = self.root / "d.sock"
        self.log = self.root / "log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        return f"unix://{self.socket}"

    @property
    def pid(self) -> int:
        assert self.process is not None, "not running"
        return self.process.pid

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return {**os.environ, "DOCKER_CONFIG": str(self.root / "docker-config")}

    def start(self) -> None:
        """Start the process and wait until it answers. RuntimeError with its last words when it does not."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment(),
                cwd=PROJECT,
                start_new_session=True,
            )
        end = time.monotonic() + _START_SECONDS
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.name} ended with {self.process.returncode}:\n{self.last_words()}")
            if self.answers():
                return
            time.sleep(0.05)
        raise RuntimeError(f"{self.name} does not answer:\n{self.last_words()}")

    def answers(self) -> bool:
        """Whether `/_ping` says OK."""
        with socket.socket(socket.AF_UNIX) as connection, contextlib.suppress(OSError):
            connection.settimeout(2)
            connection.connect(str(self.socket))
            connection.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return b" 200 " in connection.recv(4096).split(b"\r\n")[0]
        return False

    def last_words(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def kill(self) -> None:
        """SIGKILL the daemon alone; what it started goes on."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Stop the daemon as an administrator would, by SIGTERM."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise RuntimeError(f"{self.name} did not end within {_STOP_SECONDS} s:\n{self.last_words()}") from None

    def remove(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    def docker(
        self,
        *arguments: str,
        check: bool = False,
        stdin: bytes | IO[bytes] | None = None,
        env: Mapping[str, str] | None = None,
        seconds: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run the real docker command line against this engine; output as text."""
        given: dict[str, object] = (
            {"input": stdin} if isinstance(stdin, bytes) else {"stdin": stdin or subprocess.DEVNULL}
        )
        done = subprocess.run(
            ["docker", "-H", self.host, *arguments],
            capture_output=True,
            timeout=seconds,
            check=False,
            env={**self.environment(), **(env or {})},
            **given,  # type: ignore[call-overload]
        )
        text = subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        )
        if check and done.returncode:
            raise AssertionError(
                f"docker {' '.join(arguments)} ended with {done.returncode}:\n{text.stdout}{text.stderr}"
            )
        return text

    def make_busybox(self, name: str = "busybox") -> None:
        """Import the static busybox as an image."""
        archive = subprocess.run([str(PROJECT / "deploy" / "busybox-rootfs")], capture_output=True, check=True).stdout
        self.docker("import", *BUSYBOX_CHANGES, "-", name, check=True, stdin=archive)


E = TypeVar("E", bound=Engine)


@contextlib.contextmanager
def running(engine: E) -> Iterator[E]:
    """The engine, started, with the image busybox; in the end it is stopped and removed."""
    try:
        engine.start()
        engine.make_busybox()
        yield engine
    finally:
        engine.stop()
        engine.remove()


class Berth(Engine):
    """`berth serve` from this source tree."""

    name = "berth"

    def __init__(self, root: Path | None = None, options: Sequence[str] = (), registry: bool = True) -> None:
        super().__init__(root)
        self.options = tuple(options)
        self.bridge = f"bt{os.getpid() % 100000}{self.root.name[-4:].lower()}"[:15]
        self.bip = free_subnet()
        self.registry = f"127.0.0.1:{free_port()}" if registry else "none"

    @property
    def data_root(self) -> Path:
        return self.root / "data"

    @property
    def exec_root(self) -> Path:
        return self.root / "run"

    def command(self) -> list[str]:
        config = self.root / "daemon.json"
        if not config.exists():
            config.write_text("{}")
        return [
            *(sys.executable, "-m", "cli", "serve", "--config-file", str(config)),
            *("-H", self.host, "--data-root", str(self.data_root), "--exec-root", str(self.exec_root)),
            *("--pidfile", str(self.root / "pid"), "--bridge", self.bridge, "--bip", self.bip),
            *("--registry-addr", self.registry, *self.options),
        ]

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "PYTHONPATH": str(PROJECT), "PYTHONDONTWRITEBYTECODE": "1"}

    def client(self, *arguments: str, stdin: bytes = b"", seconds: float = 60) -> subprocess.CompletedProcess[bytes]:
        """Run berth's own command line against this daemon."""
        command = [sys.executable, "-m", "cli", "-H", self.host, *arguments]
        return subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            timeout=seconds,
            check=False,
            env=self.environment(),
            cwd=PROJECT,
        )

    def remove_containers(self) -> None:
        """Remove every container, so that nothing of them outlives a stopped daemon."""
        identifiers = self.docker("ps", "-aq").stdout.split()
        if identifiers:
            self.docker("rm", "-f", "-v", *identifiers)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.remove_containers()
        super().stop()


class Dockerd(Engine):
    """Debian's dockerd in a network and mount namespace of its own.

    Everything is at its defaults. Without `relays` published ports are kernel rules alone, as berth's are: with its
    relay process for each port dockerd also answers on `[::]` for containers that have no IPv6 address, and says so.
    """

    name = "dockerd"

    def __init__(self, root: Path | None = None, *, relays: bool = True) -> None:
        super().__init__(root)
        self._relays = relays

    def command(self) -> list[str]:
        # The script becomes dockerd, so that signals reach it and its namespaces end with it.
        script = 'ip link set lo up; exec "$@"'
        return [
            *("unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", script, "sh"),
            *(
                "dockerd",
                "-H",
                self.host,
                "--data-root",
                str(self.root / "data"),
                "--exec-root",
                str(self.root / "run"),
            ),
            *("--pidfile", str(self.root / "pid"), "--config-file", str(self._config())),
        ]

    def _config(self) -> Path:
        path = self.root / "daemon.json"
        path.write_text("{}" if self._relays else '{"userland-proxy": false}')
        return path

    def environment(self) -> dict[str, str]:
        return {key: value for key, value in super().environment().items() if key != "DOCKER_HOST"}
