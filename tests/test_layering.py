"""The tree's rules: imports go one way and in no circle, folders stay small, and listing the commands is instant."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter

import pytest

from slm.cli import COMMANDS, main
from tests.import_graph import MODULES, ROOT, circle_in, diagram, import_graph, longest_chain, within

FORBIDDEN = {"tokenizer": {"pipelines", "slm"}, "pipelines": {"slm"}, "slm": set()}
# Folders of a package in the order in which audio becomes sound again: each imports only from folders before it. A name
# may stand for a module directly in the package. Packages without an entry are not checked.
ORDER = {
    "tokenizer": [
        "errors",
        "parsed",
        "files",
        "hub",
        "machine",
        "chunks",
        "audio_input",
        "audio",
        "inputs",
        "network",
        "config",
        "rates",
        "checkpoint",
        "model",
        "live",
        "stream_pool",
        "conversion",
        "onnx_engine",
        "codec",
        "runs",
        "metrics",
        "teachers",
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
        "token_strings",
        "model",
        "documents",
        "llama_cpp",
        "llama",
        "checkpoint",
        "publishing",
        "onnx_engine",
        "generation",
        "training",
        "evaluation",
        "serve",
        "web",
        "demo",
        "doctor",
        "commands",
        "cli",
    ],
}
UNRELATED = {
    frozenset(pair) for pair in [("report", "evaluation"), ("serve", "demo"), ("evaluation", "serve")]
}  # neighbours in the order that must not import each other
MOST_MODULES = 16  # in a folder
DEEPEST = {"tokenizer": 15, "pipelines": 14, "slm": 16}  # modules in the longest chain of imports inside the package


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_go_one_way(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            imported = {name.split(".")[0] for name in names}
            assert not imported & FORBIDDEN[package], f"{path} imports {imported & FORBIDDEN[package]}"


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    """Every module of the three packages with the modules that it imports."""
    return import_graph()


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


def test_help_imports_nothing_heavy() -> None:
    """One process asks for all of it, in the order in which a heavy import is blamed on the command that brings it."""
    questions = [["--help"], *[[command, "--help"] for command in COMMANDS]]
    code = (
        "import sys; from slm.cli import main\n"
        f"for arguments in {questions!r}:\n"
        "    try: main(arguments)\n"
        "    except SystemExit: pass\n"
        "    heavy = {'torch', 'lhotse', 'jinja2', 'datasets'} & set(sys.modules)\n"
        "    if heavy: sys.exit(f'{arguments} imported {heavy}')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_the_architecture_page_shows_the_imports(graph: dict[str, set[str]]) -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert diagram(graph) in page, "run `python -m tests.import_graph` and put what it prints into docs/architecture.md"
