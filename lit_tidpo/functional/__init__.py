"""The mathematics as free functions: tensors in, tensors out, torch alone."""

from lit_tidpo.functional.importance import (
    clip_weights,
    gaussian_prior,
    highest_scores,
    hybrid_weights,
    normalize_scores,
    relative_to_neighbours,
    scale_weights,
    softmax_prior,
    temper_scores,
)
from lit_tidpo.functional.log_probs import (
    kl_divergence,
    selected_log_probs,
    token_log_probs,
)
from lit_tidpo.functional.losses import (
    dpo_loss,
    from_first_token,
    log_odds,
    plackett_luce_loss,
    response_distance,
    response_positions,
    scaled_basu_loss,
    sequence_mean,
    sequence_sum,
    tdpo_margin,
    triplet_loss,
)
from lit_tidpo.functional.predictions import (
    Predictions,
    Projection,
    predictions,
    tiled_predictions,
)
from lit_tidpo.functional.transport import unbalanced_transport

__all__ = [
    "Predictions",
    "Projection",
    "clip_weights",
    "dpo_loss",
    "from_first_token",
    "gaussian_prior",
    "highest_scores",
    "hybrid_weights",
    "kl_divergence",
    "log_odds",
    "normalize_scores",
    "plackett_luce_loss",
    "predictions",
    "relative_to_neighbours",
    "response_distance",
    "response_positions",
    "scale_weights",
    "scaled_basu_loss",
    "selected_log_probs",
    "sequence_mean",
    "sequence_sum",
    "softmax_prior",
    "tdpo_margin",
    "temper_scores",
    "tiled_predictions",
    "token_log_probs",
    "triplet_loss",
    "unbalanced_transport",
]
