"""What losses see, and what they are if they say nothing else."""

from __future__ import annotations

import pytest
import torch

from lit_tidpo.errors import InputError
from lit_tidpo.losses.base import LossComponent, LossContext, LossValues
from lit_tidpo.structures import Results
from lit_tidpo.testing import tiny_batch, tiny_context, tiny_groups


def test_a_context_has_the_rows_of_each_role_and_all_together():
    context = tiny_context(tiny_batch(pairs=3))
    assert list(context) == ["chosen", "rejected", "anchor"]
    whole = context.responses
    for role, rows in (("chosen", slice(0, 3)), ("rejected", slice(3, 6))):
        part = context[role]
        assert part.batch.roles == (role,)
        assert torch.equal(part.mask, whole.mask[rows])
        assert torch.equal(part.batch.input_ids, whole.batch.input_ids[rows])
        assert part.keys() == whole.keys()
        for need, values in whole.items():
            assert torch.equal(part[need], values[rows]), need
    assert context["anchor"].keys() == {"policy.logps", "reference.logps"}


def test_roles_of_ragged_groups_have_the_prompts_that_hold_them():
    """Four responses, three, two, one: role ``n`` is held by the first prompts alone."""
    context = tiny_context(tiny_groups(most=4))
    for place, prompts in enumerate(([0, 1, 2, 3], [0, 1, 2], [0, 1], [0]), start=1):
        part = context[f"response_{place}"]
        assert part.batch.index.tolist() == prompts
        assert len(part.mask) == len(part["policy.logps"]) == len(prompts)
        assert part["rewards"].shape == (len(prompts),)
    assert context["anchor"].batch.index.tolist() == [0, 1, 2, 3]


def test_gradients_of_a_role_arrive_at_all_rows():
    context = tiny_context(tiny_batch(pairs=2))
    total = context["rejected"].log_ratios.sum()
    (gradient,) = torch.autograd.grad(total, context.responses["policy.logps"])
    assert torch.equal(gradient[2:], torch.ones_like(gradient[2:]))
    assert not gradient[:2].any()


def test_a_context_knows_the_run_and_who_counts():
    batch = tiny_batch(pairs=3)
    batch.counted = torch.tensor([True, False, True])
    context = tiny_context(batch, step=7, share=0.25)
    assert (context.step, context.share) == (7, 0.25)
    assert context.counted.tolist() == [True, False, True]
    alone = LossContext(context.responses)
    assert (alone.step, alone.share) == (0, None)
    assert "anchor" not in alone


def test_a_role_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(InputError, match=r"'anchor'; .* \['chosen', 'rejected'\]: .* its needs"):
        LossContext(tiny_context().responses)["anchor"]


def test_a_quantity_that_was_not_asked_for_is_named():
    batch = tiny_batch()
    context = LossContext(Results(batch, {"policy.logps": torch.zeros(batch.input_ids.shape)}))
    message = r"'weights' was not computed, only \['policy\.logps'\]: declare it in .* needs"
    with pytest.raises(InputError, match=message):
        context["chosen"]["weights"]
    with pytest.raises(InputError, match=r"'reference\.logps' was not computed"):
        _ = context["chosen"].log_ratios


def test_a_loss_that_says_nothing_is_about_pairs_needs_nothing_and_counts_once():
    class Plain(LossComponent):
        def loss(self, context):
            return context["chosen"]["policy.logps"].sum(-1)

    plain = Plain()
    assert (plain.unit, plain.needs, plain.default_weight) == ("pair", frozenset(), 1.0)
    assert plain.quantities == ()
    assert LossValues(torch.zeros(3)).quantities == {}


def test_a_loss_without_its_computation_cannot_be_made():
    class Nothing(LossComponent):
        pass

    with pytest.raises(TypeError, match="abstract"):
        Nothing()


def test_a_loss_of_pairs_on_groups_is_told_of_the_unit():
    with pytest.raises(InputError, match=r"role 'chosen'; .*unit = 'group'.*context\.responses"):
        tiny_context(tiny_groups())["chosen"]
