"""The benchmark measures the same work on both sides, and reports what it measured."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import naive, report, workloads
from benchmarks.contestants import CONTESTANTS
from benchmarks.ours import sequential_loader
from benchmarks.suite import CPU, GPU, SHAPES, Group, Row, check_losses, run, summarise
from benchmarks.worker import ATTENTION_FLOPS, WARM_UP, Clock, peak_flops
from benchmarks.workloads import WORKLOADS
from lit_tidpo import PreferenceModule
from lit_tidpo.models.policy import PolicyConfig
from lit_tidpo.testing import tiny_batch, tiny_policy

RESULTS = Path("benchmarks/results/cpu.json")
REQUIRED = {
    "dpo_speed_vs_trl_best",
    "dpo_memory_vs_trl_best_vocab128k",
    "gradient_importance_overhead",
    "gradient_importance_overhead_amortised",
    "tidpo_vs_trl_dpo",
    "tidpo_reused_anchors_vs_trl_dpo",
    "tidpo_vs_naive",
}


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])


def test_every_row_names_contestants_and_a_workload():
    rows = [(group.workload, row) for group in (*CPU, *SHAPES, *GPU) for row in group.rows]
    for workload, row in rows:
        assert workload in WORKLOADS
        assert {row.ours, row.peer} <= CONTESTANTS.keys()
    assert {row.name for group in CPU for row in group.rows} >= REQUIRED


def test_every_token_is_counted_and_none_is_special(tmp_path, monkeypatch):
    """The words of the rows are single entries of the vocabulary; each response ends once."""
    monkeypatch.setattr(workloads, "FOLDER", tmp_path)
    load = WORKLOADS["ungrouped"]
    folder = load.prepare(2)
    loader = sequential_loader(folder, load, PreferenceModule(PolicyConfig(str(folder))))
    batches = list(loader)
    tokens = [int(batch.lengths.sum()) for batch in batches]
    assert load.useful_tokens(folder, range(2)) == sum(tokens) / 2
    assert load.useful_tokens(folder, range(1, 4)) == (2 * tokens[1] + tokens[0]) / 3
    for batch in batches:
        special = (batch.input_ids < 3) & batch.attention_mask
        assert special.sum() == len(batch.lengths)


def test_attention_is_counted_too():
    """Forward 2 products, backward 5, each ``2 * heads * L * L * D``, half of it if causal."""
    for is_causal, factor in ((True, 1), (False, 2)):
        query = torch.ones(1, 3, 8, 4, requires_grad=True)
        with FlopCounterMode(display=False, custom_mapping=ATTENTION_FLOPS) as counter:
            scaled_dot_product_attention(query, query, query, is_causal=is_causal).sum().backward()
        assert counter.get_total_flops() == 7 * factor * 3 * 8 * 8 * 4


def test_attention_over_rows_side_by_side_is_counted_pair_by_pair():
    """By hand: 5 tokens see 15, 3 behind 5 others see 6 + 7 + 8; 2 heads of 4 entries."""
    query, keys = torch.ones(8, 2, 4), torch.ones(13, 2, 4)
    starts, key_starts = torch.tensor([0, 5, 8]), torch.tensor([0, 5, 13])
    registry = FlopCounterMode(display=False, custom_mapping=ATTENTION_FLOPS).flop_registry
    forward = registry[torch.ops.torch_attn._varlen_attn]
    backward = registry[torch.ops.torch_attn._varlen_attn_backward]
    sizes = (starts, key_starts, 5, 8, True)
    pairs = 2 * 2 * 4 * (15 + 21)
    assert forward(query, keys, keys, *sizes, None, None, out_val=None) == 2 * pairs
    left = (query, query, keys, keys, query, query[..., 0])
    assert backward(*left, *sizes, None, out_val=None) == 5 * pairs


def test_a_training_that_fails_leaves_no_counter_behind():
    clock, square = Clock(4, flops=True), torch.ones(2, 2)
    for _ in range(2):
        clock.tick(None)
    clock.stop()
    before = clock.counter.get_total_flops()
    square @ square
    assert clock.counter.get_total_flops() == before == 0


def test_operations_of_the_warm_up_are_not_counted():
    """Two steps are measured, of one and of three products of 16 operations each."""
    clock, square = Clock(4, flops=True), torch.ones(2, 2)
    for products in (8, 8, 1, 3):
        for _ in range(products):
            square @ square
        clock.tick(None)
    assert clock.result() == {"flops": 2 * 16}


def test_operations_are_counted_on_the_batches_that_were_timed():
    """Two steps are timed, and the next two counted, of one and of three products."""
    clock, square = Clock(4, flops=False, extra=2), torch.ones(2, 2)
    for products in (8, 8, 8, 8, 1, 3):
        for _ in range(products):
            square @ square
        clock.tick(None)
    assert clock.result()["flops"] == 2 * 16


def test_the_peak_of_an_h200_is_that_without_sparsity(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *device: "NVIDIA H200")
    assert peak_flops("bf16") == 989.4e12


@pytest.mark.parametrize("group", GPU)
def test_large_rows_time_each_batch_once(group):
    assert group.steps - WARM_UP == group.batches


def test_ratios_are_taken_within_a_round():
    """Two rounds by hand: 6/2 and 8/4 of time, 30/20 of operations."""
    row = Row("speed", "a", "b", faster=True, target=2.6)
    common = {"workload": {}, "device": "cpu", "threads": 1, "versions": {}, "useful_tokens": 12.0}
    runs = {
        "a": [{"cpu_s": 2.0, "wall_s": 4.0, **common}, {"cpu_s": 4.0, "wall_s": 4.0, **common}],
        "b": [{"cpu_s": 6.0, "wall_s": 4.0, **common}, {"cpu_s": 8.0, "wall_s": 8.0, **common}],
    }
    flops = {"a": {"flops": 20.0}, "b": {"flops": 30.0}}
    result = summarise(row, Group("tiny", 3, (row,)), runs, flops)
    assert (result["ratio_min"], result["ratio_median"], result["ratio_max"]) == (2.0, 2.5, 3.0)
    assert (result["wall_ratio_median"], result["flops_ratio"]) == (1.5, 1.5)
    assert (result["ours"], result["peer"]) == (4.5, 1.75)  # 12/2 and 12/4; 12/6 and 12/8
    assert not result["met"]
    assert result["utilisation"] == [None, None]
    assert report.utilisation([result]) == ""
    for each in runs["a"]:
        each["peak_flops"] = 50.0  # 20 operations in 4 seconds
    used = summarise(row, Group("tiny", 3, (row,)), runs, flops)
    assert used["utilisation"] == [0.1, None]
    assert report.utilisation([used]) == " Share of the GPU's peak operations: a 10%."
    overhead = summarise(Row("cost", "a", "b", target=0.5), Group("tiny", 3, ()), runs, flops)
    assert overhead["ratio_median"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert overhead["met"]


def test_useful_tokens_count_the_prompt_twice_and_both_ends(tmp_path):
    rows = [{"prompt": "a b", "chosen": " c", "rejected": " d e f"}] * 4
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert WORKLOADS["tiny"].useful_tokens(tmp_path, [1]) == 2 * (2 * 2 + 1 + 3 + 2)


def test_the_naive_baseline_has_the_loss_of_the_module():
    """Its mathematics is the paper's: same loss and gradients on the same anchors."""
    batch, losses, gradients = tiny_batch(weights=False), [], []
    anchors = batch.role("rejected")
    anchors.roles = ("anchor",)
    for side in ("ours", "naive", "naive, pair by pair"):
        policy, reference = tiny_policy(), tiny_policy(seed=1).eval()
        module = PreferenceModule(PolicyConfig(), **CONTESTANTS["tidpo"].options)
        module.attach(policy, reference)
        if side == "ours":
            loss = module.objective.evaluate(module.models, batch, anchors).loss.mean()
        else:
            parts = list(zip(naive.pairs(batch), naive.pairs(anchors), strict=True))
            parts = parts if side.endswith("pair") else [(batch, anchors)]
            loss = sum(naive.tidpo_loss(policy, reference, *part) for part in parts) / len(parts)
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters()]))
    scale = gradients[0].abs().max()
    for loss, gradient in zip(losses[1:], gradients[1:], strict=True):
        assert loss == pytest.approx(losses[0], abs=1e-5)
        torch.testing.assert_close(gradient / scale, gradients[0] / scale, atol=1e-4, rtol=0)


