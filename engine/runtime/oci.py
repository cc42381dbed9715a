"""The OCI runtime programs: which there are, which works here, and the few things the daemon itself asks of them.

Starting containers and execs is the shim's work (`engine/shim/invoke.py`); this is the only file of the daemon that
runs runc or crun. It also turns their different words for one failure into the ones docker's clients look for.
"""

import asyncio
import contextlib
import errno
import json
import os
import re
import resource
import shlex
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from engine.runtime import systemd
from engine.runtime.cgroups import Cgroups
from engine.tasks import run_blocking

PROGRAM_SECONDS = 30.0
PREFERENCE = ("crun", "runc")
SYSTEMD = "--systemd-cgroup"
SHIM_V2 = "io.containerd.runc.v2"
CRUNS_UNIFIED = "/sys/fs/cgroup/unified"  # the one place where crun looks for v2 beside v1
LIMITING_CONTROLLERS = frozenset(("cpu", "cpuset", "io", "memory", "pids"))


@dataclass(frozen=True, slots=True)
class Runtime:
    """One usable runtime. `args` come before every subcommand; `root` is where it keeps its state. `program` is what
    it says it is, which tells what it can: a script that ends in crun is crun, whatever its name.

    `covered` are files that must read as empty where it runs, each covered in a mount namespace that only the runtime
    and its shim see (see `uncounted_controllers_sync`).
    """

    name: str
    path: str
    args: tuple[str, ...]
    root: str
    version: str = ""
    commit: str = ""
    covered: tuple[str, ...] = ()
    program: str = ""


def offers_recursive_read_only(runtime: Runtime) -> bool:
    """Whether the mount option `rro` is understood: by runc since 1.1, by crun (which says so since) 1.9."""
    return _is_since(runtime, {"runc": (1, 1), "crun": (1, 9)})


def guards_proc(runtime: Runtime) -> bool:
    """Whether it refuses by itself to put anything in the place of /proc or into it."""
    return runtime.program == "runc"


class ExecGroups(StrEnum):
    """How an exec gets a control group of its own."""

    NO = ""
    ASKED = "asked"  # `exec --cgroup`
    COVERED = "covered"  # the runtime joins the container's group, whose list of processes is covered by the leaf's


def exec_groups(runtime: Runtime, cgroup_version: int) -> ExecGroups:
    """runc can be asked since 1.1, crun only ever joins the container's. Others are not asked.

    Nor is anybody on v2: there a process looks for its limits in its own group, and a group below the container's has
    none to show.
    """
    if cgroup_version == 2:
        return ExecGroups.NO
    if runtime.program == "crun":
        return ExecGroups.COVERED
    return ExecGroups.ASKED if _is_since(runtime, {"runc": (1, 1)}) else ExecGroups.NO


def _is_since(runtime: Runtime, versions: Mapping[str, tuple[int, int]]) -> bool:
    """Whether it is one of these programs, in this version or a later one."""
    since = versions.get(runtime.program)
    version = re.match(r"(\d+)\.(\d+)", runtime.version)
    return since is not None and version is not None and (int(version[1]), int(version[2])) >= since


def leaves_only_groups(runtime: Runtime) -> bool:
    """Whether an ended container leaves only control groups and a flat folder, which can go without the runtime."""
    return runtime.program in PREFERENCE and SYSTEMD not in runtime.args


def leaves_systemd_untold(runtime: Runtime) -> bool:
    """Whether it limits a unit of systemd's without telling systemd, which runc does (`engine/runtime/systemd.py`)."""
    return runtime.program == "crun" and SYSTEMD in runtime.args


def runtime_annotations(runtime: Runtime, resources: Mapping[str, Any]) -> dict[str, str]:
    """What the specification of a container with these limits has to say to this runtime.

    crun puts a container into a group below its systemd scope, and limits and counts only there; what berth reads and
    writes, and where execs get groups of their own, is the scope, as with runc.
    """
    if not leaves_systemd_untold(runtime):
        return {}
    return {"run.oci.systemd.subgroup": "", **systemd.limit_annotations(resources)}


