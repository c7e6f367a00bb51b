"""docs/components.md says what the code says, of components that are tested."""

import json
import re

import pytest
from components_table import PAGE, built_in, page

from lit_tidpo.cli import main
from lit_tidpo.plugins.registry import IMPORTANCE, registered


@pytest.fixture(scope="module")
def components():
    return built_in()


def test_the_tables_are_those_of_the_code():
    """``python tests/docs/components_table.py`` writes them anew."""
    text = PAGE.read_text(encoding="utf-8")
    assert page(text) == text


def test_every_component_has_a_test_of_its_own(components):
    assert [each["name"] for each in components if each["test"] is None] == []
    ours = [each for each in registered(IMPORTANCE) if each.value.startswith("lit_tidpo.")]
    assert {each["name"] for each in components} >= {each.name for each in ours}


def test_methods_name_estimators_that_there_are(components):
    known = {each["name"] for each in components}
    names = re.findall(r"^\| .*\]\(https.*\| `(\w+)`", PAGE.read_text(encoding="utf-8"), re.M)
    assert len(names) >= 5
    assert set(names) <= known


def test_json_tells_all_that_is_known(capsys):
    main(["plugins", "--json"])
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert found["hybrid"] == {
        "group": "lit_tidpo.importance",
        "name": "hybrid",
        "class": "lit_tidpo.importance.hybrid_importance:HybridImportance",
        "distribution": "lit-tidpo",
        "version": "0.1.0",
        "state": "ok",
        "source": "arXiv 2505.19653, Eq. 8",
        "needs": ["policy.embeddings", "policy.final_logits"],
        "cost": "1 backward",
        "looks_at": "row",
    }
    assert found["optimal_transport"]["looks_at"] == "group"
    assert found["detector"]["needs"] == []  # though it asks for a path
    for combined in ("product", "per_role", "top_k"):  # whose parts have to be given
        assert found[combined]["needs"] is found[combined]["cost"] is None
    loss = found["weighted_dpo"]
    assert (loss["unit"], loss["weighted"]) == ("pair", True)
    assert found["dpo"]["weighted"] is False
