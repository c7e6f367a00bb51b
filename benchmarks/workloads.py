"""What is trained on: a random Llama, a tokenizer of numbered words, and pairs of random tokens.

Both sides read the same folder: the same weights, and the same rows in the same order.
"""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

FOLDER = Path("runs/bench")


@dataclass(frozen=True)
class Workload:
    """A model and pairs.

    Attributes:
        name: Name of the folder.
        prompt: Median tokens of a prompt.
        response: Median tokens of a response.
        spread: Standard deviation of the lengths' logarithm; 0 makes all rows alike.
        longest: Tokens at the most, of a prompt and of a response.
        vocabulary: Entries.
        hidden: Width of the model; heads of 64.
        layers: Layers.
        pairs: Pairs in a batch.
        precision: Of the computation: ``fp32`` or ``bf16``.
        grouped: Whether rows of like length stand together.
        rate: Learning rate.
    """

    name: str
    prompt: int = 53
    response: int = 65
    spread: float = 0.6
    longest: int = 400
    vocabulary: int = 8192
    hidden: int = 256
    layers: int = 6
    pairs: int = 4
    precision: str = "fp32"
    grouped: bool = True
    rate: float = 1e-4

    def useful_tokens(self, folder: Path, steps: Iterable[int]) -> float:
        """Tokens of a batch on average, ends included, prompts counted with each response.

        Args:
            folder: What :meth:`prepare` returned.
            steps: Numbers of the steps, of which each takes the next batch, again and again.
        """
        lines = (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [[len(text.split()) for text in json.loads(line).values()] for line in lines]
        tokens = [2 * prompt + chosen + rejected + 2 for prompt, chosen, rejected in rows]
        batches = [sum(tokens[i : i + self.pairs]) for i in range(0, len(rows), self.pairs)]
        return statistics.mean(batches[step % len(batches)] for step in steps)

    def prepare(self, batches: int) -> Path:
        """Write model, tokenizer and rows, if they are not there.

        Args:
            batches: Number of batches.

        Returns:
            The folder.
        """
        folder = FOLDER / f"{self.name}-{batches}"
        if (folder / "train.jsonl").exists():
            return folder
        ends = {"unk_token": "<unk>", "eos_token": "<eos>", "pad_token": "<pad>"}
        entries = [*ends.values(), *(f"t{i}" for i in range(3, self.vocabulary))]
        known = {entry: i for i, entry in enumerate(entries)}
        words = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
        words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        PreTrainedTokenizerFast(tokenizer_object=words, **ends).save_pretrained(folder)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(self.config()).save_pretrained(folder)
        rows = "".join(json.dumps(row) + "\n" for row in self._rows(batches))
        (folder / "train.jsonl").write_text(rows, encoding="utf-8")
        return folder

    def config(self) -> LlamaConfig:
        """Configuration of the model."""
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=3 * self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.hidden // 64,
            num_key_value_heads=self.hidden // 64,
            max_position_embeddings=16384,
            tie_word_embeddings=self.vocabulary > 2**16,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=2,
        )

    def _rows(self, batches: int) -> list[dict[str, str]]:
        draw = random.Random(0)

        def words(median: int) -> str:
            length = round(median * draw.lognormvariate(0, self.spread)) if self.spread else median
            length = min(max(length, 4), self.longest)
            return "".join(f" t{draw.randrange(3, self.vocabulary)}" for _ in range(length))

        rows = [
            {
                "prompt": words(self.prompt)[1:],
                "chosen": words(self.response),
                "rejected": words(self.response),
            }
            for _ in range(batches * self.pairs)
        ]
        if not self.grouped:
            return rows
        rows.sort(key=lambda row: sum(len(text.split()) for text in row.values()))
        groups = [rows[i : i + self.pairs] for i in range(0, len(rows), self.pairs)]
        draw.shuffle(groups)
        return [row for group in groups for row in group]


LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
PAIRS = (1, 2, 4, 8, 16)
WIDTHS = (128, 256, 512, 1024)


def _sized(name: str, **changes: int) -> Workload:
    """A workload that differs from the others of its sweep in one number."""
    usual = {"prompt": 128, "response": 128, "pairs": 2, "layers": 2, "vocabulary": 2048}
    return Workload(name, spread=0.0, longest=2**14, **{**usual, **changes})  # type: ignore[arg-type]


WORKLOADS = {
    load.name: load
    for load in (
        Workload("ragged"),
        Workload("ungrouped", grouped=False),
        Workload("short", prompt=24, response=24, spread=0.3),
        Workload("long_1to1", prompt=256, response=256, spread=0.3, longest=1024, pairs=2),
        Workload("long_1to3", prompt=128, response=384, spread=0.3, longest=1024, pairs=2),
        Workload("vocab128k", vocabulary=128_000, pairs=4),
        Workload("bf16", precision="bf16"),
        Workload("even", prompt=64, response=64, spread=0.0, pairs=16),
        Workload("tiny", prompt=6, response=8, vocabulary=64, hidden=64, layers=1, pairs=2),
        Workload(
            "gpu_1b",
            prompt=512,
            response=1536,
            spread=0.3,
            longest=3072,
            vocabulary=32_000,
            hidden=2048,
            layers=16,
            pairs=4,
            precision="bf16",
            rate=1e-6,  # at 1e-4 the second epoch has losses and gradients of exactly 0
        ),
        *(_sized(f"length_{n}", prompt=n // 2, response=n // 2) for n in LENGTHS),
        *(_sized(f"pairs_{n}", pairs=n) for n in PAIRS),
        *(_sized(f"width_{n}", hidden=n) for n in WIDTHS),
    )
}
