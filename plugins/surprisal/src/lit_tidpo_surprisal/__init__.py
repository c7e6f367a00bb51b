"""Token importance by surprisal under the reference, a plugin for lit-tidpo."""

from lit_tidpo_surprisal.surprisal import ClippedSurprisalImportance

__all__ = ["ClippedSurprisalImportance"]