async def tell_processors(runtime: Runtime, resources: Mapping[str, Any], cgroup_path: str) -> None:
    """Tell systemd which processors and memory nodes a container that has just started may use, if it has to be told.

    Raises OSError or TimeoutError.
    """
    words = systemd.processor_assignments(resources) if leaves_systemd_untold(runtime) else []
    if words:
        await _tell_systemd(cgroup_path, words)


async def _tell_systemd(cgroup_path: str, words: list[str]) -> None:
    code, _output, errors = await run_program(systemd.set_property_command(cgroup_path, words))
    if code != 0:
        raise OSError(errors.strip() or f"systemctl set-property ended with code {code}")


class RuntimeFailure(Exception):
    """A process could not be started. `exit_hint` is what dockerd makes of it: 127, 126, or 128 for anything else."""

    def __init__(self, message: str, exit_hint: int) -> None:
        super().__init__(message)
        self.message = message
        self.exit_hint = exit_hint

    @classmethod
    def of_create(cls, words: str, program: str) -> "RuntimeFailure":
        text = normalise(words, program)
        step = "" if text.startswith(_NOT_STARTED) else "runc create failed: "
        message = f"failed to create shim task: OCI runtime create failed: {step}{text}: unknown"
        if "not a directory" in text:
            message += (
                ": Are you trying to mount a directory onto a file (or vice-versa)? "
                "Check if the specified host path exists and is the expected type"
            )
        return cls(message, 127 if "not a directory" in text else exit_hint(text, program))

    @classmethod
    def of_exec(cls, words: str, program: str) -> "RuntimeFailure":
        text = normalise(words, program)
        return cls(f"OCI runtime exec failed: exec failed: {text}: unknown", exit_hint(text, program))


_NOT_STARTED = "fork/exec "  # the shim says so of a runtime that is missing
_LOGGED = re.compile(r'^time="[^"]*" level=\w+ msg="((?:[^"\\]|\\.)*)"', re.MULTILINE)
_PREFIX = re.compile(r"^(?:runc (?:run|create|start|exec) failed: |exec failed: )+")
# crun's sentences, and what runc would have said
_CRUN: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"^executable file [`']([^`']*/[^`']*)['`] not found.*$"),
        'exec: "{0}": stat {0}: no such file or directory',
    ),
    (
        re.compile(r"^executable file [`']([^`']*)['`] not found(?: in \$PATH)?(?:: No such file or directory)?$"),
        'exec: "{0}": executable file not found in $PATH',
    ),
    (re.compile(r"^(?:open|exec|stat|execve) (?:executable )?[`']([^`']+)['`]: (.+)$"), 'exec: "{0}": {1}'),
    (
        re.compile(r"^(sethostname: .+|(?:open|write to) [`']?/proc/sys/.+)$"),
        "error during container init: {0}",
    ),
    (re.compile(r"^open executable: Operation not permitted$"), 'exec: "{program}": permission denied'),  # a folder
    (re.compile(r"^open executable: (.+)$"), 'exec: "{program}": {0}'),
    (re.compile(r"^exec(?:ve)? container process [`']([^`']+)['`]: (.+)$"), 'exec: "{0}": {1}'),
    (
        re.compile(r"^mount [`']([^`']*)['`] to [`']([^`']*)['`]: (.+)$"),
        'error during container init: error mounting "{0}" to rootfs at "/{1}": mount {0}:/{1}: {2}',
    ),
    (re.compile(r"^error stat'ing file [`']([^`']*)['`]: (.+)$"), "error during container init: stat {0}: {1}"),
    (re.compile(r"^chdir [`']([^`']+)['`]: (.+)$"), 'chdir to cwd ("{0}") set in config.json failed: {1}'),
)
_RELATIVE_FOLDER = "Cwd must be an absolute path"
_INIT_FAILED = "unable to start container process: error during container init: "
_CRUN_RLIMIT = re.compile(r"^setrlimit [`'](\w+)['`]: (.+)$")  # runc tells the limit's number
# the same of what runc looks at before it starts anything
_CRUN_CHECKS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"^chdir [`'][^/`'][^`']*['`]: "), _RELATIVE_FOLDER),
    (
        re.compile(r"^the sysctl [`']([^`']*)['`] requires a new IPC namespace"),
        'sysctl "{0}" is not allowed in the hosts ipc namespace',
    ),
    (
        re.compile(r"^the sysctl [`']([^`']*)['`] requires a new network namespace"),
        'sysctl "{0}" not allowed in host network namespace',
    ),
    (
        re.compile(r"^the sysctl [`']([^`']*)['`] (?:requires a new UTS namespace|is not namespaced)"),
        'sysctl "{0}" is not in a separate kernel namespace',
    ),
)
_ERRNO_WORDS = tuple(os.strerror(number) for number in errno.errorcode)


