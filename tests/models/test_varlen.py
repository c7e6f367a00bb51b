"""PyTorch's kernel for rows side by side, which runs on GPUs: here a loop stands for it."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from lit_tidpo.models import varlen
from lit_tidpo.models.models import Models
from lit_tidpo.models.packed_attention import use_packed_attention
from lit_tidpo.models.packed_rows import PackedRows
from lit_tidpo.seeding import seeded
from lit_tidpo.testing import tiny_batch


def row_by_row(query, key, value, starts, key_starts, most, most_keys, *, scale, window_size):
    """What its documentation says: the last query of a row sees the row's last key."""
    assert starts.dtype == key_starts.dtype == torch.int32
    assert starts[-1] == len(query)
    assert key_starts[-1] == len(key) == len(value)
    assert most == starts.diff().max()
    assert most_keys == key_starts.diff().max()
    rows = []
    for row in range(len(starts) - 1):
        queries = query[starts[row] : starts[row + 1]].transpose(0, 1)
        place = slice(int(key_starts[row]), int(key_starts[row + 1]))
        keys, values = (
            states[place].transpose(0, 1).repeat_interleave(query.shape[1] // key.shape[1], 0)
            for states in (key, value)
        )
        ends = torch.arange(queries.shape[1])[:, None] + keys.shape[1] - queries.shape[1]
        seen = torch.arange(keys.shape[1])
        mask = seen <= ends + window_size[1]
        if window_size[0] >= 0:
            mask &= seen >= ends - window_size[0]
        rows.append(scaled_dot_product_attention(queries, keys, values, mask, scale=scale))
    return torch.cat([row.transpose(0, 1) for row in rows])


@pytest.fixture
def kernel(monkeypatch):
    """Counts its calls."""
    calls = []

    def attend(*arguments, **options):
        calls.append(1)
        return row_by_row(*arguments, **options)

    monkeypatch.setattr(varlen, "varlen_attn", attend)
    monkeypatch.setattr(varlen, "serves", lambda *_: True)
    monkeypatch.setattr(PackedRows, "on_gpu", True)
    return calls


SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.mark.parametrize("layout", ["packed", "shared_prompt"])
@pytest.mark.parametrize("window", [None, 3])
def test_log_probs_and_gradients_are_those_of_padded_rows(kernel, layout, window):
    with seeded(0):
        if window is None:
            policy = LlamaForCausalLM(LlamaConfig(**SIZES)).double()
        else:
            config = MistralConfig(**SIZES, sliding_window=window)
            policy = MistralForCausalLM(config).double()
    batch = tiny_batch()
    found = {}
    for each in ("padded", layout):
        if each != "padded":
            assert use_packed_attention(policy)
        policy.zero_grad()
        (results,) = Models(policy, layout=each).run([(batch, frozenset())])
        logps = results["policy.logps"]
        logps.square().sum().backward()
        found[each] = [logps.detach(), *(p.grad.clone() for p in policy.parameters())]
    assert kernel
    for one, other in zip(found["padded"], found[layout], strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)  # norms are fp32


def test_it_follows_autocast_as_sdpa_does():
    states = torch.zeros(1, dtype=torch.float32)
    assert varlen.computing_dtype(states) == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert varlen.computing_dtype(states) == torch.bfloat16
        assert varlen.computing_dtype(states.double()) == torch.float64


def test_a_kernel_that_gives_something_else_is_not_used(monkeypatch):
    varlen._agrees.cache_clear()
    place = (torch.device("cpu"), torch.float32, 4, 2, 8)
    monkeypatch.setattr(varlen, "varlen_attn", row_by_row)
    assert varlen._agrees(*place)
    varlen._agrees.cache_clear()

    def aligned_at_the_start(query, key, value, starts, key_starts, *rest, **options):
        return row_by_row(query, key, value, starts, key_starts, *rest, **options).flip(0)

    monkeypatch.setattr(varlen, "varlen_attn", aligned_at_the_start)
    assert not varlen._agrees(*place)
    varlen._agrees.cache_clear()


def test_it_does_not_run_on_a_cpu():
    query = torch.zeros(4, 3, 64, dtype=torch.bfloat16)
    assert not varlen.serves(query, query, query, {})
