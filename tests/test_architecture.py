"""The rooms of the package: which may import which, read from the import statements."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "ppa_jax"
FILES = {
    ".".join(("ppa_jax", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def imported_modules(path, only_at_top=False):
    """The package's modules that a file imports; local imports, within functions, among them unless `only_at_top`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in tree.body if only_at_top else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found & FILES.keys()


def room(module):
    """`model` of ppa_jax.model.bert, "" of ppa_jax.config."""
    parts = module.split(".")
    return parts[1] if len(parts) > 2 or (FILES[module].name == "__init__.py" and len(parts) > 1) else ""


IMPORTS = {module: imported_modules(path) for module, path in FILES.items()}


def test_imports_are_found():
    assert "ppa_jax.jobs.align.setup" in IMPORTS["ppa_jax.jobs.align.run"]
    assert room("ppa_jax.model.bert") == "model" and room("ppa_jax.config") == ""


def test_model_and_objectives_import_nothing_above_them():
    rooms = {room(x) for module in FILES if room(module) in ("model", "objectives") for x in IMPORTS[module]}
    assert rooms <= {"model", "objectives", ""}


def test_only_main_and_jobs_know_jobs_and_only_main_knows_studies():
    for module, found in IMPORTS.items():
        used = {room(x) for x in found}
        assert "studies" not in used or room(module) == "studies", module
        assert "jobs" not in used or room(module) in ("jobs", "studies"), module


def test_studies_know_no_step_and_no_other_study():
    for module in (x for x in FILES if x.startswith("ppa_jax.studies.")):
        study = module.split(".")[2]
        for found in IMPORTS[module]:
            assert not found.startswith("ppa_jax.jobs.align."), f"{module} reaches into the alignment"
            assert not found.endswith(".method"), f"{module} reaches into a step"
            others = found.startswith("ppa_jax.studies.") and FILES[found].parent.name not in ("studies", study)
            assert not others, f"{module} imports {found}"


def test_there_is_no_import_circle():
    graph = {module: imported_modules(path, only_at_top=True) - {module} for module, path in FILES.items()}
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError, with the circle
