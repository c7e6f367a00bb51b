"""What is explained, against predict, and against plain passes of the models."""

import copy
import json
import re

import pytest
import torch
from modules.runs import quiet_trainer, write_model
from transformers import AutoModelForCausalLM

import lit_tidpo
from lit_tidpo import PreferenceDataModule, PreferenceModule
from lit_tidpo.cli import main
from lit_tidpo.errors import InputError
from lit_tidpo.importance.gradient_importance import GradientImportance
from lit_tidpo.importance.hybrid_importance import HybridImportance
from lit_tidpo.importance.log_ratio_importance import LogRatioImportance
from lit_tidpo.losses.dpo_loss import DPOLoss
from lit_tidpo.models.policy import PolicyConfig
from lit_tidpo.models.tokenizer import load_tokenizer

TYPED = ("Is it <b>?", " yes, it is.", " no, it is not.")
ESTIMATORS = {
    "own": HybridImportance(mix=0.4),
    "gradient": GradientImportance(),
    "log_ratio": LogRatioImportance(),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"), attention_dropout=0.0)


@pytest.fixture(scope="module")
def models(folder):
    policy = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    reference = copy.deepcopy(policy)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for parameter in reference.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return policy.train(), reference


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def pair(models, tokenizer):
    policy, reference = models
    found = lit_tidpo.explain(
        policy,
        *TYPED,
        importance=ESTIMATORS,
        reference=reference,
        tokenizer=tokenizer,
        anchor_tokens=4,
    )
    return found.pairs[0]


def close(found, expected):
    torch.testing.assert_close(torch.tensor(found), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_weights_are_those_of_predict(models, tokenizer, pair, name, tmp_path, monkeypatch):
    row = dict(zip(("prompt", "chosen", "rejected"), TYPED, strict=True))
    (tmp_path / "pair.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.setattr("lit_tidpo.data.datamodule.load_tokenizer", lambda *_, **__: tokenizer)
    data = PreferenceDataModule(
        str(tmp_path / "pair.jsonl"), "unused", predict_split="train", cache_dir=str(tmp_path)
    )
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    losses = {"preference": DPOLoss(weighted=True)}
    module = PreferenceModule(PolicyConfig(), importance=ESTIMATORS[name], losses=losses)
    module.attach(*(copy.deepcopy(model) for model in models))
    prediction = module.eval().predict_step(batch, 0)
    for response in pair.responses[:2]:
        results = prediction.of_role(response.role)
        close(response.weights[name], results["weights"][results.mask])
        close(response.quantities["log-ratio"], results.log_ratios[results.mask])


def test_quantities_are_those_of_plain_passes_of_each_response(models, tokenizer, pair):
    policy, reference = (copy.deepcopy(model).eval() for model in models)
    prompt = tokenizer(TYPED[0])["input_ids"]
    assert pair.prompt == TYPED[0]
    assert [response.role for response in pair.responses] == ["chosen", "rejected", "anchor"]
    assert 1 <= len(pair.responses[2].tokens) <= 4
    for response in pair.responses:
        ids = torch.tensor([[*prompt, *response.token_ids]])
        own, other = (
            model(ids).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1).detach()
            for model in (policy, reference)
        )
        labels = ids[0, len(prompt) :, None]
        logps, others = (each.gather(-1, labels)[:, 0].float() for each in (own, other))
        found = response.quantities
        close(found["log-prob"], logps)
        close(found["log-ratio"], logps - others)
        close(found["entropy"], -(own.exp() * own).sum(-1).float())
        close(found["KL(reference || policy)"], (other.exp() * (other - own)).sum(-1).float())


def test_what_differs_is_marked(pair):
    """By hand: `yes,` becomes `no,`, and ` not` comes in."""
    marked = [
        "".join(text for text, new in zip(each.tokens, each.edited, strict=True) if new)
        for each in pair.responses
    ]
    assert marked == ["yes", "no not", ""]


def test_more_estimators_run_the_models_no_more_and_leave_the_policy_as_it_was(models, tokenizer):
    policy, reference = models
    before, runs = copy.deepcopy(policy.state_dict()), []
    handles = [
        model.model.layers[0].register_forward_hook(lambda *_: runs.append(1)) for model in models
    ]
    counts = []
    for importance in (["difference"], ESTIMATORS):
        runs.clear()
        lit_tidpo.explain(
            policy, *TYPED, importance=importance, reference=reference, tokenizer=tokenizer
        )
        counts.append(len(runs))
    for handle in handles:
        handle.remove()
    assert counts[0] == counts[1] > 0
    assert policy.training
    assert all(each.grad is None and each.requires_grad for each in policy.parameters())
    assert all(torch.equal(before[key], value) for key, value in policy.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"importance": ["log_ratio"]}, r"'log_ratio' asks for the models \['reference'\]"),
        ({"tokenizer": None}, "give its tokenizer"),
        ({"reference": "builtin:policy"}, "as a model, too"),
    ],
)
def test_what_does_not_go_together_is_refused(models, tokenizer, arguments, message):
    with pytest.raises(InputError, match=message):
        lit_tidpo.explain(models[0], *TYPED, **{"tokenizer": tokenizer, **arguments})


