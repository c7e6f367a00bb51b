"""The page of curves and token weights."""

import sys

import pytest

from lit_tidpo.callbacks.report_page import ReportPage, draw_curves, token_heat_map
from lit_tidpo.errors import InputError


def test_a_token_is_as_dark_as_its_weight_and_its_text_is_escaped():
    row = {"tokens": ["<s>", " a"], "weights": [0.5, 2.0], "log_ratios": [-0.25, 0.0]}
    assert token_heat_map(row) == (
        '<span style="background:rgba(220, 90, 20, 0.21)" title="weight 0.50, log-ratio -0.25">'
        "&lt;s&gt;</span>"
        '<span style="background:rgba(220, 90, 20, 0.85)" title="weight 2.00, log-ratio +0.00">'
        " a</span>"
    )


def test_curves_are_one_drawing_with_their_names():
    pytest.importorskip("matplotlib")
    drawing = draw_curves({"loss": [(0, 1.0), (5, 0.5)], "empty": []})
    assert drawing.startswith("<svg")
    assert drawing.count("<!-- loss -->") == 1


def test_without_matplotlib_the_page_says_what_to_install_before_the_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"lit-tidpo\[report\]"):
        ReportPage().setup(None, None, "fit")


def test_no_pairs_are_refused():
    with pytest.raises(InputError, match="pairs=0"):
        ReportPage(pairs=0)
