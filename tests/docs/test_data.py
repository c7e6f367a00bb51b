"""The page on data has the table that the reader goes by, and its configuration is accepted."""

import re

import yaml
from shapes_table import PAGE, TABLE

from lit_tidpo.data import PreferenceDataModule
from lit_tidpo.data.shapes import describe_shapes


def test_the_shapes_are_those_of_the_reader():
    """``python tests/docs/shapes_table.py`` writes them anew."""
    assert TABLE.search(PAGE.read_text(encoding="utf-8"))[0] == describe_shapes()


def test_the_example_of_several_sources_is_accepted():
    block = re.search(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]
    data = PreferenceDataModule(tokenizer="builtin:policy", **yaml.safe_load(block)["data"])
    assert data.source.weights == (3.0, 1.0)
    assert data.source.parts[1].columns == {"prompt": "question"}
