"""Faults injected into training, by the dozen: ``python -m benchmarks.faults``, 20 minutes at most.

The command is run as a user runs it, in processes that are killed at random moments, with files
that are damaged, without room on the disk and without file handles, and for 10,000 steps. What
survives ends with the weights, the optimizer's state and the logged values of the run that nothing
happened to, bit for bit.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import yaml

STEPS, EVERY = 60, 3
"""Optimizer steps of a run, and after how many of them it writes a checkpoint."""
SOAK_STEPS = 10_000

COMMAND = ["-m", "lit_tidpo", "fit", "--config", "config.yaml", "--ckpt_path", "last"]


def configuration(model: Path, steps: int) -> dict[str, Any]:
    """What is hard to resume: dropout, kept anchors and weights, accumulation, a schedule."""
    return {
        "trainer": {
            "accelerator": "cpu",
            "max_steps": steps,
            "accumulate_grad_batches": 2,
            "log_every_n_steps": 1,
            "val_check_interval": 8,
            "limit_val_batches": 1,
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": "runs",
            "logger": {
                "class_path": "lightning.pytorch.loggers.CSVLogger",
                "init_args": {"save_dir": "runs", "flush_logs_every_n_steps": 1},
            },
            "callbacks": [
                {
                    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "init_args": {"every_n_train_steps": EVERY, "save_last": True},
                }
            ],
        },
        "model": {
            "policy": {"path": str(model), "disable_dropout": False},
            "reference_cache": "reference",
            "importance_every": 4,
            "losses": {
                "preference": {"class_path": "weighted_dpo", "init_args": {"alpha": 0.0}},
                "triplet": "triplet",
            },
            "anchor": {"max_new_tokens": 4, "reuse_steps": 3},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1.0e-3}},
            "lr_schedule": "cosine",
            "warmup_steps": 4,
        },
        "data": {"source": "rows.jsonl", "batch_size": 2, "cache_dir": "cache"},
    }


def make_model(folder: Path) -> None:
    """A GPT-2 of one layer with dropout, and the shipped tokenizer."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from lit_tidpo.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer("builtin:policy")
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=1,
        n_head=2,
        n_positions=128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_folder(place: Path, model: Path, steps: int = STEPS) -> Path:
    """Rows and configuration of a run; 15 batches are an epoch, so that runs end within one."""
    place.mkdir(parents=True)
    rows = [
        {"prompt": f"def f{n}(", "chosen": f"x): return {n}", "rejected": f"x): pass  # {n}"}
        for n in range(30)
    ]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "config.yaml").write_text(yaml.safe_dump(configuration(model, steps)))
    return place


def start(place: Path, limit: tuple[int, int] | None = None) -> subprocess.Popen[bytes]:
    """The command in a process group of its own."""
    log = (place / "output.log").open("ab")
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", *COMMAND],
        cwd=place,
        stdout=log,
        stderr=log,
        start_new_session=True,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(Path(__file__).parents[1]),  # for the callback of the long run
        },
        preexec_fn=None if limit is None else lambda: resource.setrlimit(limit[0], (limit[1],) * 2),
    )


def finish(place: Path, limit: tuple[int, int] | None = None, timeout: float = 300) -> int:
    """Run the command to its end; gives its status."""
    return start(place, limit).wait(timeout)


def last_checkpoint(place: Path) -> Path | None:
    """The newest ``last.ckpt``, as ``--ckpt_path last`` finds it."""
    files = sorted((place / "runs").rglob("last*.ckpt"), key=lambda file: file.stat().st_mtime_ns)
    return files[-1] if files else None