def normalise(words: str, program: str | None = None) -> str:
    """A runtime's explanation in runc's words, without the name of the command that failed.

    `program` is what was to be run: crun does not always name it.
    """
    logged = _LOGGED.findall(words)  # runc's errors in the form of a log
    if program == "" and words.startswith("open executable"):
        words = "executable file `` not found in $PATH"
    text = _PREFIX.sub("", (logged[-1].replace('\\"', '"') if logged else words).strip())
    text = _in_runcs_words(text, program)
    for word in _ERRNO_WORDS:  # crun writes strerror(3)'s capital
        text = text.replace(word, word[0].lower() + word[1:])
    return text


def _in_runcs_words(text: str, program: str | None) -> str:
    refused = _CRUN_RLIMIT.match(text)
    if refused:
        number, reason = getattr(resource, refused[1], refused[1]), refused[2]
        return f"{_INIT_FAILED}error setting rlimits for ready process: error setting rlimit type {number}: {reason}"
    for sentences, prefix in ((_CRUN_CHECKS, ""), (_CRUN, "unable to start container process: ")):
        for pattern, sentence in sentences:
            found = pattern.match(text)
            if found:
                return prefix + sentence.format(*found.groups(), program=program)
    return text


def exit_hint(text: str, program: str) -> int:
    """dockerd's exit code for a failed start: what is said of the program or its folder is the program's fault."""
    if text == _RELATIVE_FOLDER:
        return 126
    lowered = text.lower()
    # A runtime that cannot be started counts as a program that cannot be.
    if program.lower() not in lowered and not lowered.startswith(_NOT_STARTED) and "chdir to cwd" not in lowered:
        return 128
    if any(part in lowered for part in ("executable file not found", "no such file or directory")):
        return 127
    if any(part in lowered for part in ("permission denied", "not a directory", "is a directory")):
        return 126
    return 128


async def run_program(argv: Sequence[str], seconds: float = PROGRAM_SECONDS) -> tuple[int, str, str]:
    """Exit code, output and errors of a short program. TimeoutError (after killing it) when it takes too long."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(seconds):
            output, errors = await process.communicate()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    return process.returncode or 0, output.decode(errors="replace"), errors.decode(errors="replace")


async def ask(runtime: Runtime, *arguments: str) -> str:
    """Output of `runtime arguments...`. OSError with the runtime's words when it fails."""
    argv = [*_command(runtime), "--root", runtime.root, *arguments]
    code, output, errors = await run_program(argv)
    if code != 0:
        raise OSError(normalise(errors) or f"{runtime.name} {arguments[0]} ended with code {code}")
    return output


