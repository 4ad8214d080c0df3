"""The house stands: imports go down and never in circles, nothing grows too long, and what is said of it is true."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.guide_pages import PARTS, between, tree

PACKAGE = ROOT / "florence2ner"
FILES = sorted(PACKAGE.rglob("*.py"))
FLOORS = {
    **dict.fromkeys(("errors", "display", "chart", "process", "metrics", "optim"), 0),
    **dict.fromkeys(("files", "config", "model", "guide"), 1),
    **dict.fromkeys(("engine", "data", "outputs", "report"), 2),
    **dict.fromkeys(("training", "watching", "evaluation", "captioning", "inspection", "review"), 3),
    **dict.fromkeys(("cli", "demo", "__main__"), 4),
}
STRANGERS = {("engine", part) for part in ("data", "model", "config", "outputs", "report")}  # importer, imported
KNOW_ACCELERATE = {"engine", "training", "evaluation", "captioning"}
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml"}  # of modules that have another name
LONGEST_FUNCTION, LONGEST_FILE, MOST_FIELDS = 60, 350, 8


def syntax(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> Iterator[str]:
    """Names of the modules that a file imports, at any depth of its code; of what may be a module too."""
    for node in ast.walk(syntax(path)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def part_of(module: str) -> str:
    """The first name below the package."""
    return module.split(".")[1]


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


each_file = pytest.mark.parametrize("path", FILES, ids=name_of)


@each_file
def test_imports_go_down(path: Path) -> None:
    if path == PACKAGE / "__init__.py":
        return  # the public names, imported on first use
    here = part_of(module_of(path))
    for module in imported(path):
        if not module.startswith("florence2ner.") or part_of(module) not in FLOORS:
            continue
        part = part_of(module)
        assert FLOORS[part] <= FLOORS[here], f"{here} imports {part}, which stands above it"
        assert (here, part) not in STRANGERS, f"{here} must not know {part}"


def test_no_files_import_each_other_in_a_circle() -> None:
    modules = {module_of(path): path for path in FILES if path != PACKAGE / "__init__.py"}
    graph = {
        module: {name for name in imported(path) if name in modules and name != module}
        for module, path in modules.items()
    }
    order = [*TopologicalSorter(graph).static_order()]  # raises CycleError, which names the circle
    assert set(order) == modules.keys()


@each_file
def test_accelerate_is_for_the_engine_and_the_commands(path: Path) -> None:
    if any(module.split(".")[0] == "accelerate" for module in imported(path)):
        assert part_of(module_of(path)) in KNOW_ACCELERATE


@each_file
def test_files_functions_and_calls_fit_in_one_head(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE
    for node in ast.walk(syntax(path)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < LONGEST_FUNCTION, f"{node.name} is too long"
        if isinstance(node, ast.ClassDef):
            decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
            if any("dataclass" in text and "kw_only=True" not in text for text in decorators):
                fields = [line for line in node.body if isinstance(line, ast.AnnAssign)]
                given = [line for line in fields if "init=False" not in ast.unparse(line)]
                assert len(given) <= MOST_FIELDS, f"{node.name} has too many fields that are given by position"


@each_file
def test_the_test_of_a_file_is_found_by_its_name(path: Path) -> None:
    relative = path.relative_to(PACKAGE)
    if str(relative) in ("__init__.py", "__main__.py"):
        return  # the public names are looked at here, and every test that starts a command runs the other
    if path.name == "__init__.py" and not path.read_text():
        return  # it only makes a folder a package
    name = relative.stem if relative.stem != "__init__" else relative.parent.name
    assert (ROOT / "tests" / relative.parent / f"test_{name}.py").is_file()


def test_what_is_imported_is_declared() -> None:
    """Whatever a library of ours pulls in may be gone with its next release."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for extra, lines in project["optional-dependencies"].items() if extra != "dev" for line in lines]
    declared = {re.match(r"[\w-]+", line)[0] for line in (*project["dependencies"], *extras)}
    roots = {module.split(".")[0] for path in FILES for module in imported(path)}
    outside = roots - {*sys.stdlib_module_names, "florence2ner"}
    assert {DISTRIBUTIONS.get(name, name).replace("_", "-") for name in outside} <= declared


