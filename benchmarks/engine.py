"""berth against dockerd: starts, execs, lists, streams, images, memory. Alternating rounds, medians, ratios.

python -m benchmarks.engine [--rounds N] [--only NAME,...]        starts both, each with everything of its own
python -m benchmarks.engine --ours unix://… --theirs unix://…     takes two running engines (both with image busybox)
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks import memory, report, workloads
from benchmarks.report import Row
from cli.client import ApiError, Client
from tests.support.daemons import Berth, Dockerd, Engine, free_port

_LOG_LINES = 1_000_000
_ATTACH_BYTES = 256 << 20


@dataclass
class Side:
    """One engine under measurement."""

    name: str
    host: str
    engine: Engine | None = None
    registry: str = ""
    registry_folder: Path | None = None
    container: str = ""

    def __post_init__(self) -> None:
        self.client = Client(self.host)

    def docker(self, *arguments: str) -> None:
        done = subprocess.run(["docker", "-H", self.host, *arguments], capture_output=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{self.name}: docker {' '.join(arguments)}: {done.stderr.decode(errors='replace')}")


def _timed(act: Callable[[], object]) -> float:
    begun = time.perf_counter()
    act()
    return (time.perf_counter() - begun) * 1000


def run_cli(side: Side) -> float:
    return _timed(lambda: side.docker("run", "--rm", "busybox", "true"))


def run_lifecycle(side: Side) -> float:
    return _timed(lambda: workloads.lifecycle(side.client))


def run_parallel(side: Side, count: int = 10) -> float:
    def all_at_once() -> None:
        with ThreadPoolExecutor(10) as pool:
            list(pool.map(lambda _: workloads.lifecycle(side.client), range(count)))

    return _timed(all_at_once)


def run_thirty(side: Side) -> float:
    return run_parallel(side, 30)


def _exec_once(side: Side) -> None:
    body = {"Cmd": ["true"], "AttachStdout": True, "AttachStderr": True}
    session = side.client.json("POST", f"/containers/{side.container}/exec", body=body)["Id"]
    workloads.drain(side.client, f"/exec/{session}/start", body={})
    code = side.client.json("GET", f"/exec/{session}/json")["ExitCode"]
    if code != 0:
        raise RuntimeError(f"{side.name}: exec ended with {code}")


def run_exec(side: Side) -> float:
    return _timed(lambda: _exec_once(side))


def run_exec_cli(side: Side) -> float:
    return _timed(lambda: side.docker("exec", side.container, "true"))


def run_list(side: Side) -> float:
    def list_all() -> None:
        found = side.client.json("GET", "/containers/json", {"all": True})
        if len(found) < 200:
            raise RuntimeError(f"{side.name}: only {len(found)} containers listed")

    return _timed(list_all)


def run_attach(side: Side) -> float:
    line = "x" * 120
    command = ["sh", "-c", f"yes {line} | head -c {_ATTACH_BYTES}"]
    identifier = workloads.create(side.client, command, LogConfig={"Type": "none"})
    query = {"stream": True, "stdout": True, "stderr": True}
    with ThreadPoolExecutor(1) as pool:
        # Attached before the start, as `docker run` does.
        connection = side.client.take_over(f"/containers/{identifier}/attach", query)

        def read_all() -> int:
            total = len(connection.leftover)
            while piece := connection.sock.recv(1 << 20):
                total += len(piece)
            return total

        begun = time.perf_counter()
        reading = pool.submit(read_all)
        side.client.json("POST", f"/containers/{identifier}/start")
        total = reading.result()
        took = (time.perf_counter() - begun) * 1000
    connection.close()
    side.client.json("DELETE", f"/containers/{identifier}", {"force": True})
    if total < _ATTACH_BYTES:
        raise RuntimeError(f"{side.name}: {total} of {_ATTACH_BYTES} bytes arrived")
    return took


def _write_log(side: Side, lines: int) -> tuple[str, float]:
    identifier = workloads.create(side.client, ["seq", str(lines)])

    def run() -> None:
        side.client.json("POST", f"/containers/{identifier}/start")
        side.client.json("POST", f"/containers/{identifier}/wait")

    return identifier, _timed(run)


def run_log_write(side: Side) -> float:
    identifier, took = _write_log(side, _LOG_LINES)
    side.client.json("DELETE", f"/containers/{identifier}")
    return took


def run_log_read(side: Side) -> float:
    identifier, _ = _write_log(side, _LOG_LINES // 2)
    query = {"stdout": True, "stderr": True}
    total = 0

    def read_all() -> None:
        nonlocal total
        total = sum(len(piece) for piece in side.client.chunks("GET", f"/containers/{identifier}/logs", query))

    took = _timed(read_all)
    side.client.json("DELETE", f"/containers/{identifier}")
    if total < 3_000_000:
        raise RuntimeError(f"{side.name}: only {total} bytes of log")
    return took


def _forget_image(side: Side, *names: str) -> None:
    for name in names:
        try:
            side.client.json("DELETE", f"/images/{name}")
        except ApiError as error:
            if error.status != 404:
                raise


class Images:
    """Load, save, push and pull of the image of 4,000 files."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="berth-bench-", dir="/var/tmp"))
        self._archive = self._folder / "files.tar"
        workloads.make_archive(self._archive)

    def close(self) -> None:
        shutil.rmtree(self._folder)

    def load(self, side: Side) -> float:
        _forget_image(side, workloads.IMAGE)
        return _timed(lambda: side.docker("load", "-q", "-i", str(self._archive)))

    def save(self, side: Side) -> float:
        target = self._folder / f"{side.name}.tar"
        took = _timed(lambda: side.docker("save", "-o", str(target), workloads.IMAGE))
        target.unlink()
        return took

    def push(self, side: Side) -> float:
        # A fresh repository in an empty registry: the first push of an image, nothing to mount from elsewhere.
        if side.registry_folder is not None:
            shutil.rmtree(side.registry_folder / "docker", ignore_errors=True)
        name = f"{side.registry}/bench{time.time_ns()}:1"
        side.docker("tag", workloads.IMAGE, name)
        took = _timed(lambda: side.docker("push", "-q", name))
        _forget_image(side, name)
        return took

    def pull(self, side: Side) -> float:
        name = f"{side.registry}/bench:1"
        side.docker("tag", workloads.IMAGE, name)
        side.docker("push", "-q", name)
        _forget_image(side, name, workloads.IMAGE)
        took = _timed(lambda: side.docker("pull", "-q", name))
        side.docker("tag", name, workloads.IMAGE)
        _forget_image(side, name)
        return took