def _command(runtime: Runtime) -> list[str]:
    """How the daemon starts the runtime: by itself, or where some files are covered (a shim does that by itself)."""
    command = [runtime.path, *runtime.args]
    if not runtime.covered:
        return command
    script = f'for file in {shlex.join(runtime.covered)}; do mount --bind /dev/null "$file" || exit; done; exec "$@"'
    return ["unshare", "--mount", "--propagation", "slave", "sh", "-c", script, "sh", *command]


async def update_resources(
    runtime: Runtime, container_id: str, resources: Mapping[str, Any], cgroups: Cgroups, cgroup_path: str
) -> None:
    """Change the limits of a running container (`linux.resources` of the OCI runtime spec).

    What lifts a limit is written here for crun, which writes -1 in ways that the kernel does not take on v1. runc is
    told: it remembers a container's limits, and with each update writes them all.
    """
    told = systemd.assignments(resources, cgroups.version) if leaves_systemd_untold(runtime) else []
    resources = {part: dict(limits) for part, limits in resources.items()}
    if runtime.program == "crun":
        await _lift(resources, cgroups, cgroup_path)
    await _change(runtime, container_id, resources)
    if told:
        await _tell_systemd(cgroup_path, told)


async def _lift(resources: dict[str, dict[str, Any]], cgroups: Cgroups, cgroup_path: str) -> None:
    for part, name, lift in (
        ("pids", "limit", cgroups.lift_pids_limit_sync),
        ("cpu", "quota", cgroups.lift_cpu_quota_sync),
    ):
        if resources.get(part, {}).get(name) == -1:
            del resources[part][name]
            await run_blocking(lift, cgroup_path)


async def _change(runtime: Runtime, container_id: str, resources: Mapping[str, Mapping[str, Any]]) -> None:
    resources = {part: limits for part, limits in resources.items() if limits}
    if not resources:
        return
    async with _scratch() as folder:  # crun cannot read from the socket that uvloop's pipes are
        wanted = folder / "resources.json"
        await run_blocking(wanted.write_text, json.dumps(resources))
        await ask(runtime, "update", "--resources", str(wanted), container_id)


@contextlib.asynccontextmanager
async def _scratch() -> AsyncIterator[Path]:
    folder = Path(await run_blocking(tempfile.mkdtemp, prefix="berth-"))
    try:
        yield folder
    finally:
        await run_blocking(shutil.rmtree, folder, ignore_errors=True)


async def kill_leftover(runtime: Runtime, container_id: str, cgroups: Cgroups, cgroup_path: str) -> None:
    """Kill and forget a container whose shim is gone. Nothing left of it is not an error."""
    await run_blocking(cgroups.kill_sync, cgroup_path)
    with contextlib.suppress(OSError, TimeoutError):
        await ask(runtime, "delete", "--force", container_id)
    await run_blocking(cgroups.remove_sync, cgroup_path)


def parse_version(output: str) -> tuple[str, str, str]:
    """Program, version and commit of `--version`: first line `NAME version X`, then `commit: Y`."""
    version = re.search(r"^(\S+) version (\S+)", output, re.MULTILINE)
    commit = re.search(r"^commit: (\S+)", output, re.MULTILINE)
    return version[1] if version else "", version[2] if version else "", commit[1] if commit else ""


@dataclass(slots=True)
class Runtimes:
    """The runtimes that containers can name, and the default one; a SIGHUP may change both."""

    known: dict[str, Runtime]
    default: str

    @property
    def sharing(self) -> str:
        """Which one leaves a tmpfs shared, where the default is crun, which makes all mounts private; "" for none."""
        is_needed = self.known[self.default].program == "crun"
        return "runc" if is_needed and "runc" in self.known and guards_proc(self.known["runc"]) else ""

    def take(self, other: "Runtimes") -> None:
        """From now on these."""
        self.known, self.default = other.known, other.default


