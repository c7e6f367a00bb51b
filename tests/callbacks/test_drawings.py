"""Pictures of token weights: where which colour is, by hand."""

import pytest

from lit_tidpo.callbacks.drawings import draw_curves, draw_pair
from lit_tidpo.explaining.pairs import ExplainedPair, ExplainedResponse

pytest.importorskip("matplotlib")
PLUS, MINUS = (224, 130, 20), (43, 131, 186)


def pair(tokens, weights, edited=None):
    count = len(tokens)
    marks = edited or [False] * count
    response = ExplainedResponse("chosen", [*range(count)], tokens, marks, {"weight": weights}, {})
    return ExplainedPair(7, "what?", [response])


def cell(pixels, line, column, down=0.06, across=0.5):
    """The pixel in a letter's cell, near its top; 100 dots an inch, lines of 0.18 inches."""
    height, width, _ = pixels.shape
    lines = round(height / 18)
    y = (line + 0.5 + down) / lines * height
    x = (column + 2 + across) / 104 * width
    return tuple(int(each) for each in pixels[int(y), int(x)])


def mixed(colour, share):
    return tuple(round(255 - share * (255 - each)) for each in colour)


# lines: 0 title, 1 empty, 2 prompt's heading, 3 prompt, 4 empty, 5 chosen's heading, 6 chosen
def test_tokens_are_shaded_by_their_share_of_the_largest_weight():
    pixels = draw_pair(pair(["....", "....", "...."], [2.0, -1.0, 0.0]), "x")
    assert cell(pixels, 6, 1) == PLUS
    assert cell(pixels, 6, 5) == pytest.approx(mixed(MINUS, 0.5), abs=2)
    assert cell(pixels, 6, 9) == cell(pixels, 3, 1) == (255, 255, 255)


def test_what_differs_is_underlined():
    pixels = draw_pair(pair(["....", "...."], [0.0, 0.0], [False, True]), "x")
    assert max(cell(pixels, 6, 1, down=0.92)) == 255
    assert min(cell(pixels, 6, 5, down=0.92)) < 100


def test_long_texts_go_on_in_the_next_line_and_end():
    short, wrapped = (draw_pair(pair(["."] * n, [1.0] * n), "x").shape[0] for n in (100, 101))
    assert wrapped - short == 18
    longest, cut = (draw_pair(pair([".\n"] * n, [1.0] * n), "x").shape[0] for n in (39, 900))
    assert cut - longest == 18  # the line that says so


def test_letters_that_the_font_has_not_and_formulas_are_no_error():
    wide = draw_pair(pair(["漢🙂", "$x^{$"], [1.0, 0.5]), "$\\frac$")
    assert cell(wide, 6, 3) == PLUS  # each of the first two takes two columns


def test_curves_are_drawings_with_their_names():
    drawing = draw_curves({"loss": [(0, 1.0), (5, 0.5)], "empty": []})
    assert [each.count("<!-- loss -->") for each in drawing.split("<svg")] == [0, 1, 0]
