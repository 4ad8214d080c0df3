"""The command line. The only folder that uses Typer; it imports no torch, so that `--help` answers at once."""

from florence2ner.cli import runs, tools  # they register their commands, in the order of `--help`
from florence2ner.cli.app import main

__all__ = ["main", "runs", "tools"]
