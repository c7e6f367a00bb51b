"""``lit-tidpo evaluate``: benchmarks of a policy, beside those of the model it started from."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli

from lit_tidpo.devices.placement import default_device
from lit_tidpo.errors import InputError, explained
from lit_tidpo.models.export import export_policy, policy_config, read_checkpoint
from lit_tidpo.models.loading import build_policy
from lit_tidpo.models.policy import PolicyConfig
from lit_tidpo.models.tokenizer import policy_tokenizer

_OF_THE_PAPER = {
    "mmlu": "mmlu",
    "gsm8k": "gsm8k",
    "gpqa": "gpqa_main_zeroshot",
    "humaneval": "humaneval",
    "truthfulqa": "truthfulqa_mc2",
    "ifeval": "ifeval",
}
"""What the benchmarks of TI-DPO's Table 1 are called in lm-evaluation-harness."""


def run(args: list[str]) -> None:
    """Evaluate; see :func:`evaluate`."""
    auto_cli(evaluate, args=args[1:], as_positional=True)


def evaluate(
    model: str,
    tasks: list[str] | str,
    base: str = "start",
    include: Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 8,
    chat: bool = True,
    run_code: bool = False,
    output: Path | None = None,
) -> None:
    """Run benchmarks of lm-evaluation-harness, print a table and write all results as JSON.

    Args:
        model: A checkpoint of ``fit``, a model's folder, or a name on the Hub.
        tasks: One name, or ``[several,names]``, of the harness, or of the paper's Table 1: mmlu,
            gsm8k, gpqa, humaneval, truthfulqa, ifeval.
        base: What it is compared with: ``start``, the model that a checkpoint started from;
            another folder or name; or ``none``.
        include: Folder of task files of your own.
        limit: Take only the first items of each task; None takes all.
        num_fewshot: Examples before each question; None takes what the task says.
        batch_size: Items that run together.
        chat: Put questions into the chat template, where there is one.
        run_code: Let tasks such as humaneval run code that the model writes, on this machine.
        output: File of the results; by default ``evaluation.json`` beside the checkpoint.

    Raises:
        InputError: If lm-eval is missing, or a model or task cannot be used.
    """
    harness = _import_harness()
    if limit is not None and limit < 1:
        raise InputError(f"limit={limit}: expected 1 or more")
    tasks = [tasks] if isinstance(tasks, str) else tasks
    names = [_OF_THE_PAPER.get(task, task) for task in tasks]
    manager = harness.tasks.TaskManager(include_path=None if include is None else str(include))
    unknown = sorted(name for name in names if name not in manager.all_tasks)
    if unknown:
        raise InputError(f"tasks={unknown} are not known: see `lm-eval ls tasks`, or set include")
    output = output or Path(model).parent / "evaluation.json"
    found = {}
    for which, config in _models(model, base):
        policy: Any = build_policy(config)
        tokenizer = policy_tokenizer(config)
        device = default_device()
        with explained(f"the tasks {tasks} cannot be run"):
            found[which] = harness.simple_evaluate(
                harness.models.huggingface.HFLM(
                    policy.eval().to(device),
                    tokenizer=tokenizer,
                    batch_size=batch_size,
                    device=device,
                ),
                tasks=names,
                limit=limit,
                num_fewshot=num_fewshot,
                apply_chat_template=chat and tokenizer.chat_template is not None,
                confirm_run_unsafe_code=run_code,
                task_manager=manager,
                log_samples=False,
            )
    content = {
        which: {"results": each["results"], "n-shot": each["n-shot"], "versions": each["versions"]}
        for which, each in found.items()
    }
    content["settings"] = {"model": model, "base": base, "limit": limit, "tasks": names}
    output.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")
    sys.stdout.writelines(f"{line}\n" for line in _table(content))
    sys.stdout.write(f"written to {output}\n")


def _import_harness() -> Any:
    try:
        import lm_eval
        import lm_eval.models.huggingface
        import lm_eval.tasks
    except ImportError as error:
        raise InputError(
            "evaluate needs lm-evaluation-harness: pip install 'lit-tidpo[evaluate]'"
        ) from error
    return lm_eval


def _models(model: str, base: str) -> Iterator[tuple[str, PolicyConfig]]:
    """What is to be run, by ``policy`` and ``base``."""
    path = Path(model).expanduser()
    trained = path.suffix == ".ckpt"
    if base == "start" and not trained:
        raise InputError(
            f"base='start' is known of checkpoints alone, and {model!r} is none: give the model "
            "that it is to be compared with, or base=none"
        )
    if trained:
        with tempfile.TemporaryDirectory() as folder:
            content = read_checkpoint(path)
            exported = export_policy(content, path, Path(folder) / "model")
            start = policy_config(content, path)
            del content  # its tensors need not wait for the benchmarks
            yield "policy", PolicyConfig(str(exported), dtype="auto")
    else:
        yield "policy", PolicyConfig(model, dtype="auto")
    if base == "start":
        yield "base", dataclasses.replace(start, lora=None, activation_checkpointing=False)
    elif base != "none":
        yield "base", PolicyConfig(base, dtype="auto")


def _table(content: Mapping[str, Any]) -> Iterator[str]:
    """Lines of a table: each measure with its standard error, and the difference to the base."""
    policy, base = content["policy"]["results"], content.get("base", {}).get("results")
    yield "| task | measure | policy |" + (" base | difference |" if base else "")
    yield "|---|---|---|" + ("---|---|" if base else "")
    for task, measures in policy.items():
        for name, value in measures.items():
            if "_stderr" in name or not isinstance(value, float):
                continue
            cells = [task, name.replace(",none", ""), _with_error(measures, name)]
            if base:
                error = math.hypot(_error(measures, name), _error(base[task], name))
                change = value - base[task][name]
                cells += [_with_error(base[task], name), f"{change:+.3f} ± {error:.3f}"]
            yield f"| {' | '.join(cells)} |"


def _error(measures: Mapping[str, Any], name: str) -> float:
    """Standard error of a measure; NaN where the harness has none."""
    value = measures.get("{}_stderr,{}".format(*name.split(",")))
    return value if isinstance(value, float) else math.nan


def _with_error(measures: Mapping[str, Any], name: str) -> str:
    return f"{measures[name]:.3f} ± {_error(measures, name):.3f}"
