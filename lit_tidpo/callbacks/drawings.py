"""Curves and shaded tokens as drawings."""

from __future__ import annotations

import io
import unicodedata
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from lit_tidpo.errors import InputError
from lit_tidpo.explaining.page import shown_tokens, visible
from lit_tidpo.explaining.pairs import ExplainedPair

_COLUMNS = 100
"""Letters in a line of a picture."""
_LINES = 40
"""Lines of a text that a picture shows at the most."""
_LETTER, _LINE = 0.0753, 0.18
"""Width of a letter of 9 points and height of its line, in inches."""
_PART = "\ufffd"
"""Stands for a token that is a part of a letter."""
_PLUS, _MINUS = "#e08214", "#2b83ba"
"""The colours of the page."""

Cell = tuple[str, int, bool]
"""Text, its level in percent of the largest, and whether it is marked."""


def check_drawing(what: str) -> None:
    """Find out whether anything can be drawn.

    Args:
        what: What is to be drawn.

    Raises:
        InputError: If matplotlib is missing.
    """
    if find_spec("matplotlib") is None:
        raise InputError(f"{what} needs matplotlib: pip install 'lit-tidpo[report]'")


def draw_curves(curves: dict[str, list[tuple[int, float]]]) -> str:
    """Draw each curve against the step.

    Args:
        curves: Points ``(step, value)`` by name.

    Returns:
        An SVG for each, without a ground of its own.
    """
    return "".join(_curve(name, points) for name, points in curves.items())


def _curve(name: str, points: list[tuple[int, float]]) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 3), layout="constrained")
    axes: Any = figure.subplots()
    axes.plot([step for step, _ in points], [value for _, value in points], marker=".")
    axes.set_title(name, parse_math=False)
    axes.set_xlabel("step")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.ticklabel_format(axis="y", useOffset=False)
    drawing = io.StringIO()
    figure.savefig(drawing, format="svg", transparent=True)
    return drawing.getvalue()[drawing.getvalue().index("<svg") :]


def draw_pair(pair: ExplainedPair, title: str) -> Any:
    """Draw a prompt and its responses, whose tokens are shaded by their weight as on the page.

    Args:
        pair: The pair; its first column is shown.
        title: The first line.

    Returns:
        Pixels ``[height, width, 3]``, 0 to 255, of numpy.
    """
    import numpy
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines: list[list[Cell]] = [[(title, 0, False)], *_text("prompt", [(pair.prompt, 0, False)])]
    for response in pair.responses:
        tokens = shown_tokens(response, pair)
        lines += _text(
            response.role, [(each.text or _PART, each.levels[0], each.edited) for each in tokens]
        )
    figure = Figure(figsize=((_COLUMNS + 4) * _LETTER, (len(lines) + 1) * _LINE), dpi=100)
    canvas: Any = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-2, _COLUMNS + 2), ylim=(len(lines) + 0.5, -0.5))
    axes.set_axis_off()
    for place, line in enumerate(lines):
        _draw_line(axes, line, place)
    with warnings.catch_warnings():  # letters that the font has not are drawn as boxes
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        canvas.draw()
    return numpy.asarray(canvas.buffer_rgba())[..., :3].copy()


def _text(heading: str, cells: list[Cell]) -> list[list[Cell]]:
    """An empty line, the heading, and the cells in lines, of which the last may be left out."""
    lines = list(_wrapped(cells))
    if len(lines) > _LINES:
        lines = [*lines[:_LINES], [(f"... {len(lines) - _LINES} more lines", 0, False)]]
    return [[], [(f"-- {visible(heading)} --", 0, False)], *lines]


def _wrapped(cells: list[Cell]) -> Iterator[list[Cell]]:
    line: list[Cell] = []
    column = 0
    for text, level, edited in cells:
        held = ""
        for letter in visible(text).expandtabs(4):
            if letter == "\n" or column + _width(letter) > _COLUMNS:
                yield [*line, (held, level, edited)]
                line, held, column = [], "", 0
            if letter != "\n":
                held += letter
                column += _width(letter)
        line.append((held, level, edited))
    yield line


def _width(text: str) -> int:
    """Columns that a text takes; Chinese, Japanese and Korean letters take two."""
    return sum(2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in text)


def _draw_line(axes: Any, cells: list[Cell], line: int) -> None:
    from matplotlib.patches import Rectangle

    column = 0
    for text, level, edited in cells:
        width, colour = _width(text), _PLUS if level >= 0 else _MINUS
        if level:
            shade = Rectangle((column, line), width, 1, color=colour, lw=0, alpha=abs(level) / 100)
            axes.add_patch(shade)
        if edited:
            axes.add_patch(Rectangle((column, line + 0.87), width, 0.1, color="black", lw=0))
        axes.text(
            column,
            line + 0.75,
            text,
            family="monospace",
            size=9,
            va="baseline",
            color="black",
            parse_math=False,
        )
        column += width
