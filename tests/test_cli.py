"""The commands, as a user types them: what they write, and one clear error for each bad input."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from transformers import LlamaForCausalLM

from lit_tidpo.cli import main
from lit_tidpo.errors import InputError
from lit_tidpo.locations import locate
from lit_tidpo.models.needs import describe_needs
from lit_tidpo.plugins.configurations import check_configurations
from lit_tidpo.plugins.parser import load_named_plugins

ROWS = [
    {"prompt": f"def f{i}(a):", "chosen": f"\n    return a + {i}", "rejected": f"\n    return {i}"}
    for i in range(6)
]


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Write rows to a file and run a subcommand on it, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def run(subcommand, *options, rows=ROWS, module="", data="data.jsonl"):
        text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "data.jsonl").write_text(text, encoding="utf-8")
        fitting = ["--trainer.max_steps=2", "--data.validation_fraction=0.3"]
        main(
            [
                *module.split(),
                subcommand,
                "--trainer.accelerator=cpu",
                "--trainer.enable_progress_bar=false",
                *(fitting if subcommand == "fit" else []),
                "--model.policy.path=builtin:policy",
                "--model.policy.init=random",
                f"--data.source={tmp_path / data}",
                f"--data.cache_dir={tmp_path / 'cache'}",
                "--data.batch_size=2",
                *options,
            ]
        )

    return run


NO_FILES = ["--trainer.logger=false", "--trainer.enable_checkpointing=false"]
FAST = ["--model.anchor.max_new_tokens=2"]


def test_fit_writes_checkpoint_resolved_configuration_and_metrics(command, tmp_path):
    command("fit", *FAST, "--model.importance=uniform")
    logs = next((tmp_path / "lightning_logs").iterdir())
    config = (logs / "config.yaml").read_text()
    assert "lit_tidpo.importance.uniform" in config
    assert list(logs.rglob("*.ckpt"))


def test_the_data_are_read_as_far_ahead_as_anchors_are_kept(command, monkeypatch):
    """Two steps of three batches; a loader that does not fit would be refused."""
    sampled, generate = [], LlamaForCausalLM.generate

    def counted(policy, **options):
        sampled.append(len(options["input_ids"]))
        return generate(policy, **options)

    monkeypatch.setattr(LlamaForCausalLM, "generate", counted)
    command(
        "fit",
        *FAST,
        "--model.importance=uniform",
        "--model.anchor.reuse_steps=2",
        "--trainer.accumulate_grad_batches=3",
        "--trainer.logger=false",
        "--trainer.limit_val_batches=0",
        "--data.batch_size=1",
        rows=[{**row, "prompt": row["prompt"] + mark} for row in ROWS for mark in ("", " ")],
    )
    assert sampled == [3, 6]  # first the rows that generation is proven on


def test_predict_writes_log_ratios_and_weights_of_each_response_token(command, tmp_path):
    target = tmp_path / "tokens.jsonl"
    command("predict", f"--tokens.path={target}", "--data.predict_split=train")
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert [(row["index"], row["role"]) for row in rows] == [
        (index, role) for index in range(6) for role in ("chosen", "rejected")
    ]
    for row in rows:
        text = ROWS[row["index"]][row["role"]]
        assert "".join(row["tokens"][:-1]) == text
        lengths = {
            len(row[name]) for name in ("token_ids", "log_ratios", "weights", "reference_kl")
        }
        assert lengths == {len(row["tokens"])}
        # the weights' mean is 1, and a policy that is its own reference has no log-ratios
        assert sum(row["weights"]) == pytest.approx(len(row["weights"]), rel=1e-5)
        assert row["log_ratios"] == pytest.approx([0.0] * len(row["weights"]), abs=1e-6)


def test_predict_writes_parquet_and_never_over_a_file(command, tmp_path, capsys):
    import datasets

    target = tmp_path / "tokens.parquet"
    command("predict", f"--tokens.path={target}", "--data.predict_split=train")
    assert len(datasets.Dataset.from_parquet(str(target), cache_dir=str(tmp_path / "c"))) == 12
    content = target.read_bytes()
    with pytest.raises(SystemExit):
        command("predict", f"--tokens.path={target}", "--data.predict_split=train")
    assert "exists" in capsys.readouterr().err
    assert target.read_bytes() == content


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_what_the_user_types_beats_the_checkpoint(command, tmp_path):
    loss = "--model.losses.preference"
    command("fit", f"{loss}=weighted_dpo", f"{loss}.beta=0.1", "--trainer.logger=false")
    checkpoint = next((tmp_path / "checkpoints").glob("*.ckpt"))
    target = tmp_path / "config"
    command(
        "test",
        f"--ckpt_path={checkpoint}",
        f"{loss}=weighted_dpo",
        f"{loss}.beta=0.3",
        "--data.test_split=train",
        f"--trainer.default_root_dir={target}",
        "--trainer.enable_checkpointing=false",
    )
    assert "beta: 0.3" in next(target.rglob("config.yaml")).read_text()


def test_sft_and_export(command, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    command("fit", "--trainer.logger=false", module="sft")
    checkpoint = next((tmp_path / "checkpoints").glob("*.ckpt"))
    main(["export", str(checkpoint), str(tmp_path / "model"), "--dtype=bfloat16"])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model.dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(tmp_path / "model").chat_template


def test_plugins_lists_group_name_class_distribution_version_and_state(capsys):
    main(["plugins"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["GROUP", "NAME", "CLASS", "DISTRIBUTION", "VERSION", "STATE"]
    cells = ["lit_tidpo.losses", "triplet", "lit_tidpo.losses.triplet_loss:TripletLoss"]
    assert any(line.split() == [*cells, "lit-tidpo", "0.1.0", "ok"] for line in lines)


def test_plugins_lists_what_components_can_ask_for(capsys):
    main(["plugins", "--needs"])
    head, *lines = capsys.readouterr().out.splitlines()
    shape, words = head.index("SHAPE"), head.index("WHAT IT IS")
    cells = [(line[:shape].strip(), line[shape:words].strip(), line[words:]) for line in lines]
    assert cells == describe_needs()
    assert ("MODEL.logps", "[N, T]") in [cell[:2] for cell in cells]


def test_help_without_a_command(capsys):
    main([])
    assert "lit-tidpo COMMAND" in capsys.readouterr().out


NO_REJECTED = [{"prompt": "a", "chosen": "b"}]
EMPTY_RESPONSE = [*ROWS, {"prompt": "a", "chosen": "", "rejected": "b"}]
IDENTICAL = [*ROWS, {"prompt": "a", "chosen": "b", "rejected": "b"}]
BAD_INPUTS = {
    "empty file": ({"rows": ""}, [], "empty"),
    "malformed line": ({"rows": '{"prompt": "a"\n'}, [], "data.jsonl"),
    "a row without rejected": ({"rows": NO_REJECTED}, [], "rejected"),
    "an empty response": ({"rows": EMPTY_RESPONSE}, [], "empty response"),
    "identical responses": ({"rows": IDENTICAL}, [], "identical"),
    "a missing local path": ({"data": "nowhere.jsonl"}, [], "nowhere.jsonl"),
    "an unknown plugin": ({}, ["--model.importance=gradiant"], "gradient"),
    "a misspelt option": ({}, ["--model.sead=1"], "sead"),
    "a misspelt plugin option": (
        {},
        ["--model.importance=gradient", "--model.importance.norn=l1"],
        "norn",
    ),
    "an option out of range": (
        {},
        ["--model.importance=hybrid", "--model.importance.mix=1.5"],
        "mix=1.5",
    ),
    "an option of an inner part out of range": (
        {},
        [
            "--model.importance=hybrid",
            "--model.importance.estimator=random",
            "--model.importance.prior=GaussianPrior",
            "--model.importance.prior.sigma_divisor=0",
        ],
        "sigma_divisor=0",
    ),
    "an option of a loss out of range": (
        {},
        ["--model.losses.preference=dpo", "--model.losses.preference.beta=0"],
        "beta=0",
    ),
    "a corrupt checkpoint": ({}, ["--ckpt_path=data.jsonl"], "data.jsonl"),
    "a missing checkpoint": ({}, ["--ckpt_path=nowhere.ckpt"], "nowhere.ckpt"),
    "a missing policy": ({}, ["--model.policy.path=./nowhere"], "./nowhere"),
    "an unknown shipped policy": ({}, ["--model.policy.path=builtin:nothing"], "builtin:"),
    "a look-ahead, which is linked": ({}, ["--data.lookahead=3"], "model.anchor.reuse_steps"),
    "an unknown loss weight": ({}, ["--model.loss_weights={tripled: 0.1}"], "tripled"),
    "attention without its kernel": ({}, ["--model.importance=attention"], "eager"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_gives_one_clear_error_without_a_traceback(case, command, capsys):
    where, options, named = BAD_INPUTS[case]
    with pytest.raises(SystemExit) as stopped:
        command("fit", *FAST, *options, "--trainer.logger=false", **where)
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert named in error
    assert "Traceback" not in error


def test_a_reference_with_another_vocabulary_is_refused(command, tmp_path, capsys):
    from lit_tidpo.testing import tiny_policy

    tiny_policy().save_pretrained(tmp_path / "other")
    with pytest.raises(SystemExit):
        command("fit", f"--model.reference={tmp_path / 'other'}")
    assert "different vocabularies (4096 and 48 entries)" in capsys.readouterr().err


def test_unusable_rows_are_dropped_and_counted_where_asked_to(command, tmp_path):
    with pytest.warns(UserWarning, match="1 identical responses"):
        command("fit", *FAST, "--data.invalid_rows=drop", "--trainer.logger=false", rows=IDENTICAL)


def test_a_prompt_longer_than_max_length_is_cut_and_reported(command):
    rows = [*ROWS, {"prompt": "x = 1" * 200, "chosen": "\ny = 2", "rejected": "\ny = 3"}]
    with pytest.warns(UserWarning, match="prompt"):
        command("fit", *FAST, "--data.max_length=32", "--trainer.logger=false", rows=rows)


def test_runs_in_one_folder_keep_the_configurations_of_all(command, tmp_path):
    """Without versions of the log folder; a file of the user's own is left alone, too."""
    (tmp_path / "config.yaml").write_text("mine: true\n")
    for _ in range(2):
        command("fit", *FAST, *NO_FILES)
    assert (tmp_path / "config.yaml").read_text() == "mine: true\n"
    assert "builtin:policy" in (tmp_path / "config-1.yaml").read_text()
    assert (tmp_path / "config-2.yaml").exists()


