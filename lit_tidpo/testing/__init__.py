"""What plugin authors test with: tiny models and batches, and conformance checks."""

from lit_tidpo.testing.conformance import check_importance_estimator, check_loss_component
from lit_tidpo.testing.tiny import tiny_batch, tiny_context, tiny_groups, tiny_policy

__all__ = [
    "check_importance_estimator",
    "check_loss_component",
    "tiny_batch",
    "tiny_context",
    "tiny_groups",
    "tiny_policy",
]
