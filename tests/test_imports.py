"""The staircase of imports of docs/architecture.md, and the other rules a file can break by what it imports.

May live here: the rules, as data, their check over a tree of sources, and a fabricated tree per rule that
must make it fail. Nothing is imported or run: the sources are only parsed.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {"walled": ROOT / "walled", "walled_client": ROOT / "client/walled_client"}
PACKAGES["walled_bench"] = ROOT / "bench/walled_bench"

ROLES = {"walled.broker", "walled.worker", "walled.monitor", "walled.supervisor"}
ENTRY_POINTS = {"walled.__main__", "walled.child"}
CONTRACTS = {"walled.payload", "walled.protocol", "walled.link", "walled.config"}
CONTRACTS |= {"walled.schema", "walled.sections"}
# Pure data and checks that the configuration needs to refuse a broken rule at load.
CONTRACTS |= {f"walled.core.{name}" for name in ("alert_rules", "builtin_alerts", "catalogue", "leak")}

ONE_DOOR = (
    "zmq", "lmdb", "psutil", "ollama", "xllamacpp", "httpx", "setproctitle", "subprocess", "re2", "pynvml",
    "jsonschema", "referencing",
)  # fmt: skip
"""Libraries only one module of the daemon and client may import."""

SECOND_DOORS = {
    "subprocess": {"walled.adapters.cache_check", "walled.adapters.actions", "walled_client.starting"}
    | {"walled_client.profiling"},
    "httpx": {"walled.adapters.ollama", "walled.adapters.upstream"},
}
"""subprocess: neither is a child of the daemon with a link and restarts; one is the sacrificial reader of a
perhaps broken cache, one the program of an alert, one a program that starts a daemon of its own, one py-spy.
httpx: the `ollama` package takes its limits and timeouts, they are part of it; upstream tells its errors
apart for both dialects."""

IMPURE = {
    "asyncio", "concurrent", "ctypes", "datetime", "fcntl", "glob", "httpx", "io", "lmdb", "mmap",
    "jsonschema", "multiprocessing", "ollama", "os", "pathlib", "psutil", "random", "re2", "referencing",
    "secrets", "select", "selectors",
    "shutil", "signal", "socket", "ssl", "subprocess", "sys", "tempfile", "threading", "time", "urllib",
    "uuid", "xllamacpp", "zmq",
}  # fmt: skip
"""What core/ may not import: sockets, files, clocks, threads, randomness, the libraries behind the doors."""

PURE = {"signal.Signals"}
"""Names of impure modules that are only names."""

FORBIDDEN_EVERYWHERE = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"}
FORBIDDEN_CALLS = {"eval", "exec"}
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}


class Import(NamedTuple):
    target: str
    """Dotted name as written; for `from a import b`, `a.b` (b may be a module or a name in a)."""
    line: int
    type_only: bool
    """Below `if TYPE_CHECKING:`."""


class Module(NamedTuple):
    name: str
    path: Path
    tree: ast.Module
    imports: tuple[Import, ...]


# --- reading ----------------------------------------------------------------------------------------


def read_tree(packages: dict[str, Path]) -> dict[str, Module]:
    """All modules of the packages by dotted name."""
    modules = {}
    for package, directory in packages.items():
        for path in sorted(directory.rglob("*.py")):
            parts = [package, *path.relative_to(directory).with_suffix("").parts]
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
            is_package = path.name == "__init__.py"
            modules[name] = Module(name, path, tree, tuple(_imports(tree, name, is_package)))
    return modules


def _imports(tree: ast.Module, module: str, is_package: bool) -> Iterator[Import]:
    type_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, id(node) in type_only)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") if is_package else module.split(".")[:-1]
                up = package[: len(package) - node.level + 1]
                base = ".".join([*up, *([base] if base else [])])
            for alias in node.names:
                yield Import(f"{base}.{alias.name}", node.lineno, id(node) in type_only)
        elif isinstance(node, ast.Call) and _is_dynamic_import(node):
            argument = node.args[0] if node.args else None
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield Import(argument.value, node.lineno, False)


def _is_dynamic_import(node: ast.Call) -> bool:
    return ast.unparse(node.func) in ("importlib.import_module", "import_module", "__import__")


def _own(target: str, modules: dict[str, Module]) -> str | None:
    """The module of ours an import names; None for a foreign one."""
    parts = target.split(".")
    if parts[0] not in {name.split(".")[0] for name in modules}:
        return None
    for end in range(len(parts), 0, -1):
        if ".".join(parts[:end]) in modules:
            return ".".join(parts[:end])
    return parts[0]


# --- the rules --------------------------------------------------------------------------------------


def step(name: str) -> int:
    """Height of a module on the staircase: it may import its own step and those with smaller numbers."""
    if name == "walled":
        return 0
    if name == "walled.errors":
        return 1
    if name in CONTRACTS:
        return 2
    if name.startswith("walled.core"):
        return 3
    if name.startswith(("walled.adapters", "walled.models", "walled.templates", "walled.rules")):
        return 4
    if name in ROLES:
        return 5
    if name in ENTRY_POINTS:
        return 6
    if name.startswith("walled_client"):
        return 7
    if name.startswith("walled_bench"):
        return 8
    return -1


def problems(packages: dict[str, Path]) -> list[str]:
    """One line for each rule broken, with file and line."""
    modules = read_tree(packages)
    found: list[str] = []
    for module in modules.values():
        found += _module_problems(module)
        for imported in module.imports:
            target = _own(imported.target, modules)
            if target is not None:
                found += _staircase_problems(module, target, imported.line)
            elif not module.name.startswith("walled.core") or imported.target in PURE:
                continue
            elif imported.target.split(".")[0] in IMPURE:
                found.append(_line(module, imported.line, f"core imports {imported.target}"))
    found += _door_problems(modules)
    found += [f"import cycle: {' -> '.join(cycle)}" for cycle in _cycles(modules)]
    return found


def _line(module: Module, line: int, text: str) -> str:
    return f"{module.path.name}:{line}: {module.name}: {text}"


def _module_problems(module: Module) -> list[str]:
    found = []
    if step(module.name) < 0:
        found.append(_line(module, 1, "has no place on the staircase; give it one in docs/architecture.md"))
    if not (ast.get_docstring(module.tree) or "").strip():
        found.append(_line(module, 1, "does not open with a docstring saying what may live here"))
    if FORBIDDEN_NAMES & set(module.name.split(".")):
        found.append(_line(module, 1, "a file name that says nothing"))
    for imported in module.imports:
        if imported.target.split(".")[0] in FORBIDDEN_EVERYWHERE:
            found.append(_line(module, imported.line, f"imports {imported.target}"))
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
            found.append(_line(module, node.lineno, f"calls {node.func.id}"))
        if isinstance(node, ast.keyword) and node.arg == "shell" and ast.unparse(node.value) != "False":
            found.append(_line(module, node.value.lineno, "runs a shell"))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("os.fork", "os.system", "os.popen"):
            found.append(_line(module, node.lineno, f"calls {ast.unparse(node.func)}"))
    return found


def _staircase_problems(module: Module, target: str, line: int) -> list[str]:
    here, there = step(module.name), step(target)
    if here < there:
        return [_line(module, line, f"imports {target}, which stands above it on the staircase")]
    if here >= 7 and there in (5, 6):
        return [_line(module, line, f"imports {target}: roles and entry points are the daemon's own")]
    if here == 5 and there == 5 and module.name != target:
        return [_line(module, line, f"imports {target}: one role knows nothing of another")]
    return []


def _door_problems(modules: dict[str, Module]) -> list[str]:
    found = []
    for library in ONE_DOOR:
        doors = sorted(
            {
                module.name
                for module in modules.values()
                if step(module.name) < 8
                for imported in module.imports
                if imported.target.split(".")[0] == library
            }
            - SECOND_DOORS.get(library, set())
        )
        if len(doors) > 1:
            found.append(f"{library} has more than one door: {', '.join(doors)}")
        found += [
            f"{library} is imported outside walled.adapters: {door}"
            for door in doors
            if not door.startswith("walled.adapters.")
        ]
    return found


def _cycles(modules: dict[str, Module]) -> list[list[str]]:
    """Import cycles among our modules; imports for type checkers only do not count."""
    edges = {
        name: sorted(
            {
                target
                for imported in module.imports
                if not imported.type_only
                and (target := _own(imported.target, modules)) is not None
                and target != name
            }
        )
        for name, module in modules.items()
    }
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> None:
        if name in trail:
            found.append([*trail[trail.index(name) :], name])
            return
        if name in done:
            return
        for target in edges[name]:
            visit(target, [*trail, name])
        done.add(name)

    for name in edges:
        visit(name, [])
    return found


# --- the project keeps them -------------------------------------------------------------------------


def test_the_project_keeps_the_rules() -> None:
    assert problems(PACKAGES) == []


def test_every_library_behind_a_door_has_one() -> None:
    """A door that nobody opens would make the rule vacuous."""
    imported = {
        found.target.split(".")[0] for module in read_tree(PACKAGES).values() for found in module.imports
    }
    behind_doors = {"zmq", "lmdb", "psutil", "setproctitle", "subprocess"}
    assert behind_doors <= imported


def test_the_whole_project_was_read() -> None:
    names = set(read_tree(PACKAGES))
    assert {"walled", "walled.core.broker", "walled.adapters.sockets", *ROLES, *ENTRY_POINTS} <= names
    assert "walled_client.client" in names


# --- what is imported is declared, what is declared is explained ------------------------------------

PROGRAMS = {"py-spy"}
"""Packages that bring a program, which is run and not imported."""

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def declared(lists: list[list[str]]) -> set[str]:
    """Names of packages, without versions and without the project itself."""
    names = {re.split(r"[\[<>=~! ;]", item)[0] for items in lists for item in items}
    return names - {"walled"}


def test_every_package_that_is_imported_is_declared() -> None:
    extras = [items for name, items in PROJECT["optional-dependencies"].items() if name != "dev"]
    known = {"pyzmq": "zmq", "google-re2": "re2", "nvidia-ml-py": "pynvml"}
    packages = {known.get(name, name) for name in declared([PROJECT["dependencies"], *extras])}
    ours = {"walled", "walled_client", "walled_bench"}
    imported = {
        found.target.split(".")[0]
        for module in read_tree(PACKAGES).values()
        for found in module.imports
        if not found.type_only
    }
    assert imported - set(sys.stdlib_module_names) - ours <= packages
    assert packages - PROGRAMS <= imported


def test_every_dependency_is_explained_in_the_documents() -> None:
    page = (ROOT / "docs/dependencies.md").read_text("utf-8")
    explained = set(re.findall(r"^\| ([a-z][\w-]*) \|", page, re.M)) - {"package"}
    assert explained == declared([PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()])


def test_the_doors_the_documents_name_are_the_real_ones() -> None:
    page = (ROOT / "docs/dependencies.md").read_text("utf-8")
    modules = read_tree(PACKAGES)
    stated = {}
    for line in page.splitlines():
        path = re.search(r"\| (walled/[\w/]+)\.py \|", line)
        if path:
            stated[line.split("|")[1].strip()] = path[1].replace("/", ".")
    assert {"lmdb", "pyzmq", "ollama"} <= set(stated)
    for package, name in stated.items():
        library = {"pyzmq": "zmq", "google-re2": "re2", "nvidia-ml-py": "pynvml"}.get(package, package)
        assert any(found.target.split(".")[0] == library for found in modules[name].imports), (package, name)


# --- and the check sees it when they are broken -----------------------------------------------------

DOC = '"""May live here: a test."""\n'


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"walled/errors.py": DOC + "from walled import protocol\n"}, "above it on the staircase"),
        ({"walled/protocol.py": DOC + "from walled.core.broker import x\n"}, "above it on the staircase"),
        ({"walled/core/a.py": DOC + "from walled.adapters import sockets\n"}, "above it on the staircase"),
        ({"walled/core/a.py": DOC + "from ..adapters.sockets import Hub\n"}, "above it on the staircase"),
        ({"walled/adapters/b.py": DOC + "import walled.broker\n"}, "above it on the staircase"),
        ({"walled/broker.py": DOC + "def f():\n    from walled import child\n"}, "above it on the staircase"),
        ({"walled/worker.py": DOC + "import walled_client.client\n"}, "above it on the staircase"),
        ({"walled/config.py": DOC + "import walled_bench.load\n"}, "above it on the staircase"),
        ({"client/walled_client/d.py": DOC + "import walled_bench.load\n"}, "above it on the staircase"),
        (
            {"walled/adapters/b.py": DOC + "import importlib\nimportlib.import_module('walled.broker')\n"},
            "above it on the staircase",
        ),
        ({"client/walled_client/d.py": DOC + "from walled.broker import main\n"}, "the daemon's own"),
        ({"bench/walled_bench/load.py": DOC + "from walled import child\n"}, "the daemon's own"),
        ({"walled/worker.py": DOC + "from walled import broker\n"}, "one role knows nothing of another"),
        ({"walled/core/a.py": DOC + "import time\n"}, "core imports time"),
        ({"walled/core/a.py": DOC + "from os import path\n"}, "core imports os.path"),
        ({"walled/core/a.py": DOC + "def f():\n    import random\n"}, "core imports random"),
        ({"walled/adapters/b.py": DOC + "import zmq\n"}, "zmq has more than one door"),
        ({"client/walled_client/d.py": DOC + "import lmdb\n"}, "outside walled.adapters"),
        ({"walled/broker.py": DOC + "import subprocess\n"}, "outside walled.adapters"),
        (
            {
                "walled/core/a.py": DOC + "import walled.core.c\n",
                "walled/core/c.py": DOC + "from walled.core import a\n",
            },
            "import cycle",
        ),
        ({"walled/core/a.py": "x = 1\n"}, "docstring"),
        ({"walled/core/utils.py": DOC}, "says nothing"),
        ({"walled/strange.py": DOC}, "no place on the staircase"),
        ({"walled/core/a.py": DOC + "import pickle\n"}, "imports pickle"),
        ({"walled/core/a.py": DOC + "eval('1')\n"}, "calls eval"),
        ({"walled/adapters/b.py": DOC + "run('x', shell=True)\n"}, "runs a shell"),
        ({"walled/adapters/b.py": DOC + "import os\nos.fork()\n"}, "os.fork"),
    ],
)
def test_a_tree_that_breaks_a_rule_is_caught(tmp_path: Path, files: dict[str, str], expected: str) -> None:
    found = problems(fabricated(tmp_path, files))
    assert any(expected in problem for problem in found), found


def test_a_sound_tree_is_not_blamed(tmp_path: Path) -> None:
    sound = {
        "walled/core/a.py": DOC
        + "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from walled.core import c\n",
        "walled/core/c.py": DOC + "from walled.core import a\nfrom walled.errors import x\n",
        "bench/walled_bench/load.py": DOC + "import subprocess, psutil\nimport walled_client.client\n",
    }
    assert problems(fabricated(tmp_path, sound)) == []


def fabricated(directory: Path, files: dict[str, str]) -> dict[str, Path]:
    """A small sound tree with some files replaced or added."""
    base = {
        "walled/__init__.py": DOC,
        "walled/errors.py": DOC,
        "walled/protocol.py": DOC + "from walled.errors import x\n",
        "walled/config.py": DOC,
        "walled/core/__init__.py": DOC,
        "walled/core/broker.py": DOC + "from walled import protocol\n",
        "walled/adapters/__init__.py": DOC,
        "walled/adapters/sockets.py": DOC + "import zmq\n",
        "walled/broker.py": DOC + "from walled.adapters.sockets import Hub\n",
        "walled/worker.py": DOC,
        "walled/child.py": DOC + "from walled import broker\n",
        "client/walled_client/__init__.py": DOC,
        "client/walled_client/client.py": DOC + "from walled.adapters import sockets\n",
        "bench/walled_bench/__init__.py": DOC,
        "bench/walled_bench/load.py": DOC + "from walled_client import client\n",
    }
    for name, text in {**base, **files}.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return {
        "walled": directory / "walled",
        "walled_client": directory / "client/walled_client",
        "walled_bench": directory / "bench/walled_bench",
    }
