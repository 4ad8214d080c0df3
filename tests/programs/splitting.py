"""Find and split the dataset in a folder: `python -m tests.programs.splitting FOLDER`, in a process of its own.

Prints as JSON the samples on both sides, the seconds of processor time and the largest memory in bytes.
"""

import json
import re
import sys
import time
from pathlib import Path

from florence2ner.config.options import ReadingOptions
from florence2ner.config.roots import Root
from florence2ner.data.split import SplitRule, discover_split


def peak_memory() -> int:
    """The most bytes that were resident since this program began; `ru_maxrss` would count who started it, too."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found
    return int(found[1]) * 1024


if __name__ == "__main__":
    root = Root(Path(sys.argv[1]), ReadingOptions())
    start = time.process_time()
    split, _ = discover_split([root], rule=SplitRule(seed=1, ratio=0.1))
    figures = {
        "train": len(split.train),
        "eval": len(split.eval),
        "seconds": time.process_time() - start,
        "memory": peak_memory(),
    }
    print(json.dumps(figures))
