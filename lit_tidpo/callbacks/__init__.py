"""Callbacks: what is written beside the logs."""

from lit_tidpo.callbacks.moving_reference import MovingReference
from lit_tidpo.callbacks.report_page import ReportPage
from lit_tidpo.callbacks.sample_generations import SampleGenerations
from lit_tidpo.callbacks.token_writer import TokenWriter
from lit_tidpo.callbacks.weight_pictures import WeightPictures

__all__ = ["MovingReference", "ReportPage", "SampleGenerations", "TokenWriter", "WeightPictures"]
