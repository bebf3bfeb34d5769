"""The house rules, kept by a test: contracts, sizes, docstrings, dependencies, and nothing of one machine.

It reads files and imports only the linter of imports.
"""

from __future__ import annotations

import ast
import re
import socket
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
CODE = ("adapters", "service", "benchmarks", "tests")
LONGEST_FILE = 300
RUN_TIME = ("adapters", "service")
CLIENT = "client/adaptserve_client"
OWN = (*CODE, "adaptserve_client")


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements(*extras: str) -> list[Requirement]:
    optional = project()["optional-dependencies"]
    lines = [*project()["dependencies"], *(line for extra in extras for line in optional[extra])]
    return [Requirement(line) for line in lines]


def pins() -> dict[str, Version]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in lines)}


def imported(path: Path) -> set[str]:
    """Top-level names that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        named(p)
        for p in python_files(*CODE, CLIENT)
        if p.stat().st_size and not ast.get_docstring(ast.parse(p.read_text()))
    ]
    assert silent == []


def test_no_file_outgrows_its_bound() -> None:
    lengths = {named(p): len(p.read_text().splitlines()) for p in python_files(*RUN_TIME, CLIENT)}
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE} == {}


def test_no_two_classes_have_one_name() -> None:
    places: dict[str, list[str]] = {}
    for path in python_files(*RUN_TIME, CLIENT):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(named(path))
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_import_contracts_hold() -> None:
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_the_pure_parts_of_adapters_load_no_torch() -> None:
    """Front ends consist of them: a fresh interpreter imports all that the contract names, and all that is in those."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (pure,) = (c for c in contracts if c["name"] == "the pure parts of adapters know no torch")
    names = [m for name in pure["source_modules"] for m in modules_of(name)]
    assert "adapters.media.preprocess" in names
    code = f"import sys, {', '.join(names)}; print(sorted(set({pure['forbidden_modules']}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def modules_of(name: str) -> list[str]:
    """A module, and those in it if it is a package."""
    folder = ROOT / name.replace(".", "/")
    return [name, *(f"{name}.{path.stem}" for path in sorted(folder.glob("[!_]*.py")))]


@pytest.mark.parametrize(
    ("folders", "extras"),
    [(RUN_TIME, ("train", "otel", "heic", "store", "ray")), (CODE, ("test", "train", "peers"))],
    ids=["run time", "tests and benchmarks"],
)
def test_every_import_is_declared(folders: tuple[str, ...], extras: tuple[str, ...]) -> None:
    declared = {canonicalize_name(r.name) for r in requirements(*extras)}
    owners = packages_distributions()
    foreign = {
        name: named(path)
        for path in python_files(*folders)
        for name in imported(path)
        if name not in sys.stdlib_module_names and name not in OWN
    }
    lost = {
        n: where for n, where in foreign.items() if not declared & {canonicalize_name(d) for d in owners.get(n, [n])}
    }
    assert lost == {}


def test_the_client_needs_httpx_alone() -> None:
    """At run time; what stands under TYPE_CHECKING is never imported. The same httpx as the whole project's."""
    client = tomllib.loads((ROOT / "client/pyproject.toml").read_text())["project"]
    (needs,) = map(Requirement, client["dependencies"])
    assert needs in requirements()
    code = "import sys, adaptserve_client; print(sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    heavy = {"torch", "numpy", "pydantic", "fastapi", "typer", "adapters", "service", "typing_extensions"}
    assert not heavy & set(ast.literal_eval(done.stdout))


def test_only_training_imports_the_train_extra() -> None:
    extra = {"sklearn"}
    users = {named(path) for path in python_files("adapters", "service") if imported(path) & extra}
    assert all(name.startswith("adapters/training/") for name in users), users


def test_every_dependency_is_pinned_within_its_range() -> None:
    pinned = pins()
    for requirement in requirements("test", "train", "otel", "heic", "peers"):
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"constraints.txt lacks {name}"
        assert pinned[name] in requirement.specifier, f"{name} is pinned to {pinned[name]}, outside {requirement}"


def test_constraints_name_no_place() -> None:
    text = (ROOT / "constraints.txt").read_text()
    assert not re.search(r"://|@|^-|[\\/]\w", "\n".join(line for line in text.splitlines() if not line.startswith("#")))


def test_tracked_files_hold_no_path_of_one_machine() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, timeout=60).stdout
    machine = re.compile(rb"/(?:root|home|Users|work)/\w|C:\\\\?Users", re.ASCII)
    allowed = {"tests/test_project.py"}
    found = []
    for name in listed.decode().split("\0"):
        path = ROOT / name
        if not name or name in allowed or not path.is_file() or b"\0" in path.read_bytes()[:4096]:
            continue
        lines = path.read_bytes().splitlines()
        found += [
            f"{name}:{i}: {line.decode(errors='replace')}" for i, line in enumerate(lines, 1) if machine.search(line)
        ]
    assert found == []


def test_the_network_is_out_of_reach() -> None:
    with pytest.raises(PermissionError, match="stay on this machine"):
        socket.create_connection(("192.0.2.1", 9), timeout=1)
    with pytest.raises(PermissionError, match=r"example\.org"):
        socket.getaddrinfo("example.org", 80)
