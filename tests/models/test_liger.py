"""Liger's kernels: by a stand-in in PyTorch, and its own in Triton's interpreter where they are."""

import copy
import importlib.util
import json
import os
import subprocess
import sys

import liger_stand_in as stand_in
import pytest
import torch
from lightning.pytorch import Trainer
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama

from lit_tidpo.errors import InputError
from lit_tidpo.models import liger
from lit_tidpo.models.loading import build_policy
from lit_tidpo.models.models import Models
from lit_tidpo.models.policy import LoraOptions, PolicyConfig
from lit_tidpo.modules.preference import PreferenceModule
from lit_tidpo.testing import tiny_batch, tiny_policy

from .liger_steps import step

BOTH = ["rms_norm", "rope"]


@pytest.fixture
def calls(monkeypatch):
    """A stand-in for Liger; gives what its kernels were called for."""
    return stand_in.install(monkeypatch)


@pytest.fixture
def gpu(monkeypatch):
    """The CPU passes for a GPU."""
    monkeypatch.setattr(liger, "on_gpu", lambda device: True)


@pytest.fixture
def folder(tmp_path):
    model = tiny_policy()
    with torch.no_grad():  # else every token looks alike
        for parameter in model.parameters():
            parameter.mul_(3.0 if parameter.dim() > 1 else 1.0)
    model.save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("kernels", "options"),
    [
        (BOTH, {}),
        (["rope"], {}),
        (BOTH, {"activation_checkpointing": True, "lora": LoraOptions(r=2)}),
    ],
)
def test_a_step_is_that_of_the_models_own_code(folder, calls, gpu, kernels, options):
    """Policy, copied reference and anchors run the kernels, whose backward pass runs twice."""
    expected = step(folder, None, **options)
    assert calls == []
    found = step(folder, kernels, **options)
    assert set(calls) == set(kernels)
    assert len(found) == len(expected) > 4
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_other_models_keep_their_own_code(folder, calls, gpu):
    before = modeling_llama.LlamaRMSNorm, modeling_llama.apply_rotary_pos_emb
    policy = build_policy(PolicyConfig(folder, liger=BOTH))
    assert (modeling_llama.LlamaRMSNorm, modeling_llama.apply_rotary_pos_emb) == before
    ids = tiny_batch().input_ids
    AutoModelForCausalLM.from_pretrained(folder)(ids)
    assert calls == []
    policy(ids)
    assert set(calls) == set(BOTH)
    assert not policy.model.norm.in_place


def test_on_a_cpu_the_models_own_code_runs(folder, calls):
    build_policy(PolicyConfig(folder, liger=BOTH))(tiny_batch().input_ids)
    assert calls == []


def test_kernels_are_proven_once_for_each_model(folder, calls, gpu, monkeypatch):
    proven = []
    monkeypatch.setattr(liger, "check_same_passes", lambda model, *_: proven.append(model))
    policy = build_policy(PolicyConfig(folder, liger=BOTH))
    twin = copy.deepcopy(policy)
    for model in (policy, policy, twin, policy, twin):
        Models(model).run([(tiny_batch(), frozenset())])
    assert proven == [policy, twin]


class OnceRope(torch.autograd.Function):
    """Writes over the angles that the second backward pass needs."""

    @staticmethod
    def forward(ctx, query, key, cos, sin):
        ctx.angles = cos.clone(), sin.clone()
        return stand_in._turn(query, cos, sin), stand_in._turn(key, cos, sin)

    @staticmethod
    def backward(ctx, of_query, of_key):
        cos, sin = ctx.angles
        found = stand_in._turn(of_query, cos, -sin), stand_in._turn(of_key, cos, -sin)
        sin.mul_(0.9)
        return *found, None, None


@pytest.mark.parametrize(
    ("rope", "wrong"),
    [
        (lambda q, k, cos, sin: stand_in.Rope.apply(q, k, cos, 0.9 * sin), "log-probs"),
        (
            lambda q, k, cos, sin: stand_in.Rope.apply(q, k.detach(), cos, sin),
            "the first gradient of the embeddings",
        ),
        (OnceRope.apply, "the second gradient of the embeddings"),
    ],
)
def test_kernels_that_are_wrong_are_refused(folder, calls, gpu, monkeypatch, rope, wrong):
    monkeypatch.setattr(stand_in, "rope", rope)
    policy = build_policy(PolicyConfig(folder, liger=["rope"]))
    with pytest.raises(InputError, match=f"liger=.*: {wrong} of LlamaForCausalLM is off by"):
        Models(policy).run([(tiny_batch(), frozenset())])


def test_kernels_that_fail_are_told(folder, calls, gpu, monkeypatch):
    monkeypatch.setattr(stand_in, "rope", lambda *_: 1 / 0)
    policy = build_policy(PolicyConfig(folder, liger=["rope"]))
    with pytest.raises(InputError, match="cannot be run: division by zero"):
        Models(policy).run([(tiny_batch(), frozenset())])


def test_without_liger_it_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    with pytest.raises(InputError, match=r"pip install 'lit-tidpo\[liger\]'"):
        build_policy(PolicyConfig(folder, liger=BOTH))


def test_a_family_without_kernels_is_refused(folder, calls, monkeypatch):
    apply = {"llama": lambda rope=True, model=None: None}
    library = sys.modules["liger_kernel.transformers.monkey_patch"]
    monkeypatch.setattr(library, "MODEL_TYPE_TO_APPLY_LIGER_FN", apply)
    with pytest.raises(InputError, match="no rms_norm for models of type 'llama'"):
        build_policy(PolicyConfig(folder, liger=BOTH))
    with pytest.raises(InputError, match="Liger's rope is used by no layer"):
        build_policy(PolicyConfig(folder, liger=["rope"]))
    apply.clear()
    with pytest.raises(InputError, match="no rope for models of type 'llama'"):
        build_policy(PolicyConfig(folder, liger=["rope"]))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"liger": []}, "expected one kernel or more"),
        ({"liger": ["rope", "rope"]}, "each once"),
        ({"liger": ["swiglu"]}, r"policy\.liger='swiglu': expected one of"),
        ({"liger": ["rope"], "compile_layers": True}, "does not go with policy.compile_layers"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, reason):
    with pytest.raises(InputError, match=reason):
        PolicyConfig("any", **options)


def test_a_run_on_a_cpu_is_refused(folder):
    module = PreferenceModule(PolicyConfig(folder, liger=BOTH))
    trainer = Trainer(accelerator="cpu", logger=False, max_steps=1)
    with pytest.raises(InputError, match="kernels for GPUs, and this run is on cpu"):
        trainer.validate(module, [tiny_batch()])


@pytest.mark.slow
def test_ligers_own_kernels_in_tritons_interpreter(folder):
    """In a process of its own, as Triton asks for the interpreter when it is imported."""
    for name in ("triton", "liger_kernel"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}: pip install --no-deps triton liger-kernel")
    command = [sys.executable, "-W", "ignore", "-m", "tests.models.liger_steps", folder]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    errors = json.loads(done.stdout.splitlines()[-1])
    assert len(errors) > 4
    assert max(errors) < 1e-4
