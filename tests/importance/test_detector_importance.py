"""The detector: its labels, its network, its training, and the one that is shipped."""

from __future__ import annotations

import dataclasses
import json
import random

import pytest
import torch
from safetensors.torch import save_file

from lit_tidpo.assets.build.detector import decisive_tokens, train_detector
from lit_tidpo.errors import InputError
from lit_tidpo.importance.detector_importance import FILE_NAME, DetectorImportance, DetectorNetwork
from lit_tidpo.locations import locate
from lit_tidpo.models.policy import PolicyConfig
from lit_tidpo.models.tokenizer import load_tokenizer
from lit_tidpo.modules.preference import PreferenceModule
from lit_tidpo.plugins.hparams import as_plain_data
from lit_tidpo.structures import ResponseBatch, Results
from lit_tidpo.testing import check_importance_estimator, tiny_batch


def pairs(*responses, prompt=(9, 9)):
    """A batch of pairs from chosen and rejected responses."""
    rows = [[*prompt, *pair[role]] for role in (0, 1) for pair in responses]
    width = max(map(len, rows))
    return ResponseBatch(
        input_ids=torch.tensor([[*row, *[0] * (width - len(row))] for row in rows]),
        prompt_lengths=torch.full((len(rows),), len(prompt)),
        lengths=torch.tensor([len(row) for row in rows]),
        roles=("chosen", "rejected"),
        index=torch.arange(len(responses)),
        counted=torch.ones(len(responses), dtype=torch.bool),
    )


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ([5, 6, 7, 2], [5, 8, 7, 2], ([1], [1])),  # replaced
        ([5, 6, 7, 2], [5, 8, 8, 7, 2], ([1], [1, 2])),  # by more tokens
        ([5, 6, 7, 2], [5, 7, 2], ([1], [1])),  # left out: what stands there instead
        ([5, 7, 2], [5, 6, 7, 2], ([1], [1])),  # put in
        ([5, 6], [5], ([1], [])),  # nothing stands there
        ([5, 6, 7, 6, 2], [5, 3, 7, 4, 2], ([1, 3], [1, 3])),  # two places
    ],
)
def test_decisive_tokens_are_those_in_which_a_pair_differs(chosen, rejected, expected):
    """Among other pairs, and prompts that hold the same tokens do not count."""
    batch = pairs(([4, 4], [3, 4]), (chosen, rejected), prompt=(5, 6, 7))
    marked = decisive_tokens(batch)
    for row, places in zip((1, 3), expected, strict=True):
        assert marked[row].nonzero().flatten().tolist() == [3 + place for place in places]
    assert marked[0].nonzero().flatten().tolist() == [3]


def naive_log_probs(network, ids, prompt):
    """One row without padding, token by token, from the weights."""
    hidden = network.embedding.weight[torch.tensor(ids)]
    for convolution in network.convolutions:
        weight, half = convolution.weight, convolution.weight.shape[-1] // 2
        new = []
        for t in range(len(ids)):
            total = convolution.bias.clone()
            for k in range(2 * half + 1):
                if 0 <= t + k - half < len(ids):
                    total = total + weight[:, :, k] @ hidden[t + k - half]
            value, gate = total.chunk(2)
            new.append(hidden[t] + value * gate.sigmoid())
        hidden = torch.stack(new)
    logits = hidden @ network.head.weight[0] + network.head.bias
    return logits[prompt:].log_softmax(-1)


def test_the_network_equals_a_naive_loop_on_each_row():
    torch.manual_seed(0)
    network, batch = DetectorNetwork(48, width=6, layers=2, kernel=3).eval(), tiny_batch()
    ours = network(batch)
    for row, (start, end) in enumerate(
        zip(batch.prompt_lengths.tolist(), batch.lengths.tolist(), strict=True)
    ):
        expected = naive_log_probs(network, batch.input_ids[row, :end].tolist(), start)
        torch.testing.assert_close(ours[row, start:end], expected, rtol=1e-5, atol=1e-6)
    assert bool((ours[~batch.response_mask] == -torch.inf).all())


