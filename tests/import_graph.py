"""What imports what in the three packages, and a diagram of it: `python -m tests.import_graph` prints the diagram of
docs/architecture.md."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("tokenizer", "pipelines", "slm")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}


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


def import_graph() -> dict[str, set[str]]:
    """Every module of the three packages with the modules that it imports."""
    return {module: imports_of(module) for module in MODULES}


def room_of(module: str) -> str:
    """The folder of a module, below its package: "slm_training"; "slm_files" for modules directly in the package."""
    parts = module.split(".")
    is_folder = (ROOT / parts[0] / parts[1]).is_dir() if len(parts) > 1 else False
    return "_".join(parts[:2]) if is_folder else f"{parts[0]}_files"


def reduced(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """A graph without the edges that a longer path makes superfluous. Circles stay."""

    def reaches(start: str, goal: str, banned: tuple[str, str]) -> bool:
        pending, seen = [start], {start}
        while pending:
            here = pending.pop()
            for name in graph[here]:
                if (here, name) == banned or name in seen:
                    continue
                if name == goal:
                    return True
                seen.add(name)
                pending.append(name)
        return False

    return {a: {b for b in graph[a] if not reaches(a, b, (a, b))} for a in graph}


def diagram(graph: dict[str, set[str]]) -> str:
    """The imports between folders as a Mermaid flowchart; an arrow goes from what is imported to its user, and is left
    out where others already lead there."""
    graph = {module: imported for module, imported in graph.items() if module not in PACKAGES}
    rooms: dict[str, set[str]] = {room_of(module): set() for module in sorted(graph)}
    for module, imported in graph.items():
        rooms[room_of(module)] |= {room_of(name) for name in imported - set(PACKAGES)} - {room_of(module)}
    # Modules directly in a package lie between its folders, so they may import some and be imported by others.
    lines = ["flowchart LR"]
    for package in PACKAGES:
        lines.append(f"  subgraph {package}")
        for room in rooms:
            if room.startswith(f"{package}_"):
                folder = room.removeprefix(f"{package}_")
                lines.append(f'    {room}["{folder if folder != "files" else f"{package}/*.py"}"]')
        lines.append("  end")
    for user, imported in sorted(reduced(rooms).items()):
        lines += [f"  {name} --> {user}" for name in sorted(imported)]
    return "\n".join(lines)


if __name__ == "__main__":
    print(diagram(import_graph()))