def test_a_seed_that_seeds_nothing_of_ours_warns(command):
    options = [*FAST, *NO_FILES, "--trainer.max_steps=1", "--seed_everything=3"]
    with pytest.warns(UserWarning, match=r"seed_everything=3 moves only .*data\.seed, model\.seed"):
        command("fit", *options)
    command("fit", *options, "--data.seed=3")


def test_data_files_are_not_read_as_configurations(tmp_path):
    """They may be large, in any encoding, and hold the name of a plugin."""
    file = tmp_path / "data.json"
    file.write_text('{"chosen": "uniform"}')
    sys.modules["lit_tidpo.importance"].__dict__.pop("uniform", None)
    for args in ([f"--data.source={file}"], ["--data.source", str(file)]):
        load_named_plugins(["fit", *args])
        assert "uniform" not in vars(sys.modules["lit_tidpo.importance"])
    (tmp_path / "latin.yaml").write_bytes("# \u00e9\nimportance: uniform\n".encode("latin-1"))
    load_named_plugins(["fit", "--config", str(tmp_path / "latin.yaml")])
    assert "uniform" in vars(sys.modules["lit_tidpo.importance"])


def test_sft_has_no_predict(capsys):
    with pytest.raises(SystemExit):
        main(["sft", "predict"])
    assert "sft predict does not exist" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # by peft
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_checkpoint_of_adapters_wants_adapters(command, tmp_path, capsys):
    """Not a list of missing keys; and before models are loaded."""
    lora = "--model.policy.lora={r: 2, alpha: 4}"
    command("fit", *FAST, lora)
    checkpoint = next((tmp_path / "lightning_logs").rglob("*.ckpt"))
    data = "--data.validation_split=train"
    with pytest.raises(SystemExit):
        command("validate", *FAST, data, f"--ckpt_path={checkpoint}")
    assert "was trained with policy.lora=LoraOptions(" in capsys.readouterr().err
    command("validate", *FAST, data, lora, f"--ckpt_path={checkpoint}")


