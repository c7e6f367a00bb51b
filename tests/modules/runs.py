"""Tiny data, a tiny model and quiet Trainers: what all tests of the modules run with."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lit_tidpo.data import PreferenceDataModule
from lit_tidpo.losses.weighted_dpo_loss import WeightedDPOLoss
from lit_tidpo.models.policy import LoraOptions, PolicyConfig
from lit_tidpo.modules.preference import PreferenceModule
from lit_tidpo.sampling.anchor_options import AnchorOptions
from lit_tidpo.structures import ResponseBatch

SPECIAL = ("<pad>", "<s>", "</s>")
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
SHORT = AnchorOptions(max_new_tokens=5)
LORA = {"lora": LoraOptions(r=2, alpha=4)}
NO_TRIPLET = {"losses": {"preference": WeightedDPOLoss()}}
QUIET = [  # Lightning's, about nothing that matters here
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),  # by peft
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),
]
SGD = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9)


def write_model(folder: Path, vocabulary: int | None = None, **config) -> str:
    """Save a byte-level tokenizer and a random Llama with attention dropout; give the folder."""
    tokenizer = byte_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary or len(tokenizer),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=64,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
                **{"attention_dropout": 0.1, **config},
            )
        )
        for parameter in model.parameters():
            # The usual initial weights are so small that every token looks alike.
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    pad, bos, eos = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        chat_template=TEMPLATE,
    )


def pairs(count: int, start: int = 0) -> list[dict[str, str]]:
    """Pairs of various lengths, no two alike."""
    return [
        {
            "prompt": f"Q{number}" + "?" * (1 + number % 3),
            "chosen": f" yes{number}" + "!" * (number % 4),
            "rejected": " no" * (1 + number % 2) + str(number),
        }
        for number in range(start, start + count)
    ]


def write_data(folder: Path, train: int = 12, validation: int = 5) -> str:
    """Write the splits ``train`` and ``validation``; give the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in (("train", pairs(train)), ("validation", pairs(validation, 100))):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return str(folder)


def make_data(source: str, model_folder: str, **options) -> PreferenceDataModule:
    return PreferenceDataModule(
        source, model_folder, **{"max_length": 48, "batch_size": 4, **options}
    )


def make_module(model_folder: str, policy: dict | None = None, **options) -> PreferenceModule:
    return PreferenceModule(
        PolicyConfig(path=model_folder, **(policy or {})), **{"optimizer": SGD, **options}
    )


def make_built(model_folder: str, **options) -> PreferenceModule:
    """A module that needs no Trainer."""
    module = make_module(model_folder, **options)
    module.configure_model()
    return module


def reference_of(module):
    """What the policy of a built module is compared with."""
    return module.models.others["reference"]


def quiet_trainer(**options) -> Trainer:
    """A Trainer on one CPU process that writes nothing."""
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
    }
    return Trainer(**{**quiet, **options})


def every_step(folder: Path) -> dict[str, object]:
    """Trainer options that keep a checkpoint of each step, named ``step=N.ckpt``."""
    saver = ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    return {"callbacks": [saver], "enable_checkpointing": True}


class Recorder(Callback):
    """Keeps the batches of each optimizer step, and what that step logged, used and left."""

    def __init__(self):
        self.windows: list[list[ResponseBatch]] = []
        self.metrics: list[dict[str, float]] = []
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.parameters: list[dict[str, torch.Tensor]] = []

    @property
    def rows(self) -> list[list[list[int]]]:
        """Positions of the pairs, batch by batch of each step."""
        return [[batch.index.tolist() for batch in window] for window in self.windows]

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if len(self.windows) == len(self.metrics):
            self.windows.append([])
        self.windows[-1].append(batch)
        if trainer.fit_loop.epoch_loop._should_accumulate():
            return
        logged = trainer.callback_metrics.items()
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        self.metrics.append({"lr": rate, **{name: float(value) for name, value in logged}})
        self.gradients.append(gradients(module))
        self.parameters.append(parameters(module))


def fit(module, data, folder=None, ckpt_path=None, **trainer) -> Recorder:
    """Train, by default for three steps; with a folder, keep a checkpoint of each step."""
    recorder = Recorder()
    options = {"max_steps": 3, **trainer, **(every_step(folder) if folder else {})}
    options["callbacks"] = [*options.get("callbacks", []), recorder]
    quiet_trainer(**options).fit(module, data, ckpt_path=ckpt_path)
    return recorder


def gradients(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the gradients by parameter name."""
    named = module.named_parameters()
    return {name: value.grad.clone() for name, value in named if value.grad is not None}


def logits(model: torch.nn.Module, batch: ResponseBatch) -> torch.Tensor:
    """Logits of all rows."""
    with torch.no_grad():
        return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits


def parameters(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the parameters by name."""
    names, values = zip(*module.named_parameters(), strict=True)
    names = [name.replace("_fsdp_wrapped_module.", "") for name in names]  # by FSDP1
    return dict(zip(names, whole(values), strict=True))


def whole(values) -> list[torch.Tensor]:
    """Copies of tensors, gathered where they are sharded."""
    return [
        (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()
        for value in values
    ]


def assert_same(first: dict, second: dict, atol: float = 0.0) -> None:
    """Two dictionaries of tensors or numbers are the same."""
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(
            torch.as_tensor(first[name]),
            torch.as_tensor(second[name]),
            atol=atol,
            rtol=0,
            equal_nan=True,
            msg=lambda text, name=name: f"{name}: {text}",
        )
