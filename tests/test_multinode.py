"""Two real machines, as far as the network goes: two network namespaces joined by a veth pair. Needs root and iproute2.

They share a file system, as the README asks of machines that train together.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from florence2ner.engine.run_files import list_checkpoints
from tests.conftest import ColdStart, MakeConfig, Start
from tests.programs.starting import launched

MACHINES = ("f2n-a", "f2n-b")
TIMEOUT = 40  # seconds that a machine waits for the other
pytestmark = pytest.mark.slow


def ip(*args: str) -> bool:
    return subprocess.run(["ip", *args], capture_output=True).returncode == 0


@pytest.fixture(scope="module", autouse=True)
def network() -> Iterator[None]:
    """Namespaces f2n-a (10.77.0.1) and f2n-b (10.77.0.2) with a cable between them."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("two machines in network namespaces need root and iproute2")
    for machine in MACHINES:
        ip("netns", "del", machine)
    if not all(ip("netns", "add", machine) for machine in MACHINES):
        pytest.skip("network namespaces are not allowed here")
    assert ip("link", "add", "f2n-veth-a", "type", "veth", "peer", "name", "f2n-veth-b")
    for number, machine in enumerate(MACHINES, start=1):
        cable = machine.replace("f2n-", "f2n-veth-")
        assert ip("link", "set", cable, "netns", machine)
        assert ip("-n", machine, "addr", "add", f"10.77.0.{number}/24", "dev", cable)
        assert ip("-n", machine, "link", "set", cable, "up")
        assert ip("-n", machine, "link", "set", "lo", "up")
    yield
    for machine in MACHINES:
        ip("netns", "del", machine)


def cable(machine: str) -> dict[str, str]:
    return {"GLOO_SOCKET_IFNAME": machine.replace("f2n-", "f2n-veth-"), "OMP_NUM_THREADS": "1"}


def test_two_machines_agree_survive_a_kill_and_resume_exactly(
    make_config: MakeConfig, start: Start, cold_start: ColdStart, tmp_path: Path
) -> None:
    configs = {}
    for name in ("whole", "killed"):
        config = make_config(
            run_name=name,
            train_batch_size=2,
            gradient_accumulation_steps=2,
            epochs=2,
            save_steps=2,
            eval_steps=3,
            process_timeout=TIMEOUT,
        )
        configs[name] = config
        (tmp_path / f"{name}.yaml").write_text(config.to_yaml())

    # Start the run on both machines, as two people at two keyboards would.
    launch = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "2", "--num_processes", "2")
    meet = ("--main_process_ip", "10.77.0.1", "--main_process_port", "29500")
    train = ("-m", "florence2ner", "train", "--config", "killed.yaml")
    first, second = (
        cold_start(
            *(*launch, *meet, "--machine_rank", rank, *train),
            before=("ip", "netns", "exec", machine),
            **{**cable(machine), "ACCELERATE_USE_CPU": "true"},
        )
        for rank, machine in enumerate(MACHINES)
    )
    while not (configs["killed"].run_dir / "step-2").exists():
        assert first.poll() is None, first.communicate()
        time.sleep(0.001)
    for pid in subprocess.run(["ip", "netns", "pids", MACHINES[1]], capture_output=True, text=True).stdout.split():
        os.kill(int(pid), signal.SIGKILL)
    killed_at = time.monotonic()
    _, errors = first.communicate(timeout=TIMEOUT + 60)
    assert time.monotonic() - killed_at < TIMEOUT
    assert first.returncode != 0
    assert "error: lost contact with another process" in errors, errors
    assert "-m florence2ner train --config" in errors, errors  # though the kill came before the save had ended
    second.communicate()

    resume = ("florence2ner", "train", "--config", "killed.yaml", "--resume", "latest")
    machines = [
        start(*resume, network=machine, **cable(machine), **launched(rank, 2, 29501, address="10.77.0.1", machines=2))
        for rank, machine in enumerate(MACHINES)
    ]
    for machine in machines:  # every save compares the weights of all processes
        assert machine.wait().returncode == 0, machine.stderr
    # What two machines do is what two processes of one machine do.
    local = start("florence2ner", "train", "--config", "whole.yaml", processes=2).wait()
    assert local.returncode == 0, local.stderr

    whole, resumed = (list_checkpoints(config.run_dir)[-1] for config in configs.values())
    assert resumed.name == whole.name == "step-6"
    assert len(list((resumed / "state").glob("random_states_*"))) == 2
    one, other = load_file(whole / "model.safetensors"), load_file(resumed / "model.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in one)
    losses = [
        [line.get("train/loss") for line in map(json.loads, (run.parent / "metrics.jsonl").read_text().splitlines())]
        for run in (whole, resumed)
    ]
    assert losses[0] == losses[1]
