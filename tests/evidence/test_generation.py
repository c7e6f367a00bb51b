"""What policies write, measured against plain passes of single rows."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.evidence.generation import _is_right, _Writer, generated_metrics
from lit_tidpo.locations import locate

POLICY = str(locate("builtin:policy"))
PROMPTS = ["def f(a):\n", "def longer(a, b, c):\n    return"]


@pytest.fixture(scope="module")
def writer():
    return _Writer(POLICY, tokens=6)


def test_log_probs_of_padded_rows_are_those_of_each_alone(writer):
    """One response ends after two tokens, and its end counts; what follows it does not."""
    tokenizer = AutoTokenizer.from_pretrained(POLICY)
    model = AutoModelForCausalLM.from_pretrained(POLICY, dtype=torch.float32).eval()
    end = tokenizer.eos_token_id
    ours = writer.logps(PROMPTS, torch.tensor([[50, 60, end, 70], [80, 90, 100, 110]]))
    written = [50, 60, end], [80, 90, 100, 110]
    for prompt, response, found in zip(PROMPTS, written, ours, strict=True):
        ids = tokenizer(prompt)["input_ids"]
        logps = model(torch.tensor([ids + response])).logits[0].log_softmax(-1)
        expected = sum(logps[len(ids) + k - 1, token] for k, token in enumerate(response))
        assert found.item() == pytest.approx(expected.item(), abs=1e-3)


def test_a_policy_that_did_not_move_has_no_divergence(tmp_path):
    rows = [{"prompt": prompt, "chosen": "1", "rejected": "2"} for prompt in PROMPTS]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = generated_metrics(
        POLICY, str(tmp_path), 0, sampled_prompts=2, samples=2, tokens=4, reference=POLICY
    )
    assert found["kl/sampled"] == 0
    assert 0 < found["length/greedy"] <= 4
    assert {"diversity/self_bleu", "greedy_diversity/distinct_2"} <= found.keys()
    assert "greedy_diversity/self_bleu" not in found  # of one response there is none


def test_the_last_number_is_the_answer():
    assert _is_right({"answer": 12.0}, "3*4=<<3*4=12>>12\nA: 12")
    assert not _is_right({"answer": 12.0}, "A: 12\nA: 13")
    assert _is_right({"prompt": "1+2+3="}, "1+2=3;3+3=6")
