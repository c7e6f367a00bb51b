"""Estimates against what PyTorch's profiler counts of real steps, and against hand numbers."""

from __future__ import annotations

import functools
import gc
import itertools
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from lit_tidpo.cli import main
from lit_tidpo.losses.dpo_loss import DPOLoss
from lit_tidpo.losses.weighted_dpo_loss import WeightedDPOLoss
from lit_tidpo.memory.estimate import LINES, Estimator
from lit_tidpo.memory.rows import PairLengths, pairs_batch
from lit_tidpo.memory.sharing import gathered
from lit_tidpo.memory.step import DrySteps, Held
from lit_tidpo.models.policy import LoraOptions, PolicyConfig
from lit_tidpo.modules.preference import PreferenceModule
from lit_tidpo.sampling.anchor_options import AnchorOptions
from tests.modules.runs import QUIET, quiet_trainer

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:.*lr=1e-06 are lost"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
]
PAIRS = [PairLengths(40, 48, 30), PairLengths(25, 40, 44), PairLengths(40, 20, 48)]
PLAIN = {"losses": {"preference": DPOLoss()}}
WEIGHTED = {"losses": {"preference": WeightedDPOLoss()}}
TILES = {**PLAIN, "logits_at_once": 60_000}
PADDED = {**PLAIN, "layout": "padded"}
SGD = functools.partial(torch.optim.SGD, lr=1e-6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Llama whose logits, activations and parameters all count."""
    config = LlamaConfig(
        vocab_size=3000,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    where = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(config).save_pretrained(where)
    return str(where)


def build(folder, policy, options):
    return PreferenceModule(PolicyConfig(folder, init="random", **policy), **options)


def measured(module, trainer):
    """Bytes at the peak of real steps, allocation by allocation.

    The profiler sees one thread alone, so that weights read by others would be missing.
    """
    batch = pairs_batch(PAIRS)
    batch.input_ids += 5
    loader = DataLoader([batch] * 4, batch_size=None)
    gc.collect()  # what is let go of meanwhile would count as less than nothing
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        quiet_trainer(max_steps=2, **trainer).fit(module, loader)
    events = sorted(record.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    sizes = (event.nbytes() for event in events if event.name() == "[memory]")
    return max(itertools.accumulate(sizes))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "options", "trainer"),
    [
        pytest.param({}, {"anchor": AnchorOptions(max_new_tokens=24)}, {}, id="ti-dpo"),
        pytest.param({"activation_checkpointing": True}, WEIGHTED, {}, id="checkpointing"),
        pytest.param({"lora": LoraOptions(r=4)}, TILES, {}, id="lora-tiles"),
        pytest.param(
            {"dtype": "bfloat16"},
            {**PADDED, "optimizer": SGD},
            {"accumulate_grad_batches": 2},
            id="bfloat16-padded-sgd",
        ),
        pytest.param({}, WEIGHTED, {"precision": "bf16-mixed"}, id="bf16-mixed"),
    ],
)
def test_estimates_are_what_real_steps_allocate(folder, policy, options, trainer):
    given = {"precision": "32-true", "accumulate_grad_batches": 1, **trainer}
    steps = DrySteps(build(folder, policy, options), *given.values(), "cpu")
    estimate = Estimator(steps).total(PAIRS)
    found = measured(build(folder, policy, options), trainer)
    assert estimate == pytest.approx(found, rel=0.05)


def test_a_reference_that_is_kept_on_disk_takes_nothing(folder, tmp_path):
    kept, run = (
        Estimator(DrySteps(build(folder, {}, {**PLAIN, **more}), "32-true", 1, "cpu")).held(PAIRS)
        for more in ({"reference_cache": str(tmp_path)}, {})
    )
    parameters = run["parameters"]
    assert (kept["reference"], run["reference"]) == (0, parameters)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("strategy", "divided", "more"),
    [
        ("ddp", (), "gradients"),
        ("deepspeed_stage_1", ("optimizer",), None),
        ("deepspeed_stage_2", ("gradients", "optimizer"), None),
        ("deepspeed_stage_3", ("parameters", "gradients", "optimizer", "reference"), "gathered"),
        ("fsdp2", ("parameters", "gradients", "optimizer", "reference"), "gathered"),
    ],
)
def test_what_devices_share(strategy, divided, more):
    passes = Counter({name: 400 for name in LINES if name != "gathered"})
    steps = SimpleNamespace(
        step=lambda batch: Held(passes, Counter()),
        policy=torch.nn.Linear(2, 3),
        others=[],
        gradient_bytes=70,
        module=SimpleNamespace(objective=SimpleNamespace(losses={})),
    )
    shared = Estimator(steps, strategy, 4).held(PAIRS)
    for name in LINES:
        extra = {None: 0, "gradients": 70, "gathered": 2 * 9 * 4}[more] if name == more else 0
        whole = 0 if name == "gathered" else 400
        assert shared[name] == extra + (whole / 4 if name in divided else whole)


def test_whole_layers_by_hand():
    """Of two layers of 2 numbers and 6 numbers outside, trained and frozen."""

    class Model(torch.nn.Module):
        _no_split_modules = ("Bilinear",)

        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList(torch.nn.Bilinear(1, 1, 1) for _ in range(2))
            self.embedding = torch.nn.Embedding(2, 3)

    assert gathered(Model(), trains=True) == 24 + 24 + 24 + 16
    assert gathered(Model(), trains=False) == 24 + 24


@pytest.mark.parametrize("memory", [12, 13, 100, 200, 12345])
def test_the_most_pairs_are_the_last_that_fit(monkeypatch, memory):
    """Of sizes that do not grow at first, and later grow evenly."""

    def size(estimator, pairs):
        return max(13, 10 + 3 * (len(pairs) - 20))

    monkeypatch.setattr(Estimator, "total", size)
    found = Estimator(None).most_pairs(PairLengths(100, 50, 60), memory)
    assert found == 0 or size(None, [None] * found) <= memory
    assert size(None, [None] * (found + 1)) > memory


def test_the_command_reads_no_weights(folder, tmp_path, capsys):
    """Of a model of 70 billion parameters of which there is the config alone."""
    config = LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=2,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=2048,
        dtype="bfloat16",
    )
    config.save_pretrained(tmp_path)
    main(
        [
            *("estimate", "--tokens", "100", "50", "60", "--strategy", "fsdp2", "--devices", "8"),
            *("--memory", "12", f"--model.policy.path={tmp_path}", "--model.policy.dtype=auto"),
            *(
                "--model.losses",
                '{"preference": "dpo"}',
                "--data.source=none",
                "--data.batch_size=2",
            ),
        ]
    )
    lines = capsys.readouterr().out.splitlines()
    table = {line.split()[0]: line.split()[1] for line in lines if line.startswith("  ")}
    # two embeddings, and of a layer attention, three of the MLP and two norms
    layer = 8192 * (2 * 8192 + 2 * 1024 + 3 * 28672 + 2)
    parameters = 2 * (2 * 2048 * 8192 + 2 * layer + 8192)
    assert float(table["parameters"]) == pytest.approx(parameters / 8 / 1e9, abs=2e-3)
    assert lines[-1].startswith("12 GB hold batches of ")
