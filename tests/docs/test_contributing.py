"""CONTRIBUTING.md says what holds: its table is the code's, and its examples keep the contract."""

import inspect
import re

import pytest
import torch
from needs_table import PAGE, TABLE, table

from lit_tidpo.importance.base import ImportanceEstimator
from lit_tidpo.importance.gradient_importance import GradientImportance
from lit_tidpo.importance.log_ratio_importance import LogRatioImportance
from lit_tidpo.losses.base import LossComponent
from lit_tidpo.testing import (
    check_importance_estimator,
    check_loss_component,
    tiny_context,
    tiny_groups,
)

TEXT = PAGE.read_text(encoding="utf-8")
SECTION = TEXT.partition("## What a component sees")[2].partition("\n## ")[0]
PUBLIC = {
    "lit_tidpo.importance.base",
    "lit_tidpo.importance.priors",
    "lit_tidpo.losses.base",
    "lit_tidpo.losses.pair",
    "lit_tidpo.losses.divergences",
    "lit_tidpo.schedules",
    "lit_tidpo.sampling.base",
    "lit_tidpo.structures",
    "lit_tidpo.functional",
    "lit_tidpo.errors",
    "lit_tidpo.testing",
}


@pytest.fixture(scope="module")
def examples():
    """Classes of the examples by name."""
    names = {"__name__": "examples"}
    for block in re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL):
        exec(block, names)
    return {
        name: value
        for name, value in names.items()
        if inspect.isclass(value) and value.__module__ == "examples"
    }


def test_the_table_of_needs_is_that_of_the_code():
    """``python tests/docs/needs_table.py`` writes it anew."""
    assert TABLE.findall(TEXT) == [table()]


def test_plugins_import_what_is_public_alone():
    used = set(re.findall(r"^from (lit_tidpo\.[\w.]+) import", TEXT, re.M))
    assert used <= PUBLIC
    for module in PUBLIC:
        assert f"`{module}`" in TEXT


def test_every_declaration_has_an_example(examples):
    estimators = [each for each in examples.values() if issubclass(each, ImportanceEstimator)]
    losses = [each for each in examples.values() if issubclass(each, LossComponent)]
    assert {each.looks_at for each in estimators if isinstance(each.looks_at, str)} == {
        "row",
        "group",
    }
    for declared in ("signed", "learned", "spans_prompt"):
        assert any(getattr(each, declared) is True for each in estimators), declared
    assert {each.unit for each in losses} == {"pair", "group", "batch"}
    assert any(each.quantities for each in losses)
    assert any(each.needs == frozenset({"teacher.logps"}) for each in estimators)


@pytest.mark.parametrize(
    "name",
    ["TeacherImportance", "NoveltyImportance", "GateImportance", "PromptRelativeImportance"],
)
def test_the_estimators_keep_the_contract(examples, name):
    check_importance_estimator(examples[name]())


def test_the_combined_estimator_keeps_the_contract_and_is_what_its_parts_are(examples):
    gradient, log_ratio = GradientImportance(), LogRatioImportance()
    quotient = examples["QuotientImportance"](gradient, log_ratio)
    check_importance_estimator(quotient)
    assert quotient.needs == gradient.needs | log_ratio.needs
    assert examples["QuotientImportance"](gradient, examples["TeacherImportance"]()).signed


@pytest.mark.parametrize("name", ["MeanMarginLoss", "CentredLoss", "AnnealedLoss", "ListLoss"])
def test_the_losses_keep_the_contract(examples, name):
    check_loss_component(examples[name]())


def test_every_example_is_checked(examples):
    checked = {name for name in examples if name.endswith(("Importance", "Loss"))}
    assert len(checked) == 9
    assert set(examples) == checked


def test_the_scheduled_loss_moves_with_the_run(examples):
    first, last = (examples["AnnealedLoss"]().loss(tiny_context(share=s)) for s in (0.0, 1.0))
    expected = torch.expm1(last).log() / torch.expm1(first).log()  # -log sigmoid(x) to -x
    torch.testing.assert_close(expected, torch.full_like(expected, 5.0), atol=1e-3, rtol=0)


def test_the_listwise_loss_of_one_response_is_nothing_and_of_two_is_dpo(examples):
    context = tiny_context(tiny_groups(most=2))
    loss = examples["ListLoss"]().loss(context)
    sums = [context[f"response_{n}"].log_ratios[0].detach().sum() for n in (1, 2)]
    dpo = -torch.nn.functional.logsigmoid(sums[0] - sums[1])
    torch.testing.assert_close(loss.detach(), torch.stack([dpo, torch.tensor(0.0)]))
