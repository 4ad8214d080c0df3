"""The README's table of settings, made from the config model. `python -m tests.readme` writes it in."""

import re
from pathlib import Path

from florence2ner.config.base import Config
from florence2ner.config.commands import TrainConfig

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- settings: begin -->\n", "<!-- settings: end -->\n"


def settings_table(config: type[Config]) -> str:
    """A Markdown table of every setting: YAML key (the flag has dashes), default, meaning; grouped as in --help."""
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
        return " ".join(default)
    return f"`{default}`" if isinstance(default, str) and default.startswith("<") else str(default or "none")


if __name__ == "__main__":
    text = README.read_text(encoding="utf-8")
    table = BEGIN + settings_table(TrainConfig) + END
    README.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: table, text, flags=re.DOTALL), encoding="utf-8")
