"""The edit of one response into another."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher


def changed(first: Sequence[int], second: Sequence[int]) -> tuple[list[bool], list[bool]]:
    """Which tokens an edit takes away from the first and puts into the second.

    The edit is that of :class:`difflib.SequenceMatcher`, without its heuristic for long texts.

    Args:
        first: Token ids.
        second: Token ids of another response.

    Returns:
        For each token of the first and of the second whether it is no part of what both share.

    Example:
        >>> changed([1, 2, 3], [1, 3, 4])
        ([False, True, False], [False, False, True])
    """
    marks = [True] * len(first), [True] * len(second)
    matcher = SequenceMatcher(None, first, second, autojunk=False)
    for block in matcher.get_matching_blocks():
        for own, start in zip(marks, (block.a, block.b), strict=True):
            own[start : start + block.size] = [False] * block.size
    return marks
