"""What the policy writes while it is trained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_tidpo.callbacks.exhibits import exhibits
from lit_tidpo.callbacks.places import log_folder
from lit_tidpo.callbacks.token_writer import tokenizer_of
from lit_tidpo.errors import InputError
from lit_tidpo.modules.base import PolicyModule
from lit_tidpo.sampling.anchor_options import AnchorOptions
from lit_tidpo.sampling.generation import Generation
from lit_tidpo.seeding import seeded
from lit_tidpo.structures import ResponseBatch


class SampleGenerations(Callback):
    """Lets the policy respond to the first prompts of the validation split at each validation.

    ``generations.jsonl`` in the log folder gets a row for each: ``step``, ``index`` of the prompt
    in its split, ``prompt``, ``response``; TensorBoard, Weights & Biases, MLflow,
    Comet and LitLogger the texts. The numbers drawn are the same at
    each validation, and training draws as it would without.

    Args:
        prompts: How many prompts, of one validation batch at the most.
        max_new_tokens: Sampled tokens at the most.
        temperature: Divides the logits before sampling.
        top_k: Sample among this many tokens only; 0 among all, 1 takes the likeliest.
        seed: Seed of the sampling.
    """

    def __init__(
        self,
        prompts: int = 4,
        max_new_tokens: int = 64,
        temperature: float = 0.8,
        top_k: int = 50,
        seed: int = 0,
    ) -> None:
        if prompts < 1:
            raise InputError(f"generations prompts={prompts}: expected 1 or more")
        self.prompts = prompts
        self.sampler = Generation(
            AnchorOptions(max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k)
        )
        self.seed = seed

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sample on all ranks, whose models may be sharded, and write on the first."""
        if not isinstance(pl_module, PolicyModule):
            raise InputError(
                f"generations are those of a policy, which {type(pl_module).__name__} has not"
            )
        loaders = trainer.val_dataloaders
        loader = next(iter(loaders), None) if isinstance(loaders, (list, tuple)) else loaders
        folder, tokenizer = log_folder(trainer), tokenizer_of(trainer)
        if loader is None or tokenizer is None:
            raise InputError("generations need a validation split and our data module's tokenizer")
        batch = _first(trainer.strategy.batch_to_device(next(iter(loader))), self.prompts)
        together = (lambda here: here) if pl_module.device_mesh is not None else None
        device = batch.input_ids.device
        with seeded(self.seed, device), trainer.precision_plugin.forward_context():
            policy, step = pl_module.built_policy, trainer.global_step
            found = self.sampler.sample(policy, batch, step=step, on_any_rank=together)
        if not trainer.is_global_zero:
            return
        folder.mkdir(parents=True, exist_ok=True)
        file, rows = folder / "generations.jsonl", list(_rows(found, tokenizer))
        with file.open("a", encoding="utf-8") as stream:
            for row in rows:
                stream.write(json.dumps({"step": step, **row}, ensure_ascii=False) + "\n")
        for exhibit in exhibits(trainer.loggers):
            exhibit.texts("generations", rows, step, file)


def _first(batch: ResponseBatch, prompts: int) -> ResponseBatch:
    """The first prompts of a batch, each with its first response alone."""
    rows = batch.role(batch.roles[0])
    return ResponseBatch(
        input_ids=rows.input_ids[:prompts],
        prompt_lengths=rows.prompt_lengths[:prompts],
        lengths=rows.lengths[:prompts],
        roles=rows.roles,
        index=rows.index[:prompts],
        counted=rows.counted[:prompts],
    )


def _rows(found: ResponseBatch, tokenizer: Any) -> Iterator[dict[str, Any]]:
    """Prompt and response of each row."""
    for place, index in enumerate(found.index.tolist()):
        start, end = int(found.prompt_lengths[place]), int(found.lengths[place])
        ids = found.input_ids[place].tolist()
        yield {
            "index": index,
            "prompt": tokenizer.decode(ids[:start]),
            "response": tokenizer.decode(ids[start:end]),
        }
