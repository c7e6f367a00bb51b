"""Means over examples, whatever their batch or rank."""

from __future__ import annotations

import math

import pytest
import torch

from lit_tidpo.metrics import ExampleMeans


def test_every_example_weighs_the_same_whatever_its_batch():
    """Batches of 5, 1 and 3: the mean over nine values, not the mean of three means."""
    means = ExampleMeans(["a", "b"])
    values = torch.arange(9.0).square()
    for part in (values[:5], values[5:6], values[6:]):
        means.update({"a": part, "b": -part}, torch.ones(len(part), dtype=torch.bool))
    expected = sum(n * n for n in range(9)) / 9
    assert means.compute()["a"].item() == pytest.approx(expected)
    assert means.compute()["b"].item() == pytest.approx(-expected)


def test_pairs_that_fill_up_a_batch_are_left_out():
    """Also where their values are no numbers."""
    means = ExampleMeans(["a"])
    means.update({"a": torch.tensor([1.0, math.nan, 5.0])}, torch.tensor([True, False, True]))
    means.update({"a": torch.tensor([math.inf])}, torch.tensor([False]))
    assert means.compute()["a"].item() == 3.0


def test_a_counted_value_that_is_no_number_is_not_hidden():
    means = ExampleMeans(["a"])
    means.update({"a": torch.tensor([1.0, math.nan])}, torch.tensor([True, True]))
    assert means.compute()["a"].isnan()


def test_a_quantity_that_is_not_always_there_has_a_count_of_its_own():
    means = ExampleMeans(["a", "sometimes", "never"])
    counted = torch.tensor([True, True])
    means.update({"a": torch.tensor([1.0, 3.0])}, counted)
    means.update({"sometimes": torch.tensor([4.0, 8.0]), "a": torch.tensor([5.0, 7.0])}, counted)
    result = means.compute()
    assert result.keys() == {"a", "sometimes"}
    assert (result["a"].item(), result["sometimes"].item()) == (4.0, 6.0)


def test_after_a_reset_the_means_start_over():
    means, one = ExampleMeans(["a"]), torch.tensor([True])
    means.update({"a": torch.tensor([10.0])}, one)
    means.reset()
    means.update({"a": torch.tensor([2.0])}, one)
    assert means.compute()["a"].item() == 2.0


def test_sums_are_kept_in_fp64():
    """In fp32 a sum of 2^24 would not grow by 1 any more."""
    means, one = ExampleMeans(["a"]), torch.tensor([True])
    for value in [2.0**24, *[1.0] * 4]:
        means.update({"a": torch.tensor([value])}, one)
    assert means.totals.tolist() == [2.0**24 + 4]
    means.bfloat16()
    assert means.totals.dtype == torch.float64


def test_updates_in_inference_mode_and_outside_go_together():
    means, one = ExampleMeans(["a"]), torch.tensor([True])
    with torch.inference_mode():
        means.update({"a": torch.tensor([1.0])}, one)
    means.update({"a": torch.tensor([2.0], requires_grad=True)}, one)
    assert means.compute()["a"].item() == 1.5
    assert not means.totals.requires_grad


def test_states_of_two_processes_add_up():
    """G3: what the ranks' sums and counts give together is the mean over all examples."""
    parts, whole = [ExampleMeans(["a"]), ExampleMeans(["a"])], ExampleMeans(["a"])
    for rank, values in enumerate((torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0]))):
        counted = torch.ones(len(values), dtype=torch.bool)
        parts[rank].update({"a": values}, counted)
        whole.update({"a": values}, counted)
    assert set(parts[0]._reductions) == {"totals", "counts"}
    for name, reduce in parts[0]._reductions.items():
        states = torch.stack([getattr(part, name) for part in parts])
        setattr(parts[0], name, reduce(states))
    assert parts[0].compute()["a"].item() == whole.compute()["a"].item() == 4.0


def test_a_name_that_was_not_announced_is_refused():
    with pytest.raises(ValueError, match="other"):
        ExampleMeans(["a"]).update({"other": torch.ones(1)}, torch.tensor([True]))