class Files:
    """The archive endpoints that cp uses, for 4,000 files into and out of a running container, and commit of them.

    Each round writes to a folder of its own: ext4 is slow to make files where many have just been deleted.
    """

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="berth-bench-", dir="/var/tmp"))
        self._tar = self._folder / "files.tar"
        workloads.make_tar(self._tar)
        self._rounds = 0

    def close(self) -> None:
        shutil.rmtree(self._folder)

    def put(self, side: Side) -> float:
        self._rounds += 1
        name = f"/in{self._rounds}"
        side.docker("exec", side.container, "mkdir", name)
        with self._tar.open("rb") as archive:
            return _timed(
                lambda: side.client.json("PUT", f"/containers/{side.container}/archive", {"path": name}, raw=archive)
            )

    def get(self, side: Side) -> float:
        def read_all() -> None:
            chunks = side.client.chunks("GET", f"/containers/{side.container}/archive", {"path": "/out"})
            if sum(len(chunk) for chunk in chunks) < 80_000_000:
                raise RuntimeError(f"{side.name}: not all of the files came")

        return _timed(read_all)

    def commit(self, side: Side) -> float:
        body = {"Image": "busybox"}
        query = {"container": side.container, "repo": "bench/committed", "tag": str(self._rounds)}
        return _timed(lambda: side.client.json("POST", "/commit", query, body=body))

    def prepare(self, side: Side) -> None:
        """The files that are copied out and committed."""
        side.docker("exec", side.container, "mkdir", "/out")
        with self._tar.open("rb") as archive:
            side.client.json("PUT", f"/containers/{side.container}/archive", {"path": "/out"}, raw=archive)


