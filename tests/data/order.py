"""A module that only records which rows it is trained on."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule


class Order(LightningModule):
    """Records something of each training batch, after its epoch.

    Args:
        record: Takes the batch and its number, and returns what to keep, as a tuple.
    """

    def __init__(self, record):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.record = record
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, *self.record(batch, batch_idx)))
        return self.layer(torch.ones(1, 1)).sum()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