async def probe_runtimes(
    configured: Mapping[str, Mapping[str, Any]], default: str | None, exec_root: Path, *, systemd: bool = False
) -> Runtimes:
    """The runtimes that can be named.

    `configured` is daemon.json's `runtimes` (`path`, `runtimeArgs`); as with dockerd only a start tells that a program
    is missing. runc and crun are added where installed. Without a `default`, the first of crun and runc that really
    runs a container on this host is chosen. FileNotFoundError when there is none.
    """
    found: dict[str, Runtime] = {}
    for name, settings in configured.items():
        wanted = str(settings.get("path") or name)
        arguments = tuple(str(argument) for argument in settings.get("runtimeArgs") or ())
        found[name] = await _describe(name, shutil.which(wanted) or wanted, arguments, exec_root, systemd)
    for name in PREFERENCE:
        path = shutil.which(name)
        if name not in found and path:
            found[name] = await _describe(name, path, (), exec_root, systemd)
    if "runc" in found:
        found.setdefault(SHIM_V2, found["runc"])  # what dockerd calls it, too
    if default:
        if default not in found:
            raise FileNotFoundError(f"specified default runtime '{default}' does not exist")
        return Runtimes(found, default)
    troubles = []
    for name in PREFERENCE:
        if name in found:
            trouble = await trouble_running(found[name])
            if not trouble:
                return Runtimes(found, name)
            troubles.append(f"{name}: {trouble}")
    raise FileNotFoundError(
        "no OCI runtime works on this host; " + ("; ".join(troubles) if troubles else "install runc or crun")
    )


def uncounted_controllers_sync() -> tuple[str, ...]:
    """The file by which crun would refuse this host although nothing that docker sets is lost; () where it would not.

    crun limits by v1 or by v2 and refuses a host whose v2 hierarchy has any controller beside v1's. Where those are
    none that a container's settings name (hugetlb, rdma, misc), v1 has all that counts, and the refusal is void.
    """
    groups = Cgroups.detect_sync()
    if groups.version == 2 or groups.unified != CRUNS_UNIFIED:
        return ()
    left = groups.controllers.difference(groups.v1)
    return (f"{groups.unified}/cgroup.controllers",) if left and not left & LIMITING_CONTROLLERS else ()


async def _describe(name: str, path: str, arguments: tuple[str, ...], exec_root: Path, systemd: bool) -> Runtime:
    program = version = commit = ""
    with contextlib.suppress(OSError, TimeoutError):
        program, version, commit = parse_version((await run_program([path, "--version"]))[1])
    if systemd:
        arguments = (SYSTEMD, *arguments)
    covered = await run_blocking(uncounted_controllers_sync) if program == "crun" else ()
    return Runtime(name, path, arguments, str(exec_root / "runtimes" / name), version, commit, covered, program)


async def trouble_running(runtime: Runtime) -> str:
    """Why a trivial container cannot be run here, or "" when it can: some refuse a host's cgroup layout only then."""
    async with _scratch() as folder:
        name = f"berth-probe-{folder.name[-8:]}"
        groups = Cgroups({}, "", driver="systemd" if SYSTEMD in runtime.args else "cgroupfs")
        await run_blocking(_write_probe_sync, folder, groups.container_path(name))
        argv = [*_command(runtime), "--root", f"{folder}/state", "run", "--bundle", str(folder), name]
        try:
            code, _output, errors = await run_program(argv)
        except (OSError, TimeoutError) as error:
            return str(error) or "timed out"
        # The probe's root is empty, so "no such program" is the answer of a runtime that got all the way.
        if code == 0 or "executable file" in errors or "o such file or directory" in errors:
            return ""
        return normalise(errors)


def _write_probe_sync(folder: Path, cgroup_path: str) -> None:
    (folder / "rootfs").mkdir()
    for point in ("proc", "dev"):
        (folder / "rootfs" / point).mkdir()
    config = {
        "ociVersion": "1.0.2",
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["/berth-probe"], "cwd": "/", "env": ["PATH=/"]},
        "root": {"path": "rootfs", "readonly": True},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")],
            "cgroupsPath": cgroup_path,
            "resources": {"pids": {"limit": 64}},
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