def test_importing_the_package_does_not_import_torch() -> None:
    code = (
        "import sys, florence2ner, florence2ner.cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_importing_the_package_changes_no_other() -> None:
    """Every file of it, after everything that these import from elsewhere: their own doing is not ours."""
    modules = [module_of(path) for path in FILES if path.name != "__main__.py"]
    outside = {name.split(".")[0] for path in FILES for name in imported(path)} - {"florence2ner", ""}
    code = f"""
import importlib, logging, os, signal, sys, warnings
for name in {sorted(outside)}: importlib.import_module(name)
import transformers.models.florence2.modeling_florence2, torchvision, timm.optim
from huggingface_hub.utils import are_progress_bars_disabled
from transformers.utils import logging as transformers_logging
def state():
    return (
        transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled(),
        are_progress_bars_disabled(), list(warnings.filters), warnings.showwarning, dict(os.environ),
        logging.root.level, list(logging.root.handlers), signal.getsignal(signal.SIGTERM), sys.excepthook,
        sorted(transformers.AttentionInterface._global_mapping),
    )
before = state()
for name in {modules}: importlib.import_module(name)
assert state() == before, (before, state())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_public_names_are_what_they_say() -> None:
    import florence2ner
    from florence2ner.captioning.caption import caption
    from florence2ner.training.train import train

    assert florence2ner.train is train
    assert florence2ner.caption is caption
    assert all(callable(getattr(florence2ner, name)) for name in florence2ner.__all__)
    assert not {path.stem for path in PACKAGE.iterdir()} & {*florence2ner.__all__}, "a file would hide a public name"
    with pytest.raises(AttributeError, match="has no attribute 'tarin'"):
        florence2ner.tarin  # noqa: B018


@pytest.mark.parametrize("path", sorted((ROOT / "accelerate_configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_its_configs(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    when, command, *_ = path.read_text().splitlines()
    assert when.startswith("# When: ")
    assert command.startswith(f"# Run:  accelerate launch --config_file accelerate_configs/{path.name} ")
    config = load_config_from_file(str(path))
    # Accelerate drops no key silently: what it read is what the file says.
    for key, value in yaml.safe_load(path.read_text()).items():
        assert str(getattr(config, key)).split(".")[-1] == str(value).split(".")[-1], key


def test_all_six_configs_are_there() -> None:
    names = {path.stem for path in (ROOT / "accelerate_configs").iterdir()}
    assert names == {"single_gpu", "multi_gpu", "multi_node", "fsdp", "deepspeed_zero2", "cpu"}


@pytest.mark.parametrize("page", PARTS)
def test_what_the_guide_says_of_settings_and_files_is_true(page: str) -> None:
    mark, make = PARTS[page]
    text = (PACKAGE / "guide" / f"{page}.md").read_text(encoding="utf-8")
    assert between(mark, make()) in text, f"{page}.md is not true any more: run python -m tests.guide_pages"


def test_the_tree_has_every_file_once() -> None:
    lines = [line.split()[0] for line in tree().splitlines()]
    said = [path for path in FILES if path.name != "__init__.py" or path.read_text()]
    for path in said:
        assert lines.count(path.name) == sum(other.name == path.name for other in said), path


def test_the_table_of_floors_is_true() -> None:
    page = (PACKAGE / "guide" / "house.md").read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip(): line.split("|")[2] for line in page.splitlines() if line.startswith("| ")}
    for part, floor in FLOORS.items():
        assert f"`{part}/`" in rows[str(floor)] or f"`{part}.py`" in rows[str(floor)], part


def test_the_readme_is_a_front_page_that_leads_to_the_guide() -> None:
    from florence2ner.guide import topics

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 250
    assert all(f"(florence2ner/guide/{topic}.md)" in readme for topic in topics())


def test_every_link_leads_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(PACKAGE / "guide").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        for before, after in pairwise(text.split("](")):
            target, _, anchor = after.partition(")")[0].partition("#")
            if not target.startswith("http"):
                found = page.parent / target if target else page
                assert found.exists(), f"{page.name}: [{before.rpartition('[')[2]}]({target})"
                if anchor:
                    lines = found.read_text(encoding="utf-8").splitlines()
                    titles = [line.lstrip("# ").lower().replace(" ", "-") for line in lines]
                    assert anchor in titles, f"{page.name}: {target}#{anchor}"
