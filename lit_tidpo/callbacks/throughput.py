"""Sizes of batches for Lightning's ThroughputMonitor.

In a configuration::

    class_path: lightning.pytorch.callbacks.ThroughputMonitor
    init_args:
      batch_size_fn: lit_tidpo.callbacks.throughput.prompts
      length_fn: lit_tidpo.callbacks.throughput.tokens
"""

from __future__ import annotations

from lit_tidpo.structures import ResponseBatch


def prompts(batch: ResponseBatch) -> int:
    """Prompts in a batch: pairs, where each has a chosen and a rejected response."""
    return batch.size


def tokens(batch: ResponseBatch) -> int:
    """Tokens in a batch, of prompts and responses, without padding; a prompt counts in each row."""
    return int(batch.lengths.sum())
