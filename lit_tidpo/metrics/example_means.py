"""Means over examples of quantities with a name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_tidpo.devices.host_rows import to_device


class ExampleMeans(Metric):
    """Mean of several named per-example quantities, weighted by examples.

    Neither the micro-batch nor the rank an example fell into sets its weight.

    Args:
        names: Every quantity that may be updated.

    Example:
        >>> means = ExampleMeans(["loss"])
        >>> means.update({"loss": torch.tensor([1.0, 3.0])}, torch.tensor([True, True]))
        >>> means.update({"loss": torch.tensor([8.0, 9.0])}, torch.tensor([True, False]))
        >>> means.compute()
        {'loss': tensor(4.)}
    """

    full_state_update = False
    higher_is_better = None
    totals: Tensor
    counts: Tensor

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names
        self._updated: set[str] = set()
        self._places: dict[tuple[torch.device, tuple[str, ...]], Tensor] = {}
        zeros = torch.zeros(len(names), dtype=torch.float64)
        self.add_state("totals", default=zeros, dist_reduce_fx="sum")
        self.add_state("counts", default=zeros.clone(), dist_reduce_fx="sum")
        self.set_dtype(torch.float64)

    def update(self, values: Mapping[str, Tensor], counted: Tensor) -> None:
        """Add a batch.

        Args:
            values: Quantities by name, each ``[B]``; none of a batch that is left out.
            counted: False for examples to leave out, ``[B]`` bool.
        """
        if not values:
            return
        self._updated |= values.keys()
        key = counted.device, tuple(values)
        if key not in self._places:  # kept, as making an index on a device waits for it
            places = torch.tensor([self.names.index(name) for name in values])
            self._places[key] = to_device(places, counted.device)
        places = self._places[key]
        stacked = torch.stack([value.detach().double() for value in values.values()])
        sums = stacked.masked_fill(~counted, 0.0).sum(-1)
        # Not in place: the state may be an inference tensor of a validation. FSDP casts it.
        totals, counts = self.totals.double(), self.counts.double()
        self.totals = totals.index_add(0, places, sums)
        self.counts = counts.index_add(0, places, counted.sum().to(sums).expand_as(sums))

    def compute(self) -> dict[str, Tensor]:
        """Mean of each quantity that was updated."""
        means = (self.totals / self.counts).float()
        if self._is_synced:  # other ranks may have updated others
            seen = {name for name, n in zip(self.names, self.counts.tolist(), strict=True) if n > 0}
        else:
            seen = self._updated
        return {name: mean for name, mean in zip(self.names, means, strict=True) if name in seen}

    def reset(self) -> None:
        """Start over."""
        super().reset()
        self._updated = set()
