"""The house rules a machine can hold: who may import whom, who may do what, where tests are, how long things get."""

from __future__ import annotations

import ast
import re
import statistics
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import engine
from tests.support.source_tree import PROJECT, Module, modules, targets

MODULES = modules()
KNOWN = frozenset(module.name for module in MODULES)

# Folder of the engine -> the folders it may import, beside `EVERYWHERE`. ARCHITECTURE.md draws the same table.
ENGINE = {
    "api": {"containers", "images", "networks", "volumes", "builder"},
    "builder": {"containers", "images", "snapshots", "runtime"},
    "containers": {"images", "networks", "volumes", "snapshots", "runtime", "kernel"},
    "images": {"snapshots"},
    "networks": {"kernel"},
    "volumes": {"kernel"},
    "snapshots": {"kernel"},
    "runtime": {"kernel", "snapshots", "shim"},
    "kernel": set(),
    "shim": set(),
    "dns": set(),
}
EVERYWHERE = {"errors", "events", "filters", "names", "journal", "tasks", "config", "clock", "sizes", "measures"}
COMPOSITION = {"engine.daemon", "engine.__main__"}
REGISTRY_FOR_ENGINE = ("digest", "reference", "manifest", "errors", "store", "client", "exposition")
CLI_MAY = (
    "registry",  # cli/registry.py serves and administers it; the client reads reference and client.credentials
    "engine.config",
    "engine.daemon",
    "engine.runtime.oci",  # `berth check` probes the host exactly as the daemon does
    "engine.runtime.cgroups",
    "engine.kernel.apparmor",
)
_IMPORT_NAMES = {"pyyaml": "yaml", "dnspython": "dns"}
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "core"}
STARTS_PROGRAMS = (
    "engine.runtime",
    "engine.kernel",
    "engine.shim",
    "engine.snapshots.workers",  # unpacking is confined in processes of its own
    "engine.snapshots.foundry",
    "cli",
)
PURE_MODULES = """
    engine.filters engine.names engine.sizes engine.containers.policy engine.containers.spec engine.containers.mounts
    engine.containers.security engine.containers.devices engine.networks.ipam engine.networks.ruleset
    engine.builder.dockerfile engine.builder.expand engine.builder.ignore engine.builder.stages
    registry.digest registry.reference registry.manifest registry.store.paths
""".split()


