"""Who is measured: settings of the two trainers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from lit_tidpo.losses.dpo_loss import DPOLoss
from lit_tidpo.losses.triplet_loss import TripletLoss
from lit_tidpo.losses.weighted_dpo_loss import WeightedDPOLoss
from lit_tidpo.models.policy import LigerKernel
from lit_tidpo.sampling.anchor_options import AnchorOptions

CACHE = "runs/bench/reference"


@dataclass(frozen=True)
class Contestant:
    """One way to train.

    Attributes:
        side: ``ours``, ``trl`` or ``naive``.
        options: Options of ``PreferenceModule``, or of TRL's ``DPOConfig``.
        compiled: Whether the policy's layers are compiled.
        liger: Kernels of Liger that the policy runs.
        devices: Processes that train together, each on a batch of its own.
        laid_out: Whether packed rows are laid out for attention where a kernel takes them as they
            are.
    """

    side: str
    options: dict[str, Any] = field(default_factory=dict)
    compiled: bool = False
    liger: list[LigerKernel] | None = None
    devices: int = 1
    laid_out: bool = False


def _plain(**options: Any) -> Contestant:
    return Contestant("ours", {"losses": {"dpo": DPOLoss()}, "reference_cache": CACHE, **options})


def _full(reuse: int, **options: Any) -> Contestant:
    losses = {"weighted": WeightedDPOLoss(alpha=0.5), "triplet": TripletLoss()}
    anchor = AnchorOptions(max_new_tokens=64, reuse_steps=reuse)
    settings = {"losses": losses, "loss_weights": {"triplet": 0.1}, "anchor": anchor}
    return Contestant("ours", {**settings, **options})


_WEIGHTED = {"weighted": WeightedDPOLoss(alpha=0.0)}
_TRL_BEST = {"gradient_checkpointing": False, "precompute_ref_log_probs": True}

CONTESTANTS = {
    "trl_default": Contestant("trl"),
    "trl_best": Contestant("trl", _TRL_BEST),
    "plain": _plain(),
    "plain_online_reference": _plain(reference_cache=None),
    "plain_padded": _plain(layout="padded"),
    "plain_packed": _plain(layout="packed"),
    "plain_tiles": _plain(logits_at_once=2**21),
    "plain_all_logits": _plain(logits_at_once=2**40),
    "plain_compiled": replace(_plain(), compiled=True),
    "plain_liger": replace(_plain(), liger=["rms_norm", "rope"]),
    "plain_laid_out": replace(_plain(), laid_out=True),
    "plain_two_processes": replace(_plain(), devices=2),
    "importance": _plain(losses=_WEIGHTED),
    "importance_online_reference": _plain(losses=_WEIGHTED, reference_cache=None),
    "importance_every_16": _plain(losses=_WEIGHTED, importance_every=16),
    "tidpo": _full(1),
    "tidpo_reuse_8": _full(8),
    "naive_tidpo": Contestant("naive", {"padded_anchors": True}),
    "naive_tidpo_short_anchors": Contestant("naive", {"padded_anchors": False}),
    "naive_tidpo_without_cache": Contestant("naive", {"padded_anchors": True, "use_cache": False}),
    "naive_tidpo_pair_by_pair": Contestant("naive", {"padded_anchors": True, "pair_by_pair": True}),
}