def test_home_means_the_same_in_every_path(command, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    quick = ["--model.losses={preference: dpo}", "--data.cache_dir=~/cache"]
    quick += ["--trainer.default_root_dir=~/runs", "--trainer.logger=false"]
    command("fit", *quick, "--model.reference_cache=~/reference")
    (saved,) = (tmp_path / "home" / "runs").rglob("*.ckpt")
    path = "~/" + str(saved.relative_to(tmp_path / "home"))
    command(
        "predict",
        f"--ckpt_path={path}",
        "--tokens.path=~/t.jsonl",
        *quick,
        "--data.predict_split=train",
    )
    main(["export", path, "~/exported"])
    logger = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=~/logs"]
    saver = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.dirpath=~/kept"]
    command("fit", *quick[:-1], *logger, *saver)
    made = {entry.name for entry in (tmp_path / "home").iterdir()}
    assert made >= {"cache", "reference", "runs", "t.jsonl", "exported", "logs", "kept"}
    assert not list(tmp_path.glob("~*"))


def test_a_secret_does_not_reach_the_saved_configuration(command, tmp_path):
    """A logger's key, say; the run itself has it."""
    (tmp_path / "keyed.py").write_text(
        "from lightning.pytorch.loggers import CSVLogger\n\n\n"
        "class Keyed(CSVLogger):\n"
        "    def __init__(self, save_dir: str, api_key: str, tokenizer: str, uri: str,\n"
        "                 headers: dict[str, str]) -> None:\n"
        "        super().__init__(save_dir)\n"
        "        assert api_key == 'geheim'\n"
    )
    logger = {
        "class_path": "keyed.Keyed",
        "init_args": {
            "save_dir": "runs",
            "api_key": "geheim",
            "tokenizer": "mine",
            "uri": "https://bob:geheim@host/x",
            "headers": {"Authorization": "Bearer geheim", "X-API-Key": "geheim", "accept": "all"},
        },
    }
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.warns(UserWarning, match=r"saved without its secrets"):
            command(
                "fit", *FAST, "--model.importance=uniform", f"--trainer.logger={json.dumps(logger)}"
            )
    finally:
        sys.path.remove(str(tmp_path))
    (saved,) = (tmp_path / "runs").rglob("config.yaml")
    text = saved.read_text()
    assert "geheim" not in text
    assert "api_key: '***'" in text
    assert "tokenizer: mine" in text
    assert "https://***@host/x" in text
    assert "accept: all" in text


def test_known_classes_are_those_of_the_shipped_configurations(tmp_path):
    """And what a stranger could name is refused where configurations are read."""
    for file in (Path(__file__).parents[1] / "configs").glob("*.yaml"):
        check_configurations(["--config", str(file)], known_classes=True)
    (tmp_path / "c.yaml").write_text("model:\n  optimizer: {class_path: torch.optim.AdamW}\n")
    check_configurations([f"--config={tmp_path / 'c.yaml'}"], known_classes=True)
    (tmp_path / "c.yaml").write_text("model:\n  optimizer: {class_path: torch.hub.load}\n")
    with pytest.raises(InputError, match=r"'torch.hub.load' in line 2"):
        check_configurations([f"--config={tmp_path / 'c.yaml'}"], known_classes=True)


def test_two_runs_that_start_together_log_apart(command, tmp_path, monkeypatch):
    """Both find no folder when they look, and the second takes the next."""
    monkeypatch.setattr(CSVLogger, "_get_next_version", lambda self: 0)
    for _ in range(2):
        command(
            "fit",
            *FAST,
            "--model.importance=uniform",
            "--trainer.logger=CSVLogger",
            "--trainer.logger.save_dir=runs",
        )
    folders = sorted(file.parent.name for file in (tmp_path / "runs").rglob("metrics.csv"))
    assert folders == ["version_0", "version_1"]


@pytest.fixture
def checkpoint(command, tmp_path):
    """Of a preference run of one step."""
    command("fit", *FAST, "--trainer.logger=false", f"--trainer.default_root_dir={tmp_path}")
    (file,) = tmp_path.rglob("checkpoints/*.ckpt")
    return file


def _changed(file, change):
    content = torch.load(file, weights_only=True)
    change(content)
    torch.save(content, file)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")
def test_another_reference_is_told_of_on_resume(command, checkpoint):
    with pytest.warns(UserWarning, match=r"policy\.init='pretrained' \(was 'random'\).*compared"):
        command(
            "fit",
            *FAST,
            *NO_FILES,
            "--model.policy.init=pretrained",
            f"--ckpt_path={checkpoint}",
            "--trainer.max_steps=3",
        )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["hyper_parameters"].update(policy="x"), "is of another make"),
        (lambda c: c.update(hyper_parameters=[1]), "is of another make"),
        (lambda c: c["hyper_parameters"]["policy"].update(lora={"rank": 8}), "is of another make"),
        (lambda c: c.pop("pytorch-lightning_version"), "is of another make"),
        (lambda c: c["hyper_parameters"].pop("losses"), "is of sft training: export it"),
        (lambda c: c.update(optimizer_states=[]), "no state of its optimizer"),
        (
            lambda c: c["hyper_parameters"]["policy"].update(lora={"r": 2, "alpha": 4}),
            r"policy.lora=LoraOptions\(r=2, alpha=4",
        ),
    ],
)
def test_checkpoints_that_a_run_cannot_go_on_from_are_refused(
    command, checkpoint, capsys, change, words
):
    _changed(checkpoint, change)
    with pytest.raises(SystemExit) as stopped:
        command("fit", *FAST, *NO_FILES, f"--ckpt_path={checkpoint}", "--trainer.max_steps=3")
    assert stopped.value.code == 2
    assert re.search(words, capsys.readouterr().err)


