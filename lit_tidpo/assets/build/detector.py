r"""Train the network of :class:`~lit_tidpo.importance.detector_importance.DetectorImportance`.

For the shipped data, in about a minute on one CPU core::

    python -m lit_tidpo.assets.build.detector --output lit_tidpo/assets/detector \
        --source builtin:stdlib_defects --tokenizer builtin:policy --max_length 512
"""

from __future__ import annotations

from collections.abc import Iterator
from difflib import SequenceMatcher
from pathlib import Path

import torch
from jsonargparse import auto_cli
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

from lit_tidpo.data import PreferenceDataModule
from lit_tidpo.data.sampling import ResumableSampler
from lit_tidpo.importance.detector_importance import FILE_NAME, DetectorNetwork
from lit_tidpo.seeding import seeded
from lit_tidpo.structures import ResponseBatch


def decisive_tokens(batch: ResponseBatch) -> Tensor:
    """Tokens in which the chosen and the rejected response of a pair differ.

    Where text is missing from one of them, the token that stands in its place is marked.

    Args:
        batch: Rows of the roles ``chosen`` and ``rejected``.

    Returns:
        True at these tokens, ``[N, T]`` bool.
    """
    marked = torch.zeros_like(batch.response_mask)
    spans = list(zip(batch.prompt_lengths.tolist(), batch.lengths.tolist(), strict=True))
    responses = [
        row[start:end].tolist() for row, (start, end) in zip(batch.input_ids, spans, strict=True)
    ]
    chosen, rejected = batch.rows("chosen").start, batch.rows("rejected").start
    for pair in range(batch.size):
        rows = (chosen + pair, rejected + pair)
        for bounds in _differences(*(responses[row] for row in rows)):
            for row, (first, last) in zip(rows, bounds, strict=True):
                start, end = spans[row]
                marked[row, start + first : min(start + max(last, first + 1), end)] = True
    return marked


def _differences(
    chosen: list[int], rejected: list[int]
) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Spans of the two responses that stand for each other, start and end of each."""
    # Shared ends go first: SequenceMatcher would pair a token with any other of its kind.
    lead = _shared(chosen, rejected)
    tail = _shared(chosen[lead:][::-1], rejected[lead:][::-1])
    inner = (chosen[lead : len(chosen) - tail], rejected[lead : len(rejected) - tail])
    for tag, *bounds in SequenceMatcher(None, *inner, autojunk=False).get_opcodes():
        if tag != "equal":
            a, b, c, d = (bound + lead for bound in bounds)
            yield (a, b), (c, d)


def _shared(first: list[int], second: list[int]) -> int:
    """Number of leading tokens that both share."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(first), len(second)))


def train_detector(
    output: Path,
    source: str,
    tokenizer: str,
    max_length: int = 1024,
    epochs: int = 3,
    batch_size: int = 16,
    learning_rate: float = 4e-3,
    seed: int = 0,
) -> None:
    """Train a detector on the training split of preference data, and save it.

    The loss is the cross-entropy between the decisive tokens of a response, all alike, and the
    network's distribution over its tokens.

    Args:
        output: Folder to write ``detector.safetensors`` into.
        source: Preference data, as for ``--data.source``.
        tokenizer: Tokenizer of the policy that it will serve.
        max_length: Most tokens of prompt and response together.
        epochs: Passes over the pairs.
        batch_size: Pairs in a batch.
        learning_rate: Highest learning rate.
        seed: Seed of weights, order and dropout.
    """
    data = PreferenceDataModule(
        source,
        tokenizer,
        max_length=max_length,
        batch_size=batch_size,
        group_by_length=True,
        invalid_rows="drop",
        seed=seed,
    )
    data.prepare_data()
    data.setup("fit")
    with seeded(seed):
        network = DetectorNetwork(len(data.tokenizer))
        _fit(network, data, epochs, learning_rate)
    output.mkdir(parents=True, exist_ok=True)
    halves = {name: value.half().contiguous() for name, value in network.state_dict().items()}
    save_file(halves, output / FILE_NAME)


def _fit(
    network: DetectorNetwork, data: PreferenceDataModule, epochs: int, learning_rate: float
) -> None:
    batches = epochs * len(data.train_dataloader())
    optimizer = AdamW(network.parameters(), weight_decay=0.05)
    schedule = OneCycleLR(optimizer, learning_rate, total_steps=batches)
    for batch in _epochs(data, epochs):
        marked = decisive_tokens(batch)
        shares = marked / marked.sum(-1, keepdim=True).clamp(min=1)
        log_probs = network(batch).masked_fill(~batch.response_mask, 0.0)
        loss = -(shares * log_probs).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def _epochs(data: PreferenceDataModule, epochs: int) -> Iterator[ResponseBatch]:
    loader = data.train_dataloader()
    assert isinstance(loader.sampler, ResumableSampler)
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        yield from loader


if __name__ == "__main__":
    auto_cli(train_detector, as_positional=False)
