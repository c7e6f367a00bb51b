"""What all exchangeable parts have in common."""

from __future__ import annotations


class Component:
    """A part that a configuration chooses by its class.

    It keeps each constructor argument as an attribute of the same name, so that checkpoints can
    store it; the types and the lines under ``Args:`` become the command line's help.
    """
