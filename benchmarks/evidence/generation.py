"""What a policy writes for held-out prompts, and how that is measured."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.evidence.data import Row, rows_of
from benchmarks.evidence.published import answer
from lit_tidpo.assets.build.arithmetic import is_right
from lit_tidpo.devices.placement import default_device
from lit_tidpo.metrics.diversity import DistinctNGrams, SelfBLEU, TokenEntropy

_AT_ONCE = 16  # rows whose logits are held


def generated_metrics(
    model: str,
    data: str,
    seed: int,
    sampled_prompts: int,
    samples: int,
    tokens: int,
    answers: bool = False,
    answered_prompts: int | None = None,
    reference: str | None = None,
) -> dict[str, float]:
    """Measure what a policy writes for held-out prompts.

    Args:
        model: Folder of a model with its tokenizer.
        data: Source of the pairs.
        seed: Of the samples, at temperature 1.
        sampled_prompts: Prompts of the test split that are sampled for.
        samples: Of each of them.
        tokens: Of a response at most.
        answers: Whether a greedy response to held-out prompts is checked, too.
        answered_prompts: To how many different ones of a split; None takes one of each row.
        reference: Folder of a model that the samples, and greedy responses to their prompts, are
            compared with.

    Returns:
        ``val/answers/right`` and ``test/answers/right``, the share whose last number is right;
        ``diversity/*``, the paper's measures (Table B9) of the samples; with a reference
        ``kl/sampled``, the mean of ``log policy - log reference`` of a sample in nats, lengths in
        tokens and the diversity of the greedy responses.
    """
    writer, metrics = _Writer(model, tokens), {}
    for stage, split in {"val": "validation", "test": "test"}.items() if answers else ():
        rows = rows_of(data, split)
        if answered_prompts is not None:
            rows = list({row["prompt"]: row for row in reversed(rows)}.values())[::-1]
        rows = rows[:answered_prompts]
        texts = writer.texts([row["prompt"] for row in rows])
        right = [_is_right(row, text) for row, text in zip(rows, texts, strict=True)]
        metrics[f"{stage}/answers/right"] = sum(right) / len(rows)
    distinct = dict.fromkeys(row["prompt"] for row in reversed(rows_of(data, "test")))
    few = list(reversed(distinct))[:sampled_prompts]
    torch.manual_seed(seed)
    sampled = writer.responses(few, do_sample=True, num_return_sequences=samples, top_k=0)
    metrics |= writer.diversity(sampled, samples, "diversity")
    if reference is not None:
        prompts = [prompt for prompt in few for _ in range(samples)]
        ratios = writer.logps(prompts, sampled)
        ratios -= _Writer(reference, tokens).logps(prompts, sampled)
        greedy = writer.responses(few, do_sample=False)
        metrics |= writer.diversity(greedy, 1, "greedy_diversity")
        metrics["kl/sampled"] = float(ratios.mean())
        metrics["length/sampled"] = float(writer.mask(sampled).sum(-1).float().mean())
        metrics["length/greedy"] = float(writer.mask(greedy).sum(-1).float().mean())
    return metrics


def _is_right(row: Row, text: str) -> bool:
    """By the row's ``answer``, or else the sum that its prompt asks for."""
    if "answer" in row:
        return answer(text) == row["answer"]
    return is_right(row["prompt"], text)


class _Writer:
    """A model and its tokenizer, which write responses of at most some tokens."""

    def __init__(self, path: str, tokens: int) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(path, padding_side="left")
        self.device = default_device()
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        self.model = model.to(self.device).eval()
        self.tokens = tokens

    def responses(self, prompts: list[str], **options: Any) -> Tensor:
        """Token ids, ``[N, T]``."""
        encoded = self.tokenizer(prompts, return_tensors="pt", padding=True).to(self.device)
        inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
        generated = self.model.generate(**inputs, max_new_tokens=self.tokens, **options)
        found: Tensor = generated[:, inputs["input_ids"].shape[1] :].cpu()
        return found

    def texts(self, prompts: list[str]) -> list[str]:
        """Greedy responses."""
        greedy = self.responses(prompts, do_sample=False)
        decoded: list[str] = self.tokenizer.batch_decode(greedy, skip_special_tokens=True)
        return decoded

    def mask(self, responses: Tensor) -> Tensor:
        """True before a response's end."""
        return (responses == self.tokenizer.eos_token_id).cumsum(-1) == 0

    def diversity(self, responses: Tensor, samples: int, name: str) -> dict[str, float]:
        """The paper's measures; Self-BLEU where a prompt has several responses."""
        measures = {
            "distinct_2": DistinctNGrams(2),
            "distinct_4": DistinctNGrams(4),
            "entropy": TokenEntropy(),
            **({"self_bleu": SelfBLEU()} if samples > 1 else {}),
        }
        prompts = torch.arange(len(responses) // samples).repeat_interleave(samples)
        for metric in measures.values():
            metric.update(responses, self.mask(responses), prompts)
        return {f"{name}/{each}": float(metric.compute()) for each, metric in measures.items()}

    @torch.no_grad()
    def logps(self, prompts: list[str], responses: Tensor) -> Tensor:
        """Log-probs of responses with their ends, ``[N]`` in nats."""
        found = []
        ended = pad(self.mask(responses), (1, 0), value=True)[:, :-1]
        for start in range(0, len(prompts), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            encoded = self.tokenizer(prompts[part], return_tensors="pt", padding=True)
            ids = torch.cat([encoded["input_ids"], responses[part]], dim=1).to(self.device)
            kept = torch.cat([encoded["attention_mask"], ended[part].long()], dim=1)
            kept = kept.to(self.device)
            places = (kept.cumsum(-1) - 1).clamp(min=0)
            logits = self.model(input_ids=ids, attention_mask=kept, position_ids=places).logits
            length = responses.shape[1]
            logps = logits[:, -length - 1 : -1].float().log_softmax(-1)
            own = logps.gather(-1, ids[:, -length:, None]).squeeze(-1).cpu()
            found.append((own * ended[part]).sum(-1))
        return torch.cat(found)
