"""The house stays a house: which room may import which, what each loads, and that the README's tree is true."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("jobs", "pipeline", "model")  # each may import itself and what stands to the right of it
LATE = {
    ("pipeline.replica", name) for name in ("model.engine", "model.engine_options")
}  # inside the actor, so that nobody else loads torch
DOORS = {
    "model.checkpoint",
    "model.config",
    "model.footprint",
    "model.preprocessing",
    "model.processor",
    "model.engine",
    "model.engine_options",
    "model.request",
}  # how the pipeline may enter the model
ONE_ROOM = {  # foreign libraries that one room alone (or two) may know, pipeline and model only
    "boto3": {"pipeline.store"},
    "botocore": {"pipeline.store"},
    "pikepdf": {"pipeline.pdf_layers", "pipeline.pdf_structure", "pipeline.pdf_tree"},
    "pypdfium2": {"pipeline.pdf", "pipeline.pdf_text"},
    "tifffile": {"pipeline.rare_images"},
    "imagecodecs": {"pipeline.rare_images"},
}


def modules() -> dict[str, ast.Module]:
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).glob("*.py"))]
    return {f"{path.parent.name}.{path.stem}": ast.parse(path.read_text()) for path in paths if path.stem != "__init__"}


def imports_of(tree: ast.Module) -> set[tuple[str, bool]]:
    """(imported module, whether at the top of the file)."""
    top = set(tree.body)
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {(alias.name, node in top) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "no relative imports"
            found.add((node.module or "", node in top))
    return found


def house_imports() -> dict[str, set[str]]:
    return {
        name: {imported for imported, _ in imports_of(tree) if imported.split(".")[0] in PACKAGES}
        for name, tree in modules().items()
    }


def test_imports_point_down():
    for name, imported in house_imports().items():
        allowed = PACKAGES[PACKAGES.index(name.split(".")[0]) :]
        wrong = {other for other in imported if other.split(".")[0] not in allowed}
        assert not wrong, f"{name} imports {wrong}"


def test_there_is_no_cycle_not_even_a_lazy_one():
    graph = house_imports()
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path, name])
        if name not in done:
            for other in sorted(graph.get(name, ())):
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_imports_stand_at_the_top_of_the_file():
    late = {
        (name, imported)
        for name, tree in modules().items()
        for imported, is_top in imports_of(tree)
        if not is_top and imported.split(".")[0] in PACKAGES
    }
    assert late <= LATE


def test_the_pipeline_enters_the_model_by_its_doors():
    for name, imported in house_imports().items():
        if name.startswith("pipeline."):
            inside = {other for other in imported if other.startswith("model.")}
            assert inside <= DOORS, f"{name} imports {inside - DOORS}"


@pytest.mark.parametrize("library", sorted(ONE_ROOM))
def test_a_foreign_library_has_one_room(library):
    users = {
        name
        for name, tree in modules().items()
        if not name.startswith("jobs.")
        for imported, _ in imports_of(tree)
        if imported.split(".")[0] == library
    }
    assert users <= ONE_ROOM[library]


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import jobs.parse_documents, pipeline.flow, pipeline.decode", "torch"),
        ("import model.processor, model.request, model.cache, model.scheduler", "torch"),
        ("import model.engine, model.weights", "ray"),
        ("import model.engine, model.weights", "torch._dynamo"),
    ],
)
def test_what_is_not_needed_is_not_loaded(statement, absent):
    code = f"{statement}; import sys; sys.exit({absent!r} in sys.modules)"
    no_gpu = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=no_gpu, check=False).returncode == 0


def test_every_file_says_what_it_is_for():
    for name, tree in modules().items():
        assert ast.get_docstring(tree), f"{name} has no docstring"


def test_the_file_tree_of_the_readme_is_true():
    tree = (ROOT / "README.md").read_text().split("## The house")[1].split("```")[1]
    listed = {line.split()[0] for line in tree.splitlines() if line.strip()}
    files = {path.name for package in PACKAGES for path in (ROOT / package).glob("*.py") if path.stem != "__init__"}
    assert files <= listed, f"not in the README's tree: {sorted(files - listed)}"
    gone = {name for name in listed if name.endswith(".py")} - files
    assert not gone, f"in the README's tree, but not there: {sorted(gone)}"
