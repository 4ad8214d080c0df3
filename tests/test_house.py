"""The house stands: imports go down only, the package is quick to import, the shipped configs and README are true."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from florence2ner.config.commands import TrainConfig
from tests.conftest import ROOT
from tests.readme import settings_table

PACKAGE = ROOT / "florence2ner"
FLOORS = {
    **dict.fromkeys(("errors", "display", "metrics", "optim"), 0),
    **dict.fromkeys(("files", "config", "model"), 1),
    **dict.fromkeys(("data", "outputs", "engine"), 2),
    **dict.fromkeys(("training", "evaluation", "captioning"), 3),
    **dict.fromkeys(("cli", "demo", "__main__"), 4),
}
STRANGERS = {("data", "model"), ("engine", "model")}  # importer, imported: never, though the floors would allow it


def imported_parts(path: Path) -> set[str]:
    """Parts of the package (first name below it) that a file imports, at any depth of its code."""
    parts = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module or ""] + [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        parts |= {name.split(".")[1] for name in names if name.startswith("florence2ner.")}
    return parts & FLOORS.keys()


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if here == "__init__":
        return  # the public names, imported on first use
    for part in imported_parts(path):
        assert FLOORS[part] <= FLOORS[here], f"{here} imports {part}, which stands above it"
        assert (here, part) not in STRANGERS, f"{here} must not know {part}"


def test_importing_the_package_does_not_import_torch() -> None:
    code = (
        "import sys, florence2ner, florence2ner.cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_public_names_are_what_they_say() -> None:
    import florence2ner
    from florence2ner.captioning.caption import caption
    from florence2ner.training.train import train

    assert florence2ner.train is train, "importing the file must not hide the function of the same name"
    assert florence2ner.caption is caption
    assert all(callable(getattr(florence2ner, name)) for name in florence2ner.__all__)


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


def test_the_readmes_table_of_settings_is_true() -> None:
    assert settings_table(TrainConfig) in (ROOT / "README.md").read_text(encoding="utf-8"), (
        "the table of settings has changed: run python -m tests.readme"
    )


def test_the_readme_names_every_file() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in PACKAGE.rglob("*.py"):
        if path.name != "__init__.py":
            assert f" {path.name} " in readme, path
