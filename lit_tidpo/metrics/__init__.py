"""Metrics of preference training."""

from lit_tidpo.metrics.example_means import ExampleMeans

__all__ = ["ExampleMeans"]
