"""`florence2ner ARGS` under FSDP2 on CPUs: `python -m tests.programs.fsdp LAUNCH_CONFIG ARGS`, in several processes.

Accelerate shards on GPUs only. This tells it that the processes are those of several GPUs, before the command starts;
LAUNCH_CONFIG is a file for `accelerate launch --config_file`, and read as that reads it.
"""

import os
import sys
from datetime import timedelta

from accelerate import PartialState
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env


def main(config_file: str) -> None:
    processes = os.environ["WORLD_SIZE"]
    words = ["--config_file", config_file, "--num_processes", processes, "florence2ner"]
    args, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    told = prepare_multi_gpu_env(args)
    os.environ.update({name: value for name, value in told.items() if name.startswith(("FSDP_", "ACCELERATE_"))})
    os.environ["ACCELERATE_USE_CPU"] = "true"
    PartialState(cpu=True, timeout=timedelta(minutes=3))
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


if __name__ == "__main__":
    main(sys.argv.pop(1))

    from florence2ner.cli import main as florence2ner

    florence2ner()
