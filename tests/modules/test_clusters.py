"""Runs over several machines and in jobs of SLURM, by torchrun and srun's variables on one."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.plugins.environments import SLURMEnvironment
from safetensors.torch import load_file

from lit_tidpo.callbacks.slurm_requeue import SlurmRequeue
from lit_tidpo.cli import main

from .runs import QUIET, SGD, assert_same, fit, make_data, make_module, parameters
from .strategy_lives import BATCH, CONFIGS, TRAINING, command, configuration

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]
TESTS = Path(__file__).parents[1]
SCONTROL = '#!/bin/sh\necho "$@" >> "$(dirname "$0")/calls"\n'


class Told(Callback):
    """Tells the processes at various places that time is up, and kills them a step later."""

    def on_before_optimizer_step(self, trainer, *rest):
        if trainer.global_step == 1 + trainer.global_rank:
            os.kill(os.getpid(), signal.SIGUSR1)

    def on_train_batch_start(self, trainer, *rest):
        if trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGKILL)


class ToldInAWindow(Callback):
    """Tells the process at the first of two batches of the second step."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx == 2:
            os.kill(os.getpid(), signal.SIGUSR1)


def write_scontrol(folder):
    """A stand-in that writes down how it was called."""
    folder.mkdir()
    (folder / "scontrol").write_text(SCONTROL)
    (folder / "scontrol").chmod(0o755)


def exported(checkpoint, folder):
    main(["export", str(checkpoint), str(folder)])
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def expected(model_folder, source, tmp_path_factory):
    """Weights after an uninterrupted run of one process."""
    root = tmp_path_factory.mktemp("one")
    command("fit", model_folder, source, root)
    return exported(root / "step=4.ckpt", root / "exported")


@pytest.fixture
def line(model_folder, source, tmp_path):
    """The words of a named run whose processes have two rows each in a batch."""
    saver = {"filename": "{step}", "save_top_k": -1, "every_n_train_steps": 4}
    trainer = {
        "default_root_dir": str(tmp_path),
        "callbacks": [{"class_path": "ModelCheckpoint", "init_args": saver}],
        **TRAINING,
    }
    config = tmp_path / "config.yaml"
    content = configuration(model_folder, source, BATCH // 2, **trainer)
    config.write_text(yaml.safe_dump(content))
    return ["-m", "lit_tidpo", "fit", f"--config={config}", "--run=cut", "--resume"]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def codes(commands, environments):
    """Run commands side by side; give their exit codes, and what they wrote to standard error."""
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", *words],
            cwd=TESTS,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            stderr=subprocess.PIPE,
            text=True,
        )
        for words, environment in zip(commands, environments, strict=True)
    ]
    errors = [process.communicate(timeout=850)[1] for process in started]
    return [process.returncode for process in started], "\n".join(e[-3000:] for e in errors)


@pytest.mark.slow
def test_two_nodes_of_torchrun_train_like_one_process(line, expected, tmp_path):
    nodes = ["-m", "torch.distributed.run", "--nnodes=2", "--rdzv_backend=c10d"]
    nodes += [f"--rdzv_endpoint=localhost:{free_port()}"]
    words = [*line, "--trainer.num_nodes=2", "--trainer.devices=1", "--trainer.strategy=ddp"]
    # torchrun takes --run for the beginning of an option of its own, but for the two dashes.
    commands = [[*nodes, f"--node_rank={rank}", "-m", "--", *words[1:]] for rank in (0, 1)]
    found, errors = codes(commands, [{}, {}])
    assert found == [0, 0], errors
    saved = tmp_path / "cut" / "checkpoints" / "step=4.ckpt"
    assert_same(exported(saved, tmp_path / "exported"), expected, atol=1e-6)


@pytest.mark.slow
def test_a_job_of_slurm_goes_on_where_it_was_cut_off(line, expected, tmp_path):
    """By the same line, on two processes, or on one, from the folder that two had written."""
    write_scontrol(tmp_path / "bin")
    job = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "SLURM_JOB_ID": "4321",
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
    }
    tasks = [{**job, "SLURM_PROCID": rank, "SLURM_LOCALID": rank} for rank in "01"]
    line = [*line, f"--config={CONFIGS / 'fsdp2.yaml'}"]
    two = [*line, "--trainer.devices=2"]
    found, errors = codes([[*two, "--trainer.callbacks+=modules.test_clusters.Told"]] * 2, tasks)
    assert -signal.SIGKILL in found, errors
    assert (tmp_path / "bin" / "calls").read_text() == "requeue 4321\n"
    assert [each.name for each in tmp_path.rglob("*.ckpt")] == ["hpc_ckpt_1.ckpt"]
    # As a kill leaves it that comes while a checkpoint is written.
    (tmp_path / "cut" / "checkpoints" / "step=3.ckpt").mkdir(parents=True)
    shutil.copytree(tmp_path / "cut", tmp_path / "alone" / "cut")
    found, errors = codes([two] * 2, tasks)
    assert found == [0, 0], errors
    alone = ["--trainer.devices=1", f"--data.batch_size={BATCH}"]
    found, errors = codes(
        [[*line, *alone, f"--trainer.default_root_dir={tmp_path / 'alone'}"]], [{}]
    )
    assert found == [0], errors
    for root in (tmp_path, tmp_path / "alone"):
        saved = root / "cut" / "checkpoints" / "step=4.ckpt"
        assert_same(exported(saved, root / "exported"), expected, atol=1e-6)


def test_a_window_of_batches_is_finished_before_the_job_ends(
    model_folder, source, tmp_path, monkeypatch
):
    write_scontrol(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    names = {"JOB_ID": "4321", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in names.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    options = {"accumulate_grad_batches": 2, "plugins": [SLURMEnvironment()]}

    def run(root, *callbacks, **more):
        module = make_module(model_folder, optimizer=SGD)
        given = {"callbacks": list(callbacks), "default_root_dir": root, **options, **more}
        fit(module, make_data(source, model_folder, batch_size=2), **given)
        return parameters(module)

    whole = run(tmp_path / "whole", ToldInAWindow(), SlurmRequeue())
    assert (tmp_path / "bin" / "calls").read_text() == "requeue 4321\n"
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    saved = tmp_path / "whole" / "hpc_ckpt_1.ckpt"
    assert torch.load(saved, weights_only=True)["global_step"] == 2
    assert_same(run(tmp_path / "on", SlurmRequeue(), ckpt_path=str(saved)), whole)
