"""What a trained policy writes: answers that a program checks, and how varied its samples are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_tidpo.assets.build.arithmetic import is_right
from lit_tidpo.metrics.diversity import DistinctNGrams, SelfBLEU, TokenEntropy

Row = dict[str, Any]


def generated_metrics(
    model: str, data: Path, options: dict[str, Any], seed: int
) -> dict[str, float]:
    """Generate for held-out prompts.

    Args:
        model: Folder of a model with its tokenizer.
        data: Folder of the pairs.
        options: ``sampled_prompts`` of the test split, ``samples`` of each, ``tokens`` of a
            response at most; with ``answers``, a greedy response to every prompt of the validation
            and the test split is checked, too.
        seed: Of the samples, at temperature 1.

    Returns:
        ``test/answers/right`` and ``test/answers/whole`` (share whose last number is the sum, and
        whose whole work is right), ``val/answers/*``, ``diversity/*``.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).to(device).eval()
    metrics = {}
    for stage, split in {"val": "validation", "test": "test"}.items():
        with (data / f"{split}.jsonl").open(encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        if options.get("answers"):
            texts = _texts(policy, tokenizer, rows, options["tokens"])
            metrics |= {f"{stage}/{k}": v for k, v in answer_accuracy(rows, texts).items()}
    torch.manual_seed(seed)
    few = _distinct_prompts(rows)[: options["sampled_prompts"]]
    tokens = _generate(policy, tokenizer, few, options["tokens"], options["samples"])
    prompts = torch.arange(len(few)).repeat_interleave(options["samples"])
    mask = until_end(tokens, tokenizer.eos_token_id)
    return metrics | diversity(tokens, mask, prompts)


def answer_accuracy(rows: list[Row], responses: list[str]) -> dict[str, float]:
    """Share of right sums, and of responses whose whole work is right."""
    pairs = list(zip(rows, responses, strict=True))
    return {
        "answers/right": sum(is_right(row["prompt"], text) for row, text in pairs) / len(rows),
        "answers/whole": sum(_true_work(row) == text for row, text in pairs) / len(rows),
    }


def diversity(tokens: Tensor, mask: Tensor, prompts: Tensor) -> dict[str, float]:
    """The paper's measures of diversity (Table B9)."""
    measures = {
        "self_bleu": SelfBLEU(),
        "distinct_2": DistinctNGrams(2),
        "distinct_4": DistinctNGrams(4),
        "entropy": TokenEntropy(),
    }
    for metric in measures.values():
        metric.update(tokens, mask, prompts)
    return {f"diversity/{name}": float(metric.compute()) for name, metric in measures.items()}


def until_end(tokens: Tensor, end: int) -> Tensor:
    """True at tokens before the first end-of-sequence token, ``[N, T]`` bool."""
    return (tokens == end).cumsum(-1) == 0


def _true_work(row: Row) -> str:
    # Labels are never flipped in the test split.
    return str(row["chosen"])


def _distinct_prompts(rows: list[Row]) -> list[Row]:
    """The first row of each prompt."""
    return list({row["prompt"]: row for row in reversed(rows)}.values())[::-1]


def _texts(policy: Any, tokenizer: Any, rows: list[Row], tokens: int) -> list[str]:
    generated = _generate(policy, tokenizer, rows, tokens, None)
    return [str(t) for t in tokenizer.batch_decode(generated, skip_special_tokens=True)]


def _generate(
    policy: Any, tokenizer: Any, rows: list[Row], tokens: int, samples: int | None
) -> Tensor:
    """Responses, on the CPU: greedy ones, or ``samples`` of each prompt one after the other."""
    texts = [row["prompt"] for row in rows]
    prompts = tokenizer(texts, return_tensors="pt", padding=True).to(policy.device)
    sampling = {"do_sample": False}
    if samples is not None:
        sampling = {"do_sample": True, "num_return_sequences": samples, "top_k": 0}
    generated: Tensor = policy.generate(
        input_ids=prompts["input_ids"],
        attention_mask=prompts["attention_mask"],
        max_new_tokens=tokens,
        **sampling,
    )
    return generated[:, prompts["input_ids"].shape[1] :].cpu()