def _within(name: str, prefixes: tuple[str, ...] | set[str]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def _may_import(source: str, target: str) -> bool:
    """The table of house rules: may module `source` import module `target`?"""
    from_package, to_package = source.split(".")[0], target.split(".")[0]
    if target == from_package or target == to_package == from_package:
        return True
    if from_package == "registry":
        return to_package == "registry"
    if from_package == "cli":
        return to_package == "cli" or target == "engine" or _within(target, CLI_MAY)
    if to_package == "registry":
        names = tuple(f"registry.{name}" for name in REGISTRY_FOR_ENGINE)
        return source in COMPOSITION or target == "registry" or _within(target, names)
    if to_package == "cli":
        return False
    return _engine_may(source, target)


def _engine_may(source: str, target: str) -> bool:
    if source in COMPOSITION or target == "engine":
        return True
    folder, wanted = source.split(".")[1], target.split(".")[1]
    if folder in ("shim", "dns"):
        return folder == wanted
    if wanted in EVERYWHERE or folder == wanted:
        return True
    return wanted in ENGINE.get(folder, set())


def test_imports_follow_the_house_rules() -> None:
    broken = [
        f"{module.relative}:{line} imports {target}"
        for module in MODULES
        for target, line in targets(module, KNOWN)
        if not _may_import(module.name, target)
    ]
    assert not broken, "\n".join(broken)


def test_no_import_cycles() -> None:
    graph = {m.name: {t for t, _ in targets(m, KNOWN, at_load_only=True) if t != m.name} for m in MODULES}
    # A package's own __init__ may gather what lies in it; the edge back to the package is not a cycle of modules.
    graph = {name: {t for t in found if not name.startswith(t + ".")} for name, found in graph.items()}
    done: set[str] = set()
    for start in graph:
        _walk(start, graph, [], done)


def _walk(name: str, graph: dict[str, set[str]], path: list[str], done: set[str]) -> None:
    if name in done:
        return
    assert name not in path, "import cycle: " + " -> ".join([*path[path.index(name) :], name])
    for target in sorted(graph.get(name, ())):
        _walk(target, graph, [*path, name], done)
    done.add(name)


def _foreign(module: Module, top: str) -> list[str]:
    return [f"{module.relative}:{i.line}" for i in module.imports if i.module.split(".")[0] == top]


def test_the_web_server_is_known_to_the_two_api_folders_only() -> None:
    allowed = ("engine.api", "registry.server", "registry.client", "registry.proxy", *COMPOSITION)
    broken = [place for m in MODULES if not _within(m.name, allowed) for place in _foreign(m, "aiohttp")]
    assert not broken, f"aiohttp belongs to engine/api, registry/server and registry/client: {broken}"


def test_the_web_client_is_known_to_the_registry_client_only() -> None:
    names = {"ClientSession", "ClientTimeout", "TCPConnector", "request", "ClientResponse"}
    broken = [
        f"{m.relative}:{i.line} {i.name}"
        for m in MODULES
        if not _within(m.name, ("registry.client",))
        for i in m.imports
        if i.module == "aiohttp" and i.name in names
    ]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("library", ["pyroute2", "ctypes"])
def test_the_kernel_is_touched_in_the_kernel_folder_only(library: str) -> None:
    allowed = ("engine.kernel", "engine.shim")
    broken = [place for m in MODULES if not _within(m.name, allowed) for place in _foreign(m, library)]
    assert not broken, f"{library} belongs to engine/kernel: {broken}"


def test_programs_are_started_in_few_places() -> None:
    starters = ("create_subprocess_exec", "create_subprocess_shell", "posix_spawn", "fork", "execv", "execve", "Popen")
    broken = []
    for module in MODULES:
        if _within(module.name, STARTS_PROGRAMS):
            continue
        broken += _foreign(module, "subprocess")
        broken += [f"{module.relative}:{n} {name}" for name, n in module.calls() if name.split(".")[-1] in starters]
    assert not broken, "\n".join(broken)


def test_background_tasks_have_one_birthplace_in_each_half() -> None:
    places = {
        module.name
        for module in MODULES
        for name, _ in module.calls()
        if name.split(".")[-1] in ("create_task", "ensure_future") and not name.startswith(("group.", "tasks.", "tg."))
    }
    assert {name for name in places if name.startswith("engine")} <= {"engine.tasks"}
    assert len({name for name in places if name.startswith("registry")}) <= 1, places


def test_models_do_no_io() -> None:
    io = {"os", "socket", "subprocess", "asyncio", "aiohttp", "sqlite3", "aiofiles", "shutil", "tempfile", "threading"}
    broken = [
        f"{m.relative}:{i.line} imports {i.module}"
        for m in MODULES
        if m.path.name == "model.py"
        for i in m.imports
        if i.module.split(".")[0] in io
    ]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(("folder", "extra"), [("shim", set()), ("dns", {"dns"})])
def test_small_processes_stay_small(folder: str, extra: set[str]) -> None:
    allowed = {*sys.stdlib_module_names, *extra, "engine", "__future__"}
    broken = [
        f"{m.relative}:{i.line} imports {i.module}"
        for m in MODULES
        if m.name.startswith(f"engine.{folder}")
        for i in m.imports
        if i.module.split(".")[0] not in allowed
    ]
    assert not broken, "\n".join(broken)


def test_files_and_functions_stay_short() -> None:
    long_files = [f"{m.relative}: {m.lines} lines" for m in MODULES if m.lines > 600]
    lengths = [(f.lines, f"{m.relative}:{f.line} {f.name}") for m in MODULES for f in m.functions()]
    long_functions = [f"{where}: {lines} lines" for lines, where in lengths if lines > 80]
    assert not long_files + long_functions, "\n".join(long_files + long_functions)
    assert sum(lines <= 40 for lines, _ in lengths) >= 0.95 * len(lengths)
    assert statistics.median(m.lines for m in MODULES if m.path.name != "__init__.py") <= 220


def test_every_module_says_why_it_exists() -> None:
    assert [m.relative for m in MODULES if not ast.get_docstring(m.tree)] == []


def test_files_are_named_after_what_they_know() -> None:
    assert [m.relative for m in MODULES if m.path.stem.split("_")[-1] in BANNED_NAMES] == []


def _stands_for_a_module(test: Path) -> bool:
    """tests/engine/images/test_pull_errors.py stands for engine/images/pull.py."""
    folder = test.parent.relative_to(PROJECT / "tests")
    words = test.stem.removeprefix("test_").split("_")
    candidates = ["_".join(words[:count]) for count in range(len(words), 0, -1)]
    return any(
        (PROJECT / folder / f"{name}.py").exists() or (PROJECT / folder / name).is_dir() or name == folder.name
        for name in candidates
    )


def test_the_test_tree_mirrors_the_source() -> None:
    tests = [path for top in ("engine", "registry", "cli") for path in (PROJECT / "tests" / top).rglob("test_*.py")]
    assert [str(path.relative_to(PROJECT)) for path in tests if not _stands_for_a_module(path)] == []


def test_pure_modules_have_a_test_file_of_their_own() -> None:
    missing = []
    for name in PURE_MODULES:
        path = PROJECT / "tests" / Path(*name.split("."))
        if name in KNOWN and not list(path.parent.glob(f"test_{path.name}*.py")):
            missing.append(name)
    assert missing == []


def _project() -> dict[str, Any]:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert isinstance(project, dict)
    return project


def test_one_version() -> None:
    assert _project()["version"] == engine.__version__


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    imported = {i.module.split(".")[0] for m in MODULES for i in m.imports} - set(sys.stdlib_module_names)
    wanted = _project()["dependencies"] + _project()["optional-dependencies"]["s3"]
    declared = {re.split(r"[<>=~!\[]", line)[0].strip().lower().replace("-", "_") for line in wanted}
    assert imported - {"engine", "registry", "cli", "__future__"} == {
        _IMPORT_NAMES.get(name, name) for name in declared
    }
