"""docker top: the host's ``ps``, asked about the processes of one container and read back as a table.

``ps`` chooses the columns, so its output is parsed by docker's rules: the PID column tells which lines are ours, and
what has no heading of its own belongs to the last column.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from engine.containers.assembly import Assembly
from engine.containers.journalist import Journalist
from engine.containers.model import Status
from engine.errors import SystemFailure, is_restarting, not_running, os_words
from engine.runtime.cgroups import Cgroups
from engine.runtime.oci import run_program
from engine.tasks import run_blocking

DEFAULT_ARGUMENTS = "-ef"
PS_SECONDS = 20.0
_RENAMED = re.compile(r"\s+([^\s]*)=\s*(PID[^\s]*)")


@dataclass(frozen=True, slots=True)
class ProcessTable:
    """What ``ps`` printed: its headings, and one row for each process (or thread) of the container."""

    titles: list[str]
    rows: list[list[str]]


class Processes:
    """Lists the processes of running containers."""

    def __init__(self, journalist: Journalist, assembly: Assembly, cgroups: Cgroups) -> None:
        self._records = journalist
        self._assembly = assembly
        self._cgroups = cgroups

    async def table(self, reference: str, arguments: str = "") -> ProcessTable:
        """``ps`` with ``arguments``. Raises ``Conflict`` when nothing runs, ``SystemFailure``."""
        check_arguments(arguments)
        container = self._records.store.find(reference)
        if container.state.status is Status.RESTARTING:
            raise is_restarting(container.id)
        if not container.is_running:
            raise not_running(container.id)
        pids = await run_blocking(self._cgroups.pids_sync, self._assembly.cgroup_path(container))
        table = await processes_table(pids, arguments)
        self._records.event(container, "top")
        return table


async def processes_table(pids: Collection[int], arguments: str = "") -> ProcessTable:
    """``ps`` with ``arguments`` that were checked, split at spaces, about some processes. Raises ``SystemFailure``."""
    try:
        output = await _ps((arguments or DEFAULT_ARGUMENTS).split(" "), pids)
        return parse(output, frozenset(pids))
    except FileNotFoundError as error:
        raise SystemFailure('ps: exec: "ps": executable file not found in $PATH') from error
    except (OSError, TimeoutError) as error:
        raise SystemFailure(f"ps: {os_words(error)}") from error
    except ValueError as error:
        raise SystemFailure(str(error)) from error


def check_arguments(arguments: str) -> None:
    """Refuse to give the PID column's name to another column. Raises ``SystemFailure`` with dockerd's sentence."""
    for column, title in _RENAMED.findall(arguments):
        if column != "pid":
            raise SystemFailure(f'specifying "{column}={title}" is not allowed')


async def _ps(arguments: list[str], pids: Collection[int]) -> str:
    code, output, _ = await run_program(["ps", *arguments, "-q" + ",".join(map(str, pids))], seconds=PS_SECONDS)
    if code == 0:
        return output
    # Some options (f, for one) exclude -q: list all and let the PID column choose.
    code, output, complaint = await run_program(["ps", *arguments], seconds=PS_SECONDS)
    if code == 0:
        return output
    words = complaint.split("\n")[0] or f"exit status {code}"
    raise SystemFailure(f"ps: {words.removeprefix('ps: ')}")


def parse(output: str, pids: Collection[int]) -> ProcessTable:
    """The lines of ``output`` that are about ``pids``; a thread's line (PID ``-``) goes with its process's.

    Raises ``ValueError`` with dockerd's sentence.
    """
    heading, *lines = output.split("\n")
    titles = heading.split()
    if "PID" not in titles:
        raise ValueError("Couldn't find PID field in ps output")
    column = titles.index("PID")
    rows: list[list[str]] = []
    ours = False
    for line in lines:
        # Only ASCII blanks separate columns: a command line may hold others.
        fields = re.findall(r"[^ \t\n\v\f\r]+", line)
        if len(fields) <= column:
            continue
        if fields[column] != "-":
            ours = _number(fields[column]) in pids
        if ours:
            rows.append(_row(fields, len(titles)))
    return ProcessTable(titles, rows)


def _number(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"Unexpected pid '{text}': strconv.Atoi: parsing \"{text}\": invalid syntax")
    return int(text)


def _row(fields: list[str], columns: int) -> list[str]:
    return [*fields[: columns - 1], " ".join(fields[columns - 1 :])]
