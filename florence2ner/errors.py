"""The exceptions that end a command without a traceback: `cli/app.py` prints each as one line."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake that the user can mend. The message is one line that says what is wrong and what to do; exit code 2."""


class InUse(UserError):
    """Another run has the file or folder. The message says which."""


class Interrupted(Exception):
    """A run was stopped by a signal, after everything was saved. Exit code 128 + `signal`."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """' Did you mean ...?' for the known word nearest to `word`, or '' when none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {near[0]}?" if near else ""
