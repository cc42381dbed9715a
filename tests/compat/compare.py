"""The comparison runner: the same docker commands against dockerd and berth, and where they differ.

A case is a list of steps from `commands.yaml`; both engines get the same steps in the same order. Compared are exit
code, stdout and stderr after normalising what must differ (ids, times, addresses, random names), or for `shape: true`
the keys and types of the JSON on stdout. The API version is pinned to dockerd's, so that both speak the same.

    python -m tests.compat.compare [--self] [CASE ...]     prints a report; both are started for the occasion
"""

from __future__ import annotations

import difflib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.compat.later_versions import LATER_KEYS, LATER_KEYS_ALONE, LATER_WORDS
from tests.support.daemons import Berth, Dockerd, Engine

API_VERSION = "1.41"
_ENVIRONMENT = {"DOCKER_API_VERSION": API_VERSION}
_SHOWN_LINES = 60
_STEP_SECONDS = 40
_COMMANDS = Path(__file__).with_name("commands.yaml")

_TIME = r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?( ?(Z|[+-]\d\d:?\d\d)( \w+)?)?"
_AGE = r"(Less than a second|About an? \w+|\d+ (second|minute|hour|day|week|month|year)s?)"
_RULES: tuple[tuple[str, str], ...] = (
    (r"sha256:[0-9a-f]{64}", "sha256:<id>"),
    (r"\b[0-9a-f]{64}\b", "<id>"),
    (_TIME, "<time>"),
    (r"\b[A-Z][a-z]{2} [ 0-3]\d [0-2]\d:[0-5]\d\b", "<time>"),  # of ls
    (rf"{_AGE} ago", "<age> ago"),
    (rf"\bUp {_AGE}", "Up <age>"),
    (r"\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b", "<mac>"),
    (r"\b(172\.1[7-9]|10\.2\d\d)(\.\d+){2}(/\d+)?\b", "<ip>"),
    (r"\b[0-9a-f]{12}\b", "<short>"),
    (r"\b[a-z]+_[a-z]+\d?\b(?=\s*$| \(<id>\))", "<name>"),
    (r"(0\.0\.0\.0|\[::\]):(3276[89]|32[7-9]\d\d|3[3-9]\d{3}|[4-6]\d{4})", r"\1:<port>"),
    (r"[ \t]+$", ""),
    (r" {2,}", "  "),
)
# What differs because berth prefers crun, which is as good as saying: on purpose.
_OWN_KEYS = (".Runtime", "[].HostConfig.Runtime")
_COMPILED = [(re.compile(pattern, re.MULTILINE), to) for pattern, to in _RULES]


@dataclass(frozen=True)
class Step:
    """One docker command.

    `shape`: compare JSON keys instead of text; `values`: keys and what they hold; `sort`: lines in any order; `skip`:
    why it is run but not compared.
    """

    command: tuple[str, ...]
    stdin: str = ""
    shape: bool = False
    values: bool = False
    sort: bool = False
    stdout: bool = True
    stderr: bool = True
    skip: str = ""
    code: int | None = None
    """Today's dockerd's exit code, where 20.10 had another."""
    absent: tuple[str, ...] = ()
    """Key paths of dockerd's that berth leaves out on purpose (shape only)."""


@dataclass(frozen=True)
class Case:
    name: str
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Outcome:
    code: int
    stdout: str
    stderr: str


def _step(raw: str | Mapping[str, Any]) -> Step:
    if isinstance(raw, str):
        return Step(tuple(shlex.split(raw)))
    fields = dict(raw)
    command = tuple(shlex.split(fields.pop("docker")))
    return Step(command, absent=tuple(fields.pop("absent", ())), **fields)


def load_cases(path: Path = _COMMANDS) -> list[Case]:
    """The command list."""
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [Case(name, tuple(_step(step) for step in steps)) for name, steps in document.items()]


def normalise(text: str, engine: Engine) -> str:
    """Output with everything replaced that differs between two runs of one engine."""
    text = text.replace(str(engine.root), "<root>").replace("\r\n", "\n")
    for pattern, replacement in _COMPILED:
        text = pattern.sub(replacement, text)
    return text.strip()


def _complaint(text: str, engine: Engine) -> str:
    """What was said on stderr, in the words of today's dockerd; its capital letters come and go with the versions."""
    text = normalise(text, engine).lower()
    for pattern, replacement in LATER_WORDS:
        text = re.sub(pattern, replacement, text)
    return text


def run_case(engine: Engine, case: Case) -> list[Outcome]:
    """Run every step of a case on one engine."""
    outcomes = []
    for step in case.steps:
        command = [part.replace("{root}", str(engine.root)) for part in step.command]
        try:
            done = engine.docker(*command, stdin=step.stdin.encode(), env=_ENVIRONMENT, seconds=_STEP_SECONDS)
        except subprocess.TimeoutExpired:
            outcomes.append(Outcome(124, "", f"did not end within {_STEP_SECONDS} s"))
            continue
        outcomes.append(Outcome(done.returncode, done.stdout, done.stderr))
    return outcomes


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    return {bool: "bool", int: "number", float: "number", str: "string", list: "list", dict: "map"}[type(value)]


def shape(value: Any, path: str = "") -> Iterator[str]:
    """Every key path of a JSON document with its type: `[].State.Pid number`."""
    if isinstance(value, dict):
        yield f"{path} map"
        for key, inner in value.items():
            generic = "<id>" if re.fullmatch(r"[0-9a-f]{64}", key) else key
            yield from shape(inner, f"{path}.{generic}")
    elif isinstance(value, list):
        yield f"{path} list"
        for inner in value:
            yield from shape(inner, f"{path}[]")
    else:
        yield f"{path} {_kind(value)}"