def slowest_ping(side: Side) -> float:
    """The 99th percentile of `GET /_ping`, while containers come and go and others write their logs without a pause."""
    command = [sys.executable, "-m", "benchmarks.pings", side.host.removeprefix("unix://")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as pinging:
        with ThreadPoolExecutor(3) as pool:
            for task in [pool.submit(work, side) for work in (run_thirty, run_log_write, run_attach)]:
                task.result()
        return float(pinging.communicate()[0])


Measure = Callable[[Side], float]


def measures(images: Images, files: Files) -> dict[str, tuple[str, float | None, Measure, int]]:
    """Key: what it is called in the table, the ratio wanted at most, the program, rounds relative to --rounds."""
    return {
        "run": ("`docker run --rm busybox true`", 0.45, run_cli, 3),
        "lifecycle": ("API create + start + wait + remove", 0.3, run_lifecycle, 3),
        "exec": ("API exec `true`", 0.65, run_exec, 3),
        "exec-cli": ("`docker exec c true`", 0.8, run_exec_cli, 3),
        "list": ("`GET /containers/json`, 200 containers", 1.0, run_list, 5),
        "parallel": ("10 lifecycles at once", None, run_parallel, 1),
        "thirty": ("30 lifecycles, 10 at a time", 0.3, run_thirty, 1),
        "attach": ("attach, 256 MiB", 0.7, run_attach, 1),
        "log-write": ("1,000,000 lines to json-file", 0.8, run_log_write, 1),
        "log-read": ("`logs` of 500,000 lines", 0.4, run_log_read, 1),
        "commit": ("commit of 4,000 files", 0.5, files.commit, 1),
        "cp-in": ("cp of 4,000 files in, over the API", 0.5, files.put, 1),
        "cp-out": ("cp of 4,000 files out, over the API", 0.5, files.get, 1),
        "ping": ("`GET /_ping` under load, 99th percentile", None, slowest_ping, 1),
        "load": ("load, 80 MB in 4,000 files", 1.0, images.load, 1),
        "save": ("save of the same", 1.0, images.save, 1),
        "push": ("push of the same", 1.0, images.push, 1),
        "pull": ("pull of the same", 1.0, images.pull, 1),
    }


def _prepare(side: Side) -> None:
    side.container = workloads.create(side.client, ["sleep", "100000"])
    side.client.json("POST", f"/containers/{side.container}/start")


def _fill(side: Side, count: int) -> list[str]:
    return [workloads.create(side.client, ["true"], name=f"fill{number}") for number in range(count)]


def _remove(side: Side, identifiers: list[str]) -> None:
    for identifier in identifiers:
        side.client.json("DELETE", f"/containers/{identifier}", {"force": True})


def measure(name: str, spec: tuple[str, float | None, Measure, int], sides: list[Side], rounds: int) -> Row:
    """Alternate between the engines, changing who begins; the first round of each warms up and is not counted."""
    title, bar, program, factor = spec
    row = Row(title, "ms", bar)
    filled = [(side, _fill(side, 200)) for side in sides] if name == "list" else []
    try:
        for number in range(rounds * factor + 1):
            for side in sides if number % 2 else reversed(sides):
                took = program(side)
                if number:
                    (row.ours if side is sides[0] else row.theirs).append(took)
    finally:
        for side, identifiers in filled:
            _remove(side, identifiers)
    return row


def measure_memory(sides: list[Side]) -> list[Row]:
    """Everything an engine runs, by itself and with 20 containers; freshly used, as after the measures before."""
    total = Row("memory with 20 running containers (PSS)", "MiB", 0.7)
    each = Row("memory that each container adds", "MiB", 0.35)
    for side in sides:
        if side.engine is None:
            continue
        side.client.json("DELETE", f"/containers/{side.container}", {"force": True})
        time.sleep(12)  # idle helpers end by themselves
        before = memory.pss_kib(memory.processes_of(side.engine.root, side.engine.pid)) / 1024
        running = [workloads.create(side.client, ["sleep", "100000"]) for _ in range(20)]
        for identifier in running:
            side.client.json("POST", f"/containers/{identifier}/start")
        time.sleep(12)
        after = memory.pss_kib(memory.processes_of(side.engine.root, side.engine.pid)) / 1024
        (total.ours if side is sides[0] else total.theirs).append(after)
        (each.ours if side is sides[0] else each.theirs).append((after - before) / 20)
        _remove(side, running)
    return [total, each]


def _start_registry(dockerd: Dockerd) -> tuple[subprocess.Popen[bytes], str]:
    """Debian's docker-registry beside dockerd, in the same network namespace."""
    port = free_port()
    config = dockerd.root / "registry.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {dockerd.root}/registry}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
    )
    command = ["nsenter", f"--net=/proc/{dockerd.pid}/ns/net", "docker-registry", "serve", str(config)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return process, f"localhost:{port}"


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", help="address of a running berth")
    parser.add_argument("--theirs", help="address of a running dockerd")
    parser.add_argument("--our-registry", default="localhost:5000")
    parser.add_argument("--their-registry", default="localhost:5000")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="names, separated by commas; 'memory' is one too")
    parser.add_argument("--no-write", action="store_true", help="print the table without changing results.md")
    return parser.parse_args(arguments)


