"""What of the guide is made from the code: the tables of settings and metrics, and the tree.

Each stands between two comments in its page. `python -m tests.guide_pages` writes them.
"""

import ast
from pathlib import Path

from florence2ner.config.base import Config
from florence2ner.config.commands import CaptionConfig, EvalConfig, InspectConfig, ReviewConfig, TrainConfig
from florence2ner.metrics.table import METRICS

PACKAGE = Path(__file__).resolve().parents[1] / "florence2ner"
COMMANDS = {
    "train": TrainConfig,
    "eval": EvalConfig,
    "caption": CaptionConfig,
    "inspect": InspectConfig,
    "review": ReviewConfig,
}


def settings_tables() -> str:
    """For each command a Markdown table of its settings: YAML key, default, meaning; grouped as in --help."""
    return "\n".join(f"## {name}\n\n{_settings_table(config)}" for name, config in COMMANDS.items())


def tree() -> str:
    """Every file of the package, with what it says of itself."""
    lines = ["```", "florence2ner/", *_branch(PACKAGE, "    "), "```"]
    return "\n".join(lines) + "\n"


def metrics_table() -> str:
    """A Markdown table of the metrics."""
    lines = ["| name | | what it is | better | needs |", "|---|---|---|---|---|"]
    goals = {"higher": "higher", "lower": "lower", "one": "nearer to 1"}
    for name, metric in METRICS.items():
        needs = f"`pip install '{metric.package}'`" if metric.package else ""
        lines.append(f"| `{name}` | {metric.label} | {metric.meaning} | {goals[metric.goal]} | {needs} |")
    return "\n".join(lines) + "\n"


# page: mark, text
PARTS = {
    "settings": ("settings", settings_tables),
    "house": ("tree", tree),
    "evaluation": ("metrics", metrics_table),
}


def between(mark: str, text: str) -> str:
    """A part of a page as it stands between its comments."""
    return f"<!-- {mark}: begin -->\n\n{text}\n<!-- {mark}: end -->\n"


def _settings_table(config: type[Config]) -> str:
    panels: dict[str, list[str]] = {}
    for name, field in config.model_fields.items():
        default = "needed" if field.is_required() else _shown(field.default)
        row = f"| `{name}` | {default} | {(field.description or '').replace('|', chr(92) + '|')} |"
        panels.setdefault(config.panel_of(name), []).append(row)
    lines = ["| key | default | meaning |", "|---|---|---|"]
    for panel, rows in panels.items():
        lines += [f"| **{panel}** | | |", *rows]
    return "\n".join(lines) + "\n"


def _shown(default: object) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return " ".join(map(_shown, default)) or "none"
    if isinstance(default, str) and (default.startswith("<") or not default.strip()):
        return f'`"{default}"`' if not default.strip() else f"`{default}`"
    return "none" if default is None else str(default)


def _branch(folder: Path, indent: str) -> list[str]:
    lines = []
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_dir(), path.name)):
        if path.is_dir() and path.name != "__pycache__":
            lines += [f"{indent}{path.name}/", *_branch(path, indent + "    ")]
        elif path.suffix == ".py" and (line := _first_line(path)):
            lines.append(f"{indent}{path.name:<{32 - len(indent)}}{line}")
        elif path.suffix == ".md":
            lines.append(f"{indent}{path.name}")
    return lines


def _first_line(path: Path) -> str:
    """Of the docstring; nothing for the files that only make a folder a package."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0].removesuffix(".")


if __name__ == "__main__":
    for page, (mark, make) in PARTS.items():
        file = PACKAGE / "guide" / f"{page}.md"
        before, _, rest = file.read_text(encoding="utf-8").partition(f"<!-- {mark}: begin -->\n")
        after = rest.partition(f"<!-- {mark}: end -->\n")[2]
        file.write_text(before + between(mark, make()) + after, encoding="utf-8")
