"""Whether results on a GPU are those of padded rows in fp32 on the CPU."""

from __future__ import annotations

import copy
import importlib.util
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from transformers import AutoModelForCausalLM, MistralConfig

from benchmarks.workloads import Workload
from lit_tidpo import PreferenceModule
from lit_tidpo.data.collation import collate
from lit_tidpo.importance.hybrid_importance import HybridImportance
from lit_tidpo.losses.triplet_loss import TripletLoss
from lit_tidpo.losses.weighted_dpo_loss import WeightedDPOLoss
from lit_tidpo.models import varlen
from lit_tidpo.models.liger import use_liger
from lit_tidpo.models.policy import LoraOptions, PolicyConfig
from lit_tidpo.sampling.anchor_options import AnchorOptions
from lit_tidpo.sampling.generation import Generation
from lit_tidpo.seeding import seeded
from lit_tidpo.structures import ResponseBatch
from lit_tidpo.testing import tiny_batch, tiny_policy

# Log-probs in nats; gradients and weights as norms of differences over norms.
LIMITS = {"fp32": (1e-4, 1e-4, 1e-4), "bf16": (0.3, 0.15, 0.3)}
# Tokens of a prompt and of a response. Responses as long as the prompts or longer are attended
# with the plain causal kernel, shorter ones with a mask.
SHAPES = {"causal": (150, 250), "masked": (250, 70), "window": (150, 90)}
WINDOWS = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "sliding_window": 40,
}

Case = tuple[Any, Any, ResponseBatch]


def check(value: float, limit: float) -> dict[str, Any]:
    """A figure that must not exceed its limit; what is not a number does."""
    return {"value": value, "limit": limit, "passed": value <= limit}


def correctness(device: str) -> dict[str, Any]:
    """Compare values in all layouts and precisions and sampled anchors, and train."""
    # A CPU takes matrix products of fp32 as they are; a GPU is to do so, too.
    torch.set_float32_matmul_precision("highest")
    checks: dict[str, Any] = {}
    for name, case in _cases():
        expected = _values("cpu", case, "padded", "fp32")
        for layout in ("padded", "packed", "shared_prompt"):
            for precision in LIMITS:
                found = _values(device, case, layout, precision)
                checks |= _compare(f"{name}, {layout}, {precision}", found, expected, precision)
    if torch.cuda.is_available():
        if importlib.util.find_spec("liger_kernel") is not None:
            checks |= _liger(device)
        checks["attention over rows side by side"] = check(float(not _has_kernel()), 0.0)
    checks["greedy anchors"] = _anchors(device)
    for name, options in (("full", {}), ("lora", {"lora": LoraOptions(r=4)})):
        for trainer_precision in ("32-true", "bf16-mixed"):
            checks[f"training moves, {name}, {trainer_precision}"] = _trains(
                options, trainer_precision
            )
    return {"checks": checks, "passed": all(each["passed"] for each in checks.values())}


def _cases() -> Iterator[tuple[str, Case]]:
    """Policy, reference and rows: a very small model, and heads of 64 at some length."""
    yield "tiny", (tiny_policy(), tiny_policy(seed=1), tiny_batch())
    make: Any = AutoModelForCausalLM.from_config
    plain = Workload("checks", vocabulary=512, hidden=128, layers=2).config()
    windows = MistralConfig(**WINDOWS)
    for name, (prompt, response) in SHAPES.items():
        config = windows if name == "window" else plain
        with seeded(0):
            models = [_lively(make(config)) for _ in range(2)]
            draw = torch.randint(3, 512, (2, 3, prompt + response)).tolist()
        prompts = [tokens[0][: prompt - 9 * pair] for pair, tokens in enumerate(draw)]
        responses = [
            [{"ids": row[: response - 20 * place - 5 * pair]} for place, row in enumerate(rows[1:])]
            for pair, rows in enumerate(draw)
        ]
        batch = collate(prompts, responses, ("chosen", "rejected"), [0, 1], [True, True])
        yield name, (*models, batch)


