"""A small network that has learnt where the responses of training pairs differ."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lit_tidpo.errors import InputError
from lit_tidpo.importance.base import ImportanceEstimator
from lit_tidpo.locations import locate
from lit_tidpo.structures import ResponseBatch, Results

FILE_NAME = "detector.safetensors"


class DetectorNetwork(nn.Module):
    """Gated convolutions over token ids, looking to both sides (arXiv 1612.08083).

    Args:
        vocabulary: Entries of the tokenizer's vocabulary ``V``.
        width: Channels.
        layers: Convolutions; each sees ``kernel // 2`` tokens more to each side.
        kernel: Tokens that a convolution spans, odd.
        dropout: Probability of dropping a channel while training.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int = 64,
        layers: int = 3,
        kernel: int = 5,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(width, 2 * width, kernel, padding=kernel // 2) for _ in range(layers)
        )
        self.head = nn.Linear(width, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, batch: ResponseBatch) -> Tensor:
        """Log-probability that a token is the decisive one of its response.

        Args:
            batch: Rows of any roles.

        Returns:
            Log-probabilities over the response of each row, minus infinity elsewhere, ``[N, T]``.
        """
        # Padding is zero before each convolution, as if the row ended there.
        present = batch.attention_mask.unsqueeze(-1)
        hidden = self.dropout(self.embedding(batch.input_ids)) * present
        for convolution in self.convolutions:
            columns = convolution(self.dropout(hidden).transpose(1, 2))
            hidden = (hidden + nn.functional.glu(columns, dim=1).transpose(1, 2)) * present
        logits: Tensor = self.head(hidden).squeeze(-1).float()
        return logits.masked_fill(~batch.response_mask, -torch.inf).log_softmax(-1)


class DetectorImportance(ImportanceEstimator):
    """Probability that a token is decisive, by a network that learnt it from other pairs.

    ``python -m lit_tidpo.assets.build.detector`` trains one, in a checkout of the repository: its
    labels are the tokens in which the chosen and the rejected response of a training pair differ.
    It sees the tokens of one row alone, neither the other response nor the policy. Of use where
    pairs differ in few places; where responses are written anew from end to end, there is nothing
    for it to learn.

    Args:
        path: A file that the training wrote, a folder with it, or ``builtin:detector`` for the
            shipped data and tokenizer. It must have been trained with the policy's tokenizer.

    Raises:
        InputError: If there is no network at the path.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        # Frozen, and no module of its own: it enters neither checkpoints nor DDP's buckets.
        self._network = load_detector(path)

    def scores(self, results: Results) -> Tensor:
        """Probabilities over the response, zero elsewhere, ``[N, T]``.

        Raises:
            InputError: If a token is outside the network's vocabulary.
        """
        batch = results.batch
        vocabulary = self._network.embedding.num_embeddings
        highest = int(batch.input_ids.max())
        if highest >= vocabulary:
            raise InputError(
                f"the detector at {self.path!r} knows {vocabulary} tokens, but the batch holds "
                f"token {highest}: expected one trained with the policy's tokenizer"
            )
        with torch.no_grad():
            log_probs: Tensor = self._network.to(batch.input_ids.device)(batch)
        return log_probs.exp()


def load_detector(path: str) -> DetectorNetwork:
    """Load a trained network.

    Args:
        path: A file, a folder that holds ``detector.safetensors``, or ``builtin:detector``.

    Returns:
        The network, frozen, in eval mode and fp32.

    Raises:
        InputError: If there is none.
    """
    file = Path(locate(path))
    file = file / FILE_NAME if file.is_dir() else file
    try:
        weights = load_file(file)
        vocabulary, width = weights["embedding.weight"].shape
        kernel = weights["convolutions.0.weight"].shape[-1]
        layers = sum(name.endswith(".weight") for name in weights) - 2
        network = DetectorNetwork(vocabulary, width, layers, kernel)
        network.load_state_dict(weights)
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise InputError(
            f"no detector at {str(file)!r} ({type(error).__name__}): expected a file that "
            "python -m lit_tidpo.assets.build.detector wrote"
        ) from error
    return network.requires_grad_(False).eval()