@functools.cache
def operations(contestant):
    """Of four steps of the tiny workload, in a process of its own."""
    return run("tiny", contestant, 4, None, "flops")


@pytest.mark.slow
def test_both_sides_train_on_the_same_losses():
    """A tiny workload end to end, each contestant in a process of its own."""
    row = Row("speed", "plain", "trl_best", faster=True)
    group = Group("tiny", 4, (row,))
    check_losses(group)
    runs = {name: [run("tiny", name, 4, None, "time")] for name in group.contestants}
    flops = {name: operations(name) for name in group.contestants}
    result = summarise(row, group, runs, flops)
    assert result["flops_ratio"] > 1.5  # half the prompts, and logits of responses alone
    assert report.line(result).count("|") == 11


@pytest.mark.slow
def test_importance_and_shared_prompts_cost_the_operations_that_were_counted_by_hand():
    """Operations do not depend on the machine, so they are asserted here and times are not."""
    names = ("plain", "plain_padded", "importance")
    flops = {name: operations(name)["flops"] for name in names}
    assert flops["plain"] < 0.8 * flops["plain_padded"]
    assert flops["importance"] < 1.35 * flops["plain"]


def test_the_page_shows_the_results():
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    names = [result["name"] for result in results]
    assert set(names) >= REQUIRED
    assert len(names) == len(set(names))
    page = report.PAGE.read_text(encoding="utf-8")
    for result in results:
        assert report.line(result) in page


def test_the_text_between_the_marks_is_exchanged():
    page = "a\n<!-- cpu -->\nold\n<!-- end cpu -->\nb\n<!-- gpu -->\n<!-- end gpu -->\n"
    assert report.filled(page, {"cpu": "new\n", "gpu": ""}) == page.replace("old", "new")


def test_the_page_is_drawn_from_the_results(tmp_path, monkeypatch):
    page = tmp_path / "performance.md"
    page.write_text(report.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(report, "PAGE", page)
    report.main()
    for file in (Path("docs/performance.md"), *Path("docs").glob("performance_*.svg")):
        assert (tmp_path / file.name).read_text() == file.read_text()
