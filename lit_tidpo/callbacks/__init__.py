"""Callbacks: what is written beside the logs."""

from lit_tidpo.callbacks.token_writer import TokenWriter

__all__ = ["TokenWriter"]
