"""The tree's rules: imports go one way and in no circle, folders stay small, and listing the commands is instant."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from slm.cli import COMMANDS, main

ROOT = Path(__file__).resolve().parents[1]
FORBIDDEN = {"tokenizer": {"pipelines", "slm"}, "pipelines": {"slm"}, "slm": set()}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in FORBIDDEN
    for path in sorted((ROOT / package).rglob("*.py"))
}

# Folders of a package in the order in which audio becomes sound again: each imports only from folders before it. A name
# may stand for a module directly in the package. Packages without an entry are not checked.
ORDER = {
    "tokenizer": [
        "errors",
        "parsed",
        "files",
        "machine",
        "config",
        "rates",
        "chunks",
        "audio_input",
        "audio",
        "inputs",
        "network",
        "checkpoint",
        "model",
        "live",
        "stream_pool",
        "conversion",
        "onnx_engine",
        "codec",
        "runs",
        "metrics",
        "training",
        "commands",
    ],
    "pipelines": [
        "storage",
        "sources",
        "segmentation",
        "format",
        "dataset",
        "bulk",
        "tools",
        "pages",
        "report",
        "evaluation",
        "commands",
    ],
    "slm": [
        "text_model",
        "vocabulary",
        "model",
        "documents",
        "llama",
        "checkpoint",
        "generation",
        "training",
        "evaluation",
        "serve",
        "demo",
        "commands",
        "cli",
    ],
}
UNRELATED = {
    frozenset(pair) for pair in [("report", "evaluation"), ("serve", "demo"), ("evaluation", "serve")]
}  # neighbours in the order that must not import each other
MOST_MODULES = 16  # in a folder
DEEPEST = {"tokenizer": 15, "pipelines": 12, "slm": 14}  # modules in the longest chain of imports inside the package


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_go_one_way(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            imported = {name.split(".")[0] for name in names}
            assert not imported & FORBIDDEN[package], f"{path} imports {imported & FORBIDDEN[package]}"


def imports_of(module: str) -> set[str]:
    """Modules of ours that a module imports, anywhere in it but for types alone (TYPE_CHECKING)."""
    found: set[str] = set()
    pending: list[ast.AST] = [ast.parse(MODULES[module].read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{module}: imports here are absolute"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.add(name if name in MODULES else node.module)
        pending += ast.iter_child_nodes(node)
    return {name for name in found if name in MODULES and name != module}


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    """Every module of the three packages with the modules that it imports."""
    return {module: imports_of(module) for module in MODULES}


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """One circle of imports, first module repeated at the end; empty when there is none."""
    done: set[str] = set()
    for start in graph:
        path: list[str] = []
        pending = [(start, False)]
        while pending:
            module, left = pending.pop()
            if left:
                done.add(path.pop())
            elif module in path:
                return [*path[path.index(module) :], module]
            elif module not in done:
                path.append(module)
                pending.append((module, True))
                pending += [(name, False) for name in sorted(graph[module])]
    return []


def longest_chain(graph: dict[str, set[str]]) -> list[str]:
    """The longest chain of imports in a graph without circles."""
    chains: dict[str, list[str]] = {}

    def chain(module: str) -> list[str]:
        if module not in chains:
            below = max((chain(name) for name in sorted(graph[module])), key=len, default=[])
            chains[module] = [module, *below]
        return chains[module]

    return max((chain(module) for module in graph), key=len)


def within(package: str, graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The modules of a package, and their imports inside it."""
    ours = {module for module in graph if module.split(".")[0] == package}
    return {module: graph[module] & ours for module in sorted(ours)}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_import_circles(graph: dict[str, set[str]], package: str) -> None:
    circle = circle_in(within(package, graph))
    assert not circle, " imports ".join(circle)


def test_a_circle_is_found() -> None:
    chain: dict[str, set[str]] = {"a": {"b", "c"}, "b": {"d"}, "c": {"d"}, "d": set()}
    assert circle_in(chain) == [] and longest_chain(chain) in (["a", "b", "d"], ["a", "c", "d"])
    assert circle_in({**chain, "d": {"c"}}) in (["c", "d", "c"], ["d", "c", "d"])


@pytest.mark.parametrize("package", ORDER)
def test_folders_import_only_from_those_before_them(graph: dict[str, set[str]], package: str) -> None:
    rank = {folder: number for number, folder in enumerate(ORDER[package])}
    for module, imported in within(package, graph).items():
        if module == package:
            continue
        folder = module.split(".")[1]
        assert folder in rank, f"{module}: give {folder} a place in ORDER"
        for name in imported - {package}:
            other = name.split(".")[1]
            assert rank[other] <= rank[folder], f"{module} imports {name}, but {folder} comes before {other}"
            assert frozenset({folder, other}) not in UNRELATED, f"{module} imports {name}"


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_folder_is_crowded(package: str) -> None:
    folders = Counter(str(path.parent.relative_to(ROOT)) for path in MODULES.values() if path.name != "__init__.py")
    for folder, modules in folders.items():
        if folder.split("/")[0] == package:
            assert modules <= MOST_MODULES, f"{folder} has {modules} modules"


@pytest.mark.parametrize("package", DEEPEST)
def test_imports_are_not_deep(graph: dict[str, set[str]], package: str) -> None:
    chain = longest_chain(within(package, graph))
    assert len(chain) <= DEEPEST[package], f"{len(chain)} deep: {' imports '.join(chain)}"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert COMMANDS[command][1] in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("arguments", [["--help"], *[[command, "--help"] for command in COMMANDS]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from slm.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'lhotse', 'jinja2', 'datasets'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
