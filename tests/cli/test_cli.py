"""The command line as a whole: help at once, and help where no command is given."""

import resource

from tests.conftest import ColdStart


def test_help_answers_at_once(cold_start: ColdStart) -> None:
    def seconds(*args: str) -> tuple[float, str]:
        """Processor time of `python ARGS`, since other tests run beside this one; and what it printed."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run = cold_start(*args)
        output, errors = run.communicate(timeout=60)
        assert run.returncode == 0, errors
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, output

    shown = [seconds("-m", "florence2ner", "--help") for _ in range(3)]
    assert all(name in shown[0][1] for name in ("train", "eval", "caption", "init-model", "demo"))
    # Twice what its libraries take, mostly for making the flags. With torch it would be twenty times that.
    yardstick = [seconds("-c", "import pydantic, rich.markdown, typer, yaml") for _ in range(3)]
    assert min(shown)[0] < 4 * min(yardstick)[0]

    _, errors = cold_start("-X", "importtime", "-m", "florence2ner", "--help").communicate(timeout=60)
    imported = {line.rpartition("|")[2].strip() for line in errors.splitlines()}
    assert {"typer", "florence2ner.config.commands"} <= imported
    assert not imported & {"torch", "transformers", "accelerate", "numpy", "PIL"}


def test_without_a_command_the_help_is_all_that_is_printed(cold_start: ColdStart) -> None:
    alone = cold_start("-m", "florence2ner")
    output, errors = alone.communicate(timeout=60)
    assert alone.returncode == 2
    assert not errors
    assert output.strip() == cold_start("-m", "florence2ner", "--help").communicate(timeout=60)[0].strip()
