"""`florence2ner ARGS` under DeepSpeed on CPUs: `python -m tests.programs.deepspeed_on_cpus LAUNCH_CONFIG ARGS`.

In several processes. Accelerate doesn't start DeepSpeed where it is told to use CPUs, and asks for NCCL where it isn't:
this makes the process group, over gloo, before the command starts. LAUNCH_CONFIG is a file for
`accelerate launch --config_file`, and read as that reads it.
"""

import os
import sys
from datetime import timedelta

from florence2ner.display import hide_lines_of_libraries


def main(config_file: str) -> None:
    hide_lines_of_libraries()
    from accelerate import PartialState
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils import is_deepspeed_available
    from accelerate.utils.launch import prepare_deepspeed_cmd_env

    words = ["--config_file", config_file, "--num_processes", os.environ["WORLD_SIZE"], "--main_process_port", "0"]
    args, *_ = _validate_launch_command(launch_command_parser().parse_args([*words, "florence2ner"]))
    args.deepspeed_fields_from_accelerate_config = ""  # a DeepSpeed JSON would be checked against them
    _, told = prepare_deepspeed_cmd_env(args)
    os.environ.update({name: value for name, value in told.items() if name.startswith("ACCELERATE_")})
    del os.environ["ACCELERATE_USE_CPU"]
    if is_deepspeed_available():
        from deepspeed.ops import __compatible_ops__

        __compatible_ops__["deepspeed_shm_comm"] = False  # compiling it takes a minute, and gloo does without
        PartialState(backend="gloo", timeout=timedelta(minutes=3))


if __name__ == "__main__":
    main(sys.argv.pop(1))

    from florence2ner.cli import main as florence2ner

    florence2ner()
