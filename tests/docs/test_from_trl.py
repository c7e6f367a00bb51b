"""docs/from_trl.md has the tables that ``lit-tidpo convert`` goes by."""

from from_trl_page import PAGE, page


def test_the_page_is_that_of_the_tables():
    """``python tests/docs/from_trl_page.py`` writes it anew."""
    text = PAGE.read_text(encoding="utf-8")
    assert page(text) == text
