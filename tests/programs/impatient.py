"""The command line with little patience: `python -m tests.programs.impatient SECONDS ARGS`, for `caption` and `eval`.

So long may a collective operation take, and so long may a process give no sign of life.
"""

import sys
from datetime import timedelta
from functools import partial

from florence2ner import cli
from florence2ner.captioning import shards, worker
from florence2ner.engine.queue import WorkQueue
from florence2ner.engine.runtime import make_accelerator
from florence2ner.evaluation import samples

if __name__ == "__main__":
    seconds = float(sys.argv.pop(1))
    worker.make_accelerator = shards.make_accelerator = partial(make_accelerator, timeout=timedelta(seconds=seconds))
    worker.WorkQueue = shards.WorkQueue = samples.WorkQueue = partial(WorkQueue, patience=seconds)
    cli.main()
