"""Preference pairs: loading, tokenising, sampling and batching."""

from lit_tidpo.data.datamodule import PreferenceDataModule

__all__ = ["PreferenceDataModule"]
