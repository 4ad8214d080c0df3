"""Runs `florence2ner ARGS`, then prints the most memory that the process has had, in bytes. Needs Linux."""

import re
from pathlib import Path

from florence2ner.cli import main

if __name__ == "__main__":
    try:
        main()
    finally:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert found
        print(1024 * int(found[1]))
