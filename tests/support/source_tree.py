"""The project's source read as data: modules, their imports, their functions. What test_architecture.py asks about."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("engine", "registry", "cli")


@dataclass(frozen=True)
class Import:
    """One imported name: `module` as written (absolute), `name` where it was a from-import."""

    module: str
    name: str
    line: int
    at_load: bool
    """Runs when the module is imported: neither inside a function nor for type checking only."""


@dataclass(frozen=True)
class Function:
    name: str
    line: int
    lines: int


@dataclass(frozen=True)
class Module:
    name: str
    path: Path
    lines: int
    tree: ast.Module
    imports: tuple[Import, ...]

    @property
    def relative(self) -> str:
        return str(self.path.relative_to(PROJECT))

    def functions(self) -> Iterator[Function]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield Function(node.name, node.lineno, (node.end_lineno or node.lineno) - node.lineno + 1)

    def calls(self) -> Iterator[tuple[str, int]]:
        """Every call of a dotted or plain name, with its line."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call):
                name = _dotted(node.func)
                if name:
                    yield name, node.lineno


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return ""


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def _imports(tree: ast.Module, package: str) -> Iterator[Import]:
    pending: list[tuple[ast.AST, bool]] = [(tree, True)]
    while pending:
        node, at_load = pending.pop()
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, "", node.lineno, at_load)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            for alias in node.names:
                yield Import(base, alias.name, node.lineno, at_load)
        inner = at_load and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not _is_type_checking(node)
        pending += [(child, inner) for child in ast.iter_child_nodes(node)]


def _module(path: Path) -> Module:
    parts = path.relative_to(PROJECT).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    name = ".".join(parts[:-1] if is_package else parts)
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source, filename=str(path))
    package = name if is_package else name.rpartition(".")[0]
    return Module(name, path, source.count("\n"), tree, tuple(_imports(tree, package)))


def modules() -> list[Module]:
    """Every module of the three packages."""
    paths = sorted(path for package in PACKAGES for path in (PROJECT / package).rglob("*.py"))
    return [_module(path) for path in paths]


def targets(module: Module, known: frozenset[str], *, at_load_only: bool = False) -> Iterator[tuple[str, int]]:
    """The project modules that one module imports, with the line."""
    for item in module.imports:
        if at_load_only and not item.at_load:
            continue
        full = f"{item.module}.{item.name}" if item.name else item.module
        target = full if full in known else item.module
        if target in known:
            yield target, item.line