def _liger(device: str) -> dict[str, Any]:
    """What Liger's kernels give, whose first pass proves them, too."""
    checks: dict[str, Any] = {}
    for name, (policy, reference, batch) in _cases():
        expected = _values("cpu", (policy, reference, batch), "padded", "fp32")
        for model in (policy, reference):
            use_liger(model, ["rms_norm", "rope"])
        for precision in LIMITS:
            found = _values(device, (policy, reference, batch), "shared_prompt", precision)
            checks |= _compare(f"{name}, liger, {precision}", found, expected, precision)
    return checks


def _lively(model: Any) -> Any:
    """With the usual initial weights every token looks alike, and so does a wrong mask."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5.0 if parameter.dim() > 1 else 1.0)
    return model


def _values(device: str, case: Case, layout: Any, precision: str) -> dict[str, Tensor]:
    """Log-probs, gradients and importance weights."""
    policy, reference, batch = copy.deepcopy(case)
    module = PreferenceModule(
        PolicyConfig(),
        importance=HybridImportance(),
        losses={"preference": WeightedDPOLoss()},
        layout=layout,
    )
    module.attach(policy.to(torch.device(device)), reference.to(torch.device(device)))
    with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
        found = module(move_data_to_device(batch, torch.device(device)))
    found.loss.mean().backward()
    gradients = [p.grad.flatten() for p in module.built_policy.parameters() if p.grad is not None]
    assert found.weights is not None
    values = {
        "log_probs": found.context.responses["policy.logps"].detach(),
        "gradients": torch.cat(gradients),
        "weights": found.weights,
    }
    return {name: value.float().cpu() for name, value in values.items()}


def _compare(
    name: str, found: dict[str, Tensor], expected: dict[str, Tensor], precision: str
) -> dict[str, Any]:
    errors = {}
    for quantity, limit in zip(expected, LIMITS[precision], strict=True):
        difference = found[quantity] - expected[quantity]
        relative = difference.norm() / expected[quantity].norm()
        error = difference.abs().max() if quantity == "log_probs" else relative
        errors[f"{quantity}, {name}"] = check(float(error), limit)
    return errors


def _has_kernel() -> bool:
    """Whether bf16 on this GPU is attended without being laid out."""
    states = torch.zeros(2, 8, 64, dtype=torch.bfloat16, device="cuda")
    return varlen.serves(states, states, states, {})


def _anchors(device: str) -> dict[str, Any]:
    """Whether the likeliest tokens are the CPU's, one by one."""
    greedy = Generation(AnchorOptions(max_new_tokens=16, top_k=1))
    batch, policy = tiny_batch(), tiny_policy()
    moved: Any = copy.deepcopy(policy)
    there = greedy.sample(moved.to(device), move_data_to_device(batch, device))
    here = greedy.sample(policy, batch)
    same = torch.equal(there.lengths.cpu(), here.lengths) and torch.equal(
        there.input_ids.cpu(), here.input_ids
    )
    return check(float(not same), 0.0)


def _trains(policy: dict[str, Any], precision: Any) -> dict[str, Any]:
    """Whether some steps of the whole objective, with validation, lower its loss."""
    losses: list[float] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *rest: Any) -> None:
            losses.append(float(outputs["loss"]))

    with tempfile.TemporaryDirectory() as folder:
        tiny_policy().save_pretrained(folder)
        module = PreferenceModule(
            PolicyConfig(folder, **policy),
            losses={"preference": WeightedDPOLoss(), "triplet": TripletLoss()},
            anchor=AnchorOptions(max_new_tokens=8, reuse_steps=2),
            optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
        )
        batches: Any = torch.utils.data.DataLoader([tiny_batch()] * 8, batch_size=None)  # type: ignore[arg-type]
        quiet: dict[str, Any] = {
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
        trainer = Trainer(max_steps=8, precision=precision, callbacks=[Watch()], **quiet)
        trainer.fit(module, batches, batches)
    return check(losses[-1] - losses[0], -1e-3)