def test_equal_responses_are_refused(models, tokenizer):
    with pytest.raises(InputError, match="identical responses"):
        lit_tidpo.explain(models[0], "a", " b", " b", tokenizer=tokenizer)


@pytest.fixture(scope="module")
def checkpoint(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("run")
    rows = [{"prompt": f"q{n}", "chosen": f" yes {n}", "rejected": f" no {n}"} for n in range(6)]
    (place / "pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    module = PreferenceModule(
        PolicyConfig(folder),
        importance=HybridImportance(mix=0.4),
        losses={"preference": DPOLoss(weighted=True)},
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5),
    )
    data = PreferenceDataModule(
        str(place / "pairs.jsonl"),
        folder,
        predict_split="train",
        validation_split="train",
        cache_dir=str(place),
    )
    trainer = quiet_trainer(max_steps=2, limit_val_batches=0, default_root_dir=place)
    trainer.fit(module, data)
    trainer.save_checkpoint(place / "last.ckpt")
    return place / "last.ckpt"


def test_the_command_explains_the_data_of_a_checkpoint(checkpoint, tmp_path, capsys):
    """By the estimator of its run, against the policy that the run started from."""
    output = tmp_path / "page.html"
    main(["explain", str(checkpoint), "--pairs", "3", "--batch_size", "2", "--output", str(output)])
    assert capsys.readouterr().out == f"3 pairs: {output}\n"
    page = output.read_text(encoding="utf-8")
    assert re.findall(r'<article data-index="(\d+)"', page) == ["0", "1", "2"]
    names = ["of the run", "difference", "entropy", "log-ratio"]
    assert re.findall(r"<option value=\"\d+\">(.*?)</option>", page)[:4] == names
    ratios = [float(each) for each in re.findall(r"log-ratio ([-+][\d.]+)", page)]
    assert any(ratios)


def test_the_command_explains_a_typed_pair_by_named_estimators(folder, tmp_path):
    """One that reads attention probabilities among them, which the usual kernel has none of."""
    output = tmp_path / "page.html"
    words = ["--prompt", TYPED[0], "--chosen", TYPED[1], "--rejected", TYPED[2]]
    words += ["--importance.mine", "attention", "--importance.other", "entropy"]
    main(["explain", folder, *words, "--output", str(output)])
    page = output.read_text(encoding="utf-8")
    assert re.findall(r"<option value=\"\d+\">(.*?)</option>", page)[:2] == ["mine", "other"]
    assert "Is it &lt;b&gt;?" in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", "a", "--chosen", "b"], "without --rejected"),
        ([], "give --source"),
        (["--pairs", "0"], "pairs=0"),
        (["--anchor_tokens", "-1"], "anchor_tokens=-1"),
        (
            [*["--prompt", "a", "--chosen", "b", "--rejected", "c", "--split", "x"]],
            "leave out --source",
        ),
    ],
)
def test_the_command_says_what_to_mend(folder, capsys, words, message):
    with pytest.raises(SystemExit) as end:
        main(["explain", folder, *words])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
