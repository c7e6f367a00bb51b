"""Balance of a mixture of experts."""

from __future__ import annotations

from torch import Tensor

from lit_tidpo.losses.base import LossComponent, LossContext


class RouterLoss(LossComponent):
    """Keeps a mixture of experts from sending all tokens to a few of them.

    ``alpha * E * sum_i f_i P_i`` over the ``E`` experts (arXiv 2101.03961, Eq. 4 to 6), as
    transformers computes it: ``f_i`` is the share of the batch's tokens, prompts included, that go
    to expert ``i``, ``P_i`` its mean probability, and ``alpha`` the ``router_aux_loss_coef`` of the
    model's configuration. Rows are padded, as each counts its own prompt.
    """

    needs = frozenset({"policy.router_loss"})
    unit = "batch"

    def loss(self, context: LossContext) -> Tensor:
        """The loss of the whole batch, ``[]``."""
        loss: Tensor = context.responses["policy.router_loss"][0]
        return loss
