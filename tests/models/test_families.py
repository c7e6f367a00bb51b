"""A sample of the matrix of families, and that its page names all of them; see ``families.py``."""

from __future__ import annotations

import re

import pytest

from .families import FAMILIES
from .family_checks import outcomes
from .models_page import PAGE, mismatches

SAMPLE = ["llama4_text", "bloom", "lfm2", "rwkv", "bert"]
"""A router to leave alone, positions without RoPE, a convolution, a recurrence, no causal model."""

BY_NAME = {family.name: family for family in FAMILIES}


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLE)
def test_a_family_does_what_its_row_says(name, tmp_path):
    assert mismatches(BY_NAME[name], outcomes(BY_NAME[name], tmp_path)) == []


def test_the_page_has_the_rows_of_the_matrix():
    """``make models`` writes it."""
    rows = re.findall(r"^\| `(.+?)` \| (.*) \|$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert [name for name, _ in rows] == list(BY_NAME)
    for name, cells in rows:
        refused = sum(cell.isdigit() for cell in cells.split(" | "))
        assert refused == len(BY_NAME[name].refused), name
