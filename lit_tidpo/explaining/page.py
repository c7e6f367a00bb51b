"""From explained pairs to HTML: one file, without network, in which no text acts."""

from __future__ import annotations

import base64
import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lit_tidpo.explaining.pairs import ExplainedPair, ExplainedResponse

_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"})
"""Categories of Unicode of which a reader sees nothing."""

_BLANK = "\u034f\u115f\u1160\u2800\u3164\uffa0"
"""Letters and marks that look like nothing."""


@dataclass(frozen=True)
class ShownToken:
    """A token as the page shows it.

    Attributes:
        text: Its text; nothing of a token that is a part of a letter.
        edited: Whether it is marked.
        levels: Of each column its value in percent of the pair's largest absolute one.
        note: All numbers in words.
    """

    text: str
    edited: bool
    levels: list[int]
    note: str


def rendered(template: str, **values: Any) -> str:
    """A page.

    Args:
        template: Name of a template without its ending.
        values: What it shows; texts are escaped by it.
    """
    return _environment().get_template(f"{template}.html.jinja").render(values)


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("lit_tidpo.explaining"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"visible": visible, "tokens": shown_tokens, "columns": columns}
    assert made.loader is not None
    script, style = (made.loader.get_source(made, name)[0] for name in ("page.js", "page.css"))
    # The browser runs the script of this hash, and no other.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    made.globals |= {"script": Markup(script), "style": Markup(style), "digest": digest}
    return made


def visible(text: str) -> str:
    r"""A text in which nothing reorders or hides.

    Control and format characters (NUL, ESC, marks of direction), surrogates, unassigned ones and
    line separators but the line feed and the tab come as their number.

    Example:
        >>> visible("<b>\u202e")
        '<b>\\u202e'
    """
    return "".join(
        f"\\u{ord(each):04x}"
        if (unicodedata.category(each) in _UNSEEN or each in _BLANK) and each not in "\n\t"
        else each
        for each in text
    )


def columns(pairs: Sequence[ExplainedPair]) -> dict[str, list[str]]:
    """Names of what tokens can be shaded by: weights by estimator, and other quantities."""
    first = next((pair.responses[0] for pair in pairs), None)
    if first is None:
        return {}
    return {"weights": [*first.weights], "other quantities": [*first.quantities]}


def shown_tokens(response: ExplainedResponse, pair: ExplainedPair) -> list[ShownToken]:
    """The tokens of a response.

    Args:
        response: The response.
        pair: Its pair, whose largest absolute value of a column is shaded the most.
    """
    values = [*response.weights.values(), *response.quantities.values()]
    peaks = [
        max((abs(value) for each in pair.responses for value in _column(each, place)), default=0)
        for place in range(len(values))
    ]
    levels = [
        [round(100 * value / peak) if peak else 0 for value in own]
        for own, peak in zip(values, peaks, strict=True)
    ]
    notes = _notes(response)
    return [
        ShownToken(text.replace("\n", "↵\n"), edited, [own[place] for own in levels], notes[place])
        for place, (text, edited) in enumerate(zip(response.tokens, response.edited, strict=True))
    ]


def _column(response: ExplainedResponse, place: int) -> list[float]:
    return [*response.weights.values(), *response.quantities.values()][place]


def _notes(response: ExplainedResponse) -> list[str]:
    """For each token its weights with their ranks, and its quantities."""
    count = len(response.tokens)
    parts = [
        [
            f"{name} {weight:.3g} (rank {rank} of {count})"
            for weight, rank in zip(weights, response.ranks(name), strict=True)
        ]
        for name, weights in response.weights.items()
    ]
    parts += [
        [f"{name} {value:+.3f}" if name == "log-ratio" else f"{name} {value:.3f}" for value in own]
        for name, own in response.quantities.items()
    ]
    return [", ".join(own) for own in zip(*parts, strict=True)]
