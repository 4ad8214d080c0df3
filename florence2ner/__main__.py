"""Entry point of `florence2ner` and `python -m florence2ner`; `accelerate launch -m florence2ner` runs it everywhere.

It imports next to nothing before it is ready for Ctrl-C.
"""

import os
import signal
import sys
from types import FrameType


def main() -> None:
    """Run the command line: see `florence2ner.cli.main`."""
    signal.signal(signal.SIGINT, _interrupt)
    from florence2ner import cli

    cli.main()


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt; but in the midst of an import, end the process here, with the line that `cli` prints.

    Libraries catch what is raised while they are imported, and go on or fail at another place with a traceback.
    """
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            if os.environ.get("RANK", "0") == "0":
                os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, b"interrupted\n")
            os._exit(128 + number)
        frame = frame.f_back
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
