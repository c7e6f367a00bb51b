"""Preference pairs: loading, tokenising, sampling and batching."""

from lit_tidpo.data.datamodule import PreferenceDataModule
from lit_tidpo.data.row_collation import RowCollator

__all__ = ["PreferenceDataModule", "RowCollator"]