def _documents(text: str) -> list[Any]:
    try:
        return [json.loads(text)]
    except ValueError:
        return [json.loads(line) for line in text.splitlines() if line.strip()]


def _types_by_path(text: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for document in _documents(text):
        for line in shape(document):
            path, _, kind = line.rpartition(" ")
            found.setdefault(path, set()).add(kind)
    return found


def _shape_differences(step: Step, ours: str, theirs: str) -> Iterator[str]:
    our_types, their_types = _types_by_path(ours), _types_by_path(theirs)
    for path in sorted(our_types.keys() | their_types.keys()):
        if path.startswith((*step.absent, *LATER_KEYS, *_OWN_KEYS)):
            continue
        if path not in our_types:
            # What lies inside something that is null or empty here cannot be there either.
            if path.rpartition(".")[0].removesuffix("[]") in our_types and not path.endswith("[]"):
                yield f"missing {path}"
        elif path not in their_types:
            if path.rpartition(".")[0].removesuffix("[]") in their_types and not path.endswith("[]"):
                yield f"extra   {path}"
        elif our_types[path] != their_types[path]:
            yield f"type of {path}: dockerd {sorted(their_types[path])}, berth {sorted(our_types[path])}"


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flatten(inner, f"{path}.{key}")
    elif isinstance(value, list) and value:
        # The command line sends binds in the order of a hash map.
        for number, inner in enumerate(sorted(value) if path.endswith(".Binds") else value):
            yield from _flatten(inner, f"{path}[{number}]")
    else:
        yield path, value


def _value_differences(step: Step, ours: str, theirs: str) -> Iterator[str]:
    left = dict(_flatten(json.loads(theirs)))
    right = dict(_flatten(json.loads(ours)))
    for path in sorted(left.keys() | right.keys()):
        generic = re.sub(r"\[\d+\]", "[]", path)
        if generic.startswith((*step.absent, *LATER_KEYS, *LATER_KEYS_ALONE, *_OWN_KEYS)):
            continue
        if left.get(path, "absent") != right.get(path, "absent"):
            yield f"{path}: dockerd {left.get(path, 'absent')!r}, berth {right.get(path, 'absent')!r}"


def _text_differences(step: Step, what: str, ours: str, theirs: str) -> Iterator[str]:
    left, right = theirs.splitlines(), ours.splitlines()
    if step.sort:
        left, right = sorted(left), sorted(right)
    if left == right:
        return
    yield f"{what} (- dockerd, + berth):"
    lines = list(difflib.ndiff(left, right))
    yield from (f"  {line}" for line in lines[:_SHOWN_LINES] if line[0] in "-+")


def differences(
    case: Case, berth: Engine, ours: Sequence[Outcome], dockerd: Engine, theirs: Sequence[Outcome]
) -> list[str]:
    """What a reader has to know, step by step; empty when the two behave alike."""
    found: list[str] = []
    for step, our, their in zip(case.steps, ours, theirs, strict=True):
        if step.skip:
            continue
        lines: list[str] = []
        expected = their.code if step.code is None else step.code
        if our.code != expected:
            lines.append(f"exit code: dockerd {expected}, berth {our.code}")
        if step.values and our.code == their.code == 0:
            lines += _value_differences(step, normalise(our.stdout, berth), normalise(their.stdout, dockerd))
        elif step.shape and our.code == their.code == 0:
            lines += _shape_differences(step, our.stdout, their.stdout)
        elif step.stdout and not step.shape and not step.values:
            lines += _text_differences(step, "stdout", normalise(our.stdout, berth), normalise(their.stdout, dockerd))
        if step.stderr:
            lines += _text_differences(step, "stderr", _complaint(our.stderr, berth), _complaint(their.stderr, dockerd))
        if lines:
            found += [f"$ docker {shlex.join(step.command)}", *(f"    {line}" for line in lines)]
    return found


def compare(case: Case, berth: Engine, dockerd: Engine) -> list[str]:
    """Run a case on both at the same time and return the differences."""
    with ThreadPoolExecutor(2) as pool:
        ours = pool.submit(run_case, berth, case)
        theirs = pool.submit(run_case, dockerd, case)
        return differences(case, berth, ours.result(), dockerd, theirs.result())


def main(names: Sequence[str]) -> int:
    """Compare the named cases (all of them without names) and print a report; the exit code is 1 where any differs.

    With `--self` two dockerds are compared: what differs then is a case that does not give the same output twice.
    """
    berth: Engine = Dockerd(relays=False) if "--self" in names else Berth()
    dockerd = Dockerd(relays=False)
    names = [name for name in names if name != "--self"]
    differing = 0
    try:
        for engine in (berth, dockerd):
            engine.start()
            engine.make_busybox()
        cases = [case for case in load_cases() if not names or case.name in names]
        for case in cases:
            found = compare(case, berth, dockerd)
            differing += bool(found)
            print(
                f"{'differs' if found else 'same   '} {case.name}",
                *(f"    {line}" for line in found),
                sep="\n",
                flush=True,
            )
        print(f"{len(cases) - differing} of {len(cases)} cases behave alike")
    finally:
        for engine in (berth, dockerd):
            engine.stop()
            engine.remove()
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
