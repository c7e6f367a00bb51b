"""Defects planted in the source of a function, one at a time.

A defect replaces, drops or inserts text, so that the rest keeps its formatting. Its two spans mark
the changed text in each version; they start at the same place and are never empty:

* replaced text: the whole operators, names or literals, old in one version and new in the other;
* a dropped ``not``: the word with the space after it, and in the other version the token that
  moves to its place;
* an added ``not``: the same, the other way round.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass

from lit_tidpo.assets.build.rules import RULES, Edit
from lit_tidpo.assets.build.source import FunctionSource, Span, parse


@dataclass(frozen=True)
class Defect:
    """One planted defect.

    Attributes:
        kind: Name of its rule in :data:`~lit_tidpo.assets.build.rules.RULES`.
        rejected: The body with the defect.
        chosen_span: Start and end of the changed text, in characters of the true body.
        rejected_span: Start and end of the changed text, in characters of ``rejected``.
    """

    kind: str
    rejected: str
    chosen_span: Span
    rejected_span: Span


def plant_defects(prompt: str, body: str) -> list[Defect]:
    r"""Enumerate the defects that can be planted in the body of a function.

    Args:
        prompt: Source of the function up to the end of its docstring.
        body: The rest, from the newline after the docstring.

    Returns:
        The defects, by place, then by kind. Each leaves Python that parses to another syntax tree.

    Raises:
        InputError: If ``prompt + body`` is not one function with a docstring.

    Example:
        >>> prompt = 'def small(x):\n    "Is x below the limit?"'
        >>> boundary, comparison = plant_defects(prompt, "\n    return x < limit")
        >>> comparison.kind, comparison.rejected, comparison.chosen_span
        ('comparison', '\n    return x > limit', (14, 15))
    """
    source, shift = FunctionSource(prompt + body), len(prompt)
    true_tree = ast.dump(parse(source.text))
    defects = []
    for kind, rule in RULES.items():
        for edit in dict.fromkeys(rule(source)):
            if _is_different(source.text, edit, true_tree):
                rejected = _edited(source.text, edit)[shift:]
                defects.append(Defect(kind, rejected, *_spans(source, edit, shift)))
    return sorted(defects, key=lambda defect: (defect.chosen_span, defect.kind, defect.rejected))


def _edited(text: str, edit: Edit) -> str:
    return text[: edit.start] + edit.text + text[edit.end :]


def _is_different(text: str, edit: Edit, true_tree: str) -> bool:
    try:
        return ast.dump(parse(_edited(text, edit))) != true_tree
    except SyntaxError:
        return False


def _spans(source: FunctionSource, edit: Edit, shift: int) -> tuple[Span, Span]:
    """Spans of an edit in the two bodies; an empty side covers the token that is there instead."""
    start = edit.start - shift
    if edit.start < edit.end and edit.text:
        return (start, edit.end - shift), (start, start + len(edit.text))
    token_start, token_end = source.next_token(edit.end)
    token = token_end - token_start
    before, after = edit.end - edit.start or token, len(edit.text) or token
    return (start, start + before), (start, start + after)


def spans_hold(chosen: str, rejected: str, chosen_span: Span, rejected_span: Span) -> bool:
    """Whether two bodies differ, and only by the text in their spans.

    Args:
        chosen: The true body.
        rejected: The body with the defect.
        chosen_span: Changed text of ``chosen``.
        rejected_span: Changed text of ``rejected``.

    Returns:
        True if the spans are as this module describes them.
    """
    (start, end), (same_start, other_end) = chosen_span, rejected_span
    after = (
        (chosen[end:], rejected[other_end:]),  # replaced
        (chosen[end:], rejected[start:]),  # dropped
        (chosen[start:], rejected[other_end:]),  # added
    )
    return (
        start == same_start
        and start < end <= len(chosen)
        and start < other_end <= len(rejected)
        and chosen != rejected
        and chosen[:start] == rejected[:start]
        and any(rest == other_rest for rest, other_rest in after)
    )