def _spoil(content):
    next(iter(content["state_dict"].values()))[0, 0] = torch.nan


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")
def test_weights_that_are_not_finite_are_named(command, checkpoint, tmp_path, capsys):
    """Not by advice on the learning rate."""
    _changed(checkpoint, _spoil)
    with pytest.raises(SystemExit):
        command("fit", *FAST, *NO_FILES, f"--ckpt_path={checkpoint}", "--trainer.max_steps=3")
    assert "embed_tokens.weight holds weights that are NaN" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["export", str(checkpoint), str(tmp_path / "out")])
    assert "give log-probs that are NaN or infinite" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["hyper_parameters"].update(policy="x"),
        lambda c: c.update(hyper_parameters=[1]),
        lambda c: c["hyper_parameters"]["policy"].update(newer=1),
        lambda c: c.update(state_dict=None),
        lambda c: c.update(datamodule_hyper_parameters=3),
    ],
)
def test_checkpoints_of_another_make_are_not_exported(checkpoint, tmp_path, capsys, change):
    _changed(checkpoint, change)
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(checkpoint), str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert "is of another make" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_that_lacks_tensors_is_refused(command, tmp_path, capsys):
    """New ones would take their place."""
    import peft
    from safetensors.torch import load_file, save_file

    base = LlamaForCausalLM.from_pretrained(locate("builtin:policy"))
    options = peft.LoraConfig(r=2, target_modules=["q_proj"])
    peft.get_peft_model(base, options).save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file(dict(list(tensors.items())[:3]), file, {"format": "pt"})
    with pytest.raises(SystemExit) as stopped:
        command("fit", *FAST, *NO_FILES, f"--model.policy.adapter={tmp_path / 'adapter'}")
    assert stopped.value.code == 2
    assert re.search(r"policy.adapter='.*adapter' lacks tensors", capsys.readouterr().err)