def logged(place: Path) -> dict[tuple[str, str], str]:
    """What was logged by step and name; a later run has the last word."""
    found = {}
    for file in sorted(
        (place / "runs").rglob("metrics.csv"), key=lambda file: int(file.parent.name.split("_")[1])
    ):
        with file.open(encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                entries = {(row["step"], name): value for name, value in row.items() if value}
                found |= {key: value for key, value in entries.items() if key[1] != "step"}
    return found


def bits_of(value: Any) -> Iterator[bytes]:
    """All tensors in a checkpoint, one after the other."""
    if isinstance(value, torch.Tensor):
        yield value.reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            yield from bits_of(value[key])
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from bits_of(each)


def ending(place: Path) -> tuple[list[bytes], dict[tuple[str, str], str]]:
    """Weights, optimizer and logged values at the end of a run."""
    file = last_checkpoint(place)
    assert file is not None
    found = torch.load(file, weights_only=False)
    assert found["global_step"] == STEPS, f"{place} ended at step {found['global_step']}"
    return list(bits_of([found["state_dict"], found["optimizer_states"]])), logged(place)


def bits_different(place: Path, expected: tuple[list[bytes], dict[tuple[str, str], str]]) -> int:
    """Tensors and logged values that are not those of the run that nothing happened to."""
    tensors, values = ending(place)
    other = sum(one != two for one, two in zip(tensors, expected[0], strict=True))
    return other + len(values.items() ^ expected[1].items())


def kill(place: Path, after: float, writing: bool) -> int:
    """Kill a run; gives the steps that it had logged beyond its last whole checkpoint."""
    process, until = start(place), time.monotonic() + after
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    while writing and process.poll() is None and not list((place / "runs").rglob(".*.part")):
        time.sleep(0.0005)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    file = last_checkpoint(place)
    done = torch.load(file, weights_only=False)["global_step"] if file else 0
    steps = [int(step) for step, name in logged(place) if name.startswith("train")]
    return max([0, *(step + 1 - done for step in steps)])


Damage = Callable[[Path], Any]


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGES: dict[str, Damage] = {
    "flipped": _flip,
    "cut off": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "empty": lambda file: file.write_bytes(b""),
}
FILES = {
    "checkpoint": "runs/**/last.ckpt",
    "data cache": "cache/json/**/*.arrow",
    "token cache": "cache/tokenised-*.arrow",
    "reference cache": "reference/**/*.safetensors",
}
# Bytes that a file may have, about half a checkpoint; handles, too few to start workers.
LIMITS = {"no room": (resource.RLIMIT_FSIZE, 400_000), "no handles": (resource.RLIMIT_NOFILE, 9)}


class Faults:
    """Runs them, and counts.

    Args:
        work: Folder of all runs.
        kills: Runs that are killed.
    """

    def __init__(self, work: Path, kills: int) -> None:
        self.work = work
        self.model = work / "model"
        self.kills = kills
        self.draw = random.Random(0)
        make_model(self.model)
        whole = make_folder(work / "whole", self.model)
        started = time.monotonic()
        assert finish(whole) == 0, (whole / "output.log").read_text()[-2000:]
        self.seconds = time.monotonic() - started
        self.expected = ending(whole)
        half = make_folder(work / "half", self.model)
        while last_checkpoint(half) is None:
            kill(half, self.seconds * 0.8, writing=False)
        self.half = half

    def run(self) -> dict[str, Any]:
        """Inject all of them, two at a time."""
        jobs: list[tuple[str, Callable[[Path], dict[str, Any]]]] = []
        for number in range(self.kills):
            # A fifth of them at the next write of a checkpoint, one in three twice.
            times = [self.draw.uniform(0.4, 1.0) for _ in range(1 + (number % 3 == 0))]
            writing = number % 5 == 0
            jobs.append(
                (f"kill {number}", lambda place, t=times, w=writing: self._killed(place, t, w))
            )
        for name, pattern in FILES.items():
            for kind, damage in DAMAGES.items():
                jobs.append(
                    (
                        f"{name} {kind}",
                        lambda place, p=pattern, d=damage: self._damaged(place, p, d),
                    )
                )
        for name, limit in LIMITS.items():
            jobs.append((name, lambda place, limit=limit: self._limited(place, limit)))
        jobs.append(("two runs in one folder", self._together))
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(self._one, jobs))
        return {
            "faults_injected": len(found),
            "faults_survived": sum(each["survived"] for each in found),
            "steps_lost_max": max(each.get("steps_lost", 0) for each in found),
            "resume_bits_different": sum(each.get("bits", 0) for each in found),
            "faults": found,
        }

    def _one(self, job: tuple[str, Callable[[Path], dict[str, Any]]]) -> dict[str, Any]:
        name, inject = job
        try:
            found = inject(self.work / name.replace(" ", "_"))
        except (AssertionError, subprocess.TimeoutExpired) as error:
            found = {"survived": False, "reason": str(error)[-1000:]}
        print(f"{name}: {found}", flush=True)
        return {"name": name, **found}

    def _compare(self, place: Path, **more: Any) -> dict[str, Any]:
        status = finish(place)
        assert status == 0, f"status {status}: {(place / 'output.log').read_text()[-900:]}"
        bits = bits_different(place, self.expected)
        return {"survived": bits == 0, "bits": bits, **more}

    def _killed(self, place: Path, times: list[float], writing: bool) -> dict[str, Any]:
        make_folder(place, self.model)
        lost = [kill(place, share * self.seconds, writing) for share in times]
        return self._compare(place, steps_lost=max(lost))

    def _damaged(self, place: Path, pattern: str, damage: Damage) -> dict[str, Any]:
        """The command makes it anew, or names it, and goes on when it is gone."""
        shutil.copytree(self.half, place)
        files = list(place.glob(pattern))
        assert files, f"no {pattern}"
        for file in files:
            damage(file)
        status = finish(place)
        if status:
            told = (place / "output.log").read_text()
            assert status == 2, f"status {status}: {told[-900:]}"
            assert "Traceback" not in told, told[-900:]
            assert any(file.name in told or file.parent.name in told for file in files), told[-900:]
            for file in files:
                shutil.rmtree(file.parent) if "reference" in pattern else file.unlink()
        return self._compare(place, told=bool(status))

    def _limited(self, place: Path, limit: tuple[int, int]) -> dict[str, Any]:
        shutil.copytree(self.half, place)
        before = last_checkpoint(place)
        assert before is not None
        content = before.read_bytes()
        settings = configuration(self.model, STEPS)
        settings["data"]["num_workers"] = 2
        (place / "config.yaml").write_text(yaml.safe_dump(settings))
        status = finish(place, limit=limit)
        told = (place / "output.log").read_text()
        assert status == 2, f"status {status}: {told[-900:]}"
        assert "lit-tidpo: error:" in told, told[-900:]
        assert last_checkpoint(place) == before
        assert before.read_bytes() == content
        return self._compare(place, told=True)

    def _together(self, place: Path) -> dict[str, Any]:
        """Two runs that start at once keep apart what they log, and both end as one alone."""
        make_folder(place, self.model)
        processes = [start(place) for _ in range(2)]
        statuses = [process.wait(timeout=300) for process in processes]
        assert statuses == [0, 0], (
            f"statuses {statuses}: {(place / 'output.log').read_text()[-900:]}"
        )
        folders = [file.parent for file in (place / "runs").rglob("metrics.csv")]
        assert len(folders) == 2, f"log folders: {folders}"
        bits = bits_different(place, self.expected)
        return {"survived": bits == 0, "bits": bits}