def write_pairs(folder, count):
    """Digits; in the rejected response a letter stands where a digit should."""
    generator = random.Random(0)
    folder.mkdir()
    lines = []
    for _ in range(count):
        digits = [generator.choice("123456789") for _ in range(6)]
        wrong = list(digits)
        wrong[generator.randrange(6)] = generator.choice("xyz")
        row = {"prompt": "N", "chosen": " ".join(digits), "rejected": " ".join(wrong)}
        lines.append(json.dumps(row))
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    return str(folder)


def scores_of(detector, batch):
    return detector.scores(Results(batch, {}))


@pytest.mark.filterwarnings("ignore:.*fitting goes without validation")
def test_training_learns_where_pairs_differ(tmp_path):
    """A letter among digits is found; the same seed gives the same file, another one another."""
    source = write_pairs(tmp_path / "data", 96)
    options = {"source": source, "tokenizer": "builtin:policy", "epochs": 8}
    before = torch.get_rng_state()
    for name, seed in {"a": 0, "b": 0, "c": 1}.items():
        train_detector(tmp_path / name, **options, seed=seed)
    assert torch.equal(torch.get_rng_state(), before)
    files = [(tmp_path / name / FILE_NAME).read_bytes() for name in "abc"]
    assert files[0] == files[1] != files[2]
    tokenizer = load_tokenizer("builtin:policy")
    text = tokenizer("N1 2 y 4 5 6", add_special_tokens=False)["input_ids"]
    place = [tokenizer.decode([token]).strip() for token in text].index("y")
    batch = pairs((text[1:], text[1:]), prompt=text[:1])
    scores = scores_of(DetectorImportance(str(tmp_path / "a")), batch)
    assert scores[0].argmax() == place
    assert scores[0, place] > 0.8
    assert scores[0].sum().item() == pytest.approx(1.0, abs=1e-5)


def test_the_shipped_detector_is_read_from_its_folder_or_file():
    folder = locate("builtin:detector")
    by_name, by_file = DetectorImportance("builtin:detector"), DetectorImportance(
        f"{folder}/{FILE_NAME}"
    )  # fmt: skip
    batch = tiny_batch()
    assert torch.equal(scores_of(by_name, batch), scores_of(by_file, batch))
    assert by_name._network.embedding.num_embeddings == len(load_tokenizer("builtin:policy"))


def test_it_adds_nothing_to_checkpoints():
    """Neither weights nor gradients nor modes: the path alone is stored."""
    detector = DetectorImportance("builtin:detector")
    module = PreferenceModule(PolicyConfig(), importance=detector)
    assert not [name for name in module.state_dict() if "learned" in name]
    assert not any(parameter.requires_grad for parameter in detector._network.parameters())
    assert as_plain_data(detector)["init_args"] == {"path": "builtin:detector"}


def test_tokens_outside_its_vocabulary_are_refused(tmp_path):
    save_file(DetectorNetwork(10).state_dict(), tmp_path / FILE_NAME)
    with pytest.raises(InputError, match=r"knows 10 tokens, but the batch holds token 47"):
        scores_of(DetectorImportance(str(tmp_path)), pairs(([5, 47], [5, 2])))


@pytest.mark.parametrize("content", [None, b"nothing", "other"])
def test_what_is_no_detector_is_refused(tmp_path, content):
    if content == "other":
        save_file({"head.weight": torch.zeros(2)}, tmp_path / FILE_NAME)
    elif content is not None:
        (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(InputError, match="expected a file that python -m lit_tidpo"):
        DetectorImportance(str(tmp_path))


def test_prompts_count_as_context_and_get_no_score():
    detector, batch = DetectorImportance("builtin:detector"), tiny_batch()
    scores = scores_of(detector, batch)
    assert bool((scores[~batch.response_mask] == 0).all())
    other = dataclasses.replace(batch, input_ids=batch.input_ids.clone())
    other.input_ids[:, 0] = 40
    first = torch.arange(len(scores)), batch.prompt_lengths
    assert not torch.allclose(scores_of(detector, other)[first], scores[first])


def test_contract():
    check_importance_estimator(DetectorImportance("builtin:detector"))