def _measure_all(sides: list[Side], options: argparse.Namespace) -> list[Row]:
    images, files = Images(), Files()
    wanted = [name for name in options.only.split(",") if name]
    rows = []
    try:
        for side in sides:
            _prepare(side)
            side.docker("load", "-q", "-i", str(images._archive))
            files.prepare(side)
        for name, spec in measures(images, files).items():
            if wanted and name not in wanted:
                continue
            try:
                row = measure(name, spec, sides, options.rounds)
            except (RuntimeError, ApiError) as error:
                print(f"{name}: failed: {error}", file=sys.stderr, flush=True)
                continue
            rows.append(row)
            print(f"{row.name}: {row.ratio:.2f}", file=sys.stderr, flush=True)
        if not wanted or "memory" in wanted:
            rows += measure_memory(sides)
    finally:
        images.close()
        files.close()
    return rows


def main(arguments: list[str]) -> None:
    """Measure, print the table, and put it into results.md."""
    options = _parse(arguments)
    if options.ours and options.theirs:
        sides = [
            Side("berth", options.ours, registry=options.our_registry),
            Side("dockerd", options.theirs, registry=options.their_registry),
        ]
        rows = _measure_all(sides, options)
    else:
        rows = _with_peers(options)
    text = report.table(rows, "berth", "dockerd 20.10")
    print(text)
    if not options.no_write and not options.only:
        note = "Push and pull: berth to its embedded registry, dockerd to Debian's docker-registry beside it."
        report.write_section("Engine", f"{text}\n\n{note} {report.machine()}.")


def _with_peers(options: argparse.Namespace) -> list[Row]:
    berth, dockerd = Berth(), Dockerd()
    registry: subprocess.Popen[bytes] | None = None
    try:
        for engine in (berth, dockerd):
            engine.start()
            engine.make_busybox()
        registry, address = _start_registry(dockerd)
        ours = Side("berth", berth.host, berth, registry=f"localhost:{berth.registry.rpartition(':')[2]}")
        folder = dockerd.root / "registry"
        theirs = Side("dockerd", dockerd.host, dockerd, registry=address, registry_folder=folder)
        return _measure_all([ours, theirs], options)
    finally:
        if registry is not None:
            registry.terminate()
            registry.wait()
        for engine in (berth, dockerd):
            engine.stop()
            engine.remove()


if __name__ == "__main__":
    main(sys.argv[1:])
