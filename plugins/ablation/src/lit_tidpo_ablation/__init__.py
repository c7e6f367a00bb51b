"""Token importance by ablation with Captum, a plugin for lit-tidpo."""

from lit_tidpo_ablation.ablation import AblationImportance

__all__ = ["AblationImportance"]