def bad_inputs() -> dict[str, Any]:
    """The corpus of bad inputs, by its own test."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "tests/corpus", f"--junitxml={report}"],
            stdout=subprocess.DEVNULL,
            check=False,
        )
        suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    counts = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    failed = counts["failures"] + counts["errors"] + counts["skipped"]
    return {"bad_inputs": counts["tests"], "bad_inputs_clear": counts["tests"] - failed}


def soak(work: Path, steps: int) -> dict[str, Any]:
    """A long run, which notes its memory and handles; growth counts from a fifth of it on."""
    place = make_folder(work / "soak", work / "model", steps)
    settings = configuration(work / "model", steps)
    saving = settings["trainer"]["callbacks"][0]
    saving["init_args"]["every_n_train_steps"] = max(1, steps // 10)
    settings["trainer"] |= {
        "log_every_n_steps": 100,
        "check_val_every_n_epoch": 100,
        "val_check_interval": None,
        "accumulate_grad_batches": 1,
        "callbacks": [
            saving,
            {"class_path": "benchmarks.soak.Watch", "init_args": {"every": max(1, steps // 10)}},
        ],
    }
    (place / "config.yaml").write_text(yaml.safe_dump(settings))
    status = finish(place, timeout=900)
    assert status == 0, (place / "output.log").read_text()[-2000:]
    notes = [json.loads(line) for line in (place / "soak.jsonl").read_text().splitlines()]
    return {
        "soak_steps": notes[-1]["step"],
        "soak_growth_bytes": notes[-1]["bytes"] - notes[1]["bytes"],
        "soak_growth_handles": notes[-1]["handles"] - notes[1]["handles"],
        "soak": notes,
    }


def main() -> None:
    """Run all of it and write what came out; status 1 if anything did not survive."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/faults.json"))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--soak", type=int, default=SOAK_STEPS)
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        faults = Faults(Path(folder), arguments.kills).run()
        with ThreadPoolExecutor(2) as pool:
            corpus = pool.submit(bad_inputs)
            long = pool.submit(soak, Path(folder), arguments.soak)
            found = {**faults, **corpus.result(), **long.result()}
    found["seconds"] = round(time.monotonic() - started)
    arguments.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print({name: value for name, value in found.items() if isinstance(value, int)})
    survived = (
        found["faults_survived"] == found["faults_injected"]
        and found["bad_inputs_clear"] == found["bad_inputs"]
        and found["resume_bits_different"] == 0
        and found["soak_growth_bytes"] < 2**25
        and found["soak_growth_handles"] <= 0
    )
    raise SystemExit(int(not survived))


if __name__ == "__main__":
    main()
