"""``lit-tidpo convert``: every option of the others has a fate, and what is written is accepted."""

import dataclasses
import inspect
import json
import sys
import warnings
from pathlib import Path

import pytest
import yaml

from lit_tidpo.cli import main
from lit_tidpo.converting import llama_factory_options, trl_options
from lit_tidpo.converting.llama_factory import convert_llama_factory
from lit_tidpo.converting.trl import convert_trl
from lit_tidpo.errors import InputError

BASE = {"model_name_or_path": "m", "dataset_name": "d"}
FACTORY = {"stage": "dpo", "model_name_or_path": "m", "dataset": "pairs", "finetuning_type": "full"}
INFO = {
    "pairs": {
        "file_name": "pairs.json",
        "ranking": True,
        "formatting": "sharegpt",
        "columns": {"messages": "talk", "chosen": "chosen", "rejected": "rejected"},
    },
    "alone": {"file_name": "alone.json"},
    "labelled": {
        "file_name": "labelled.json",
        "formatting": "sharegpt",
        "columns": {"messages": "talk", "kto_tag": "tag"},
    },
    "hub": {"hf_hub_url": "a/b", "subset": "en", "ranking": True, "columns": {"prompt": "q"}},
}


@pytest.fixture(scope="module")
def trl_classes():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl import DatasetMixtureConfig, DPOConfig, ModelConfig, ScriptArguments
    return DPOConfig, ScriptArguments, ModelConfig, DatasetMixtureConfig


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("data/dataset_info.json").write_text(json.dumps(INFO), encoding="utf-8")
    return tmp_path


def losses(conversion):
    return {
        name: (loss["class_path"], loss.get("init_args", {}))
        for name, loss in conversion.tree["model"]["losses"].items()
    }


def test_every_field_of_trl_has_a_fate_and_its_default(trl_classes):
    for each in trl_classes:
        for field in dataclasses.fields(each):
            if field.init:
                option = trl_options.OPTIONS[field.name]  # each has one
                default = field.default
                if default is dataclasses.MISSING:
                    default = field.default_factory()
                if option.fate in ("same", "near") and field.name not in (
                    "output_dir",
                    "report_to",
                ):
                    assert option.default == default, field.name


def test_every_loss_type_of_trl_is_known():
    from trl import DPOTrainer

    text = inspect.getsource(DPOTrainer._compute_loss)
    named = {line.split('"')[1] for line in text.splitlines() if 'if loss_type == "' in line}
    assert named == set(trl_options.CALLED)


def test_every_option_says_where_it_goes_or_why_not():
    for option in [*trl_options.OPTIONS.values(), *llama_factory_options.OPTIONS.values()]:
        assert option.to if option.fate in ("same", "near") else option.why, option.name


@pytest.mark.parametrize(
    "given",
    [
        {
            "loss_type": ["sigmoid", "sft"],
            "loss_weights": [0.8, 1.0],
            "f_divergence_type": "alpha_divergence",
            "f_alpha_divergence_coef": 0.3,
            "sync_ref_model": True,
            "report_to": ["wandb", "tensorboard", "mlflow"],
            "eval_strategy": "steps",
            "eval_steps": 5,
            "save_total_limit": 3,
            "fp16": True,
        },
        {
            "use_peft": True,
            "lora_target_modules": ["q_proj"],
            "use_rslora": True,
            "eval_strategy": "epoch",
            "save_strategy": "epoch",
            "load_best_model_at_end": True,
            "optim": "rmsprop",
            "max_length": None,
        },
    ],
    ids=["many losses", "adapters"],
)
def test_what_is_written_is_accepted(folder, capsys, given):
    Path("theirs.yaml").write_text(yaml.safe_dump({**BASE, **given}), encoding="utf-8")
    main(["convert", "theirs.yaml", "--output", "ours.yaml"])
    accept(capsys)


def test_what_is_written_of_llama_factory_is_accepted(folder, capsys):
    given = {**FACTORY, "finetuning_type": "lora", "lora_target": "q_proj,v_proj", "bf16": True}
    given["dataset"] = "hub"
    Path("theirs.yaml").write_text(yaml.safe_dump(given), encoding="utf-8")
    main(["convert", "theirs.yaml", "--output", "ours.yaml"])
    tree = yaml.safe_load(Path("ours.yaml").read_text("utf-8"))
    assert tree["data"].pop("columns") == {"instruction": "q"}
    Path("ours.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    accept(capsys)


def accept(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(
            [
                "fit",
                "--config",
                "ours.yaml",
                "--data.source",
                "builtin:arithmetic",
                "--print_config",
            ]
        )
    assert exit_.value.code == 0
    assert "class_path" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"beta": "3e-1"}, {"sigmoid": ("dpo", {"beta": 0.3})}),
        ({"ld_alpha": 0.2}, {"sigmoid": ("ld_dpo", {"beta": 0.1, "alpha": 0.2})}),
        ({"use_weighting": True}, {"sigmoid": ("wpo", {"beta": 0.1, "aligned": True})}),
        ({"reference_free": True}, {"sigmoid": ("cpo", {"beta": 0.1, "alpha": 0.0})}),
        ({"rpo_alpha": 0.5}, {"sigmoid": ("dpo", {"beta": 0.1}), "nll": ("sft", {})}),
        (
            {"loss_type": "discopop", "discopop_tau": 0.1},
            {"discopop": ("discopop", {"beta": 0.1, "tau": 0.1})},
        ),
        (
            {"f_divergence_type": "js_divergence"},
            {"sigmoid": ("dpo", {"beta": 0.1, "divergence": {"class_path": "JensenShannon"}})},
        ),
    ],
)
def test_losses_of_trl(given, expected):
    assert losses(convert_trl({**BASE, **given})) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"pref_loss": "simpo", "simpo_gamma": 1}, ("simpo", {"beta": 0.1, "margin": 1.0})),
        ({"pref_loss": "orpo", "pref_beta": 0.2}, ("orpo", {"alpha": 0.2})),
        ({"dpo_label_smoothing": 0.1}, ("cdpo", {"beta": 0.1, "label_smoothing": 0.1})),
        ({"pref_loss": "ipo"}, ("ipo", {"beta": 0.1, "length_normalised": True})),
    ],
)
def test_losses_of_llama_factory(folder, given, expected):
    assert [*losses(convert_llama_factory({**FACTORY, **given})).values()] == [expected]


def test_a_column_of_labels_of_llama_factory(folder):
    run = convert_llama_factory({**FACTORY, "stage": "kto", "dataset": "labelled"})
    expected = {"conversations": "talk", "label": "tag"}
    assert run.tree["data"]["columns"] == expected


def test_data_sets_of_llama_factory(folder):
    data = convert_llama_factory(FACTORY).tree["data"]
    assert (data["source"], data["columns"]) == ("data/pairs.json", {"conversations": "talk"})
    several = convert_llama_factory({**FACTORY, "dataset": "pairs,hub"}).tree["data"]["source"]
    assert several[1] == {"source": "a/b", "name": "en", "columns": {"instruction": "q"}}
    for name, words in {"alone": "ranking", "gone": "has \\['alone'"}.items():
        with pytest.raises(InputError, match=words):
            convert_llama_factory({**FACTORY, "dataset": name})


@pytest.mark.parametrize(
    ("given", "rows", "expected"),
    [
        ({"warmup_ratio": 0.1, "max_steps": 55}, None, 6),
        ({"warmup_steps": 0.1, "num_train_epochs": 2}, 165, 5),  # of 2 * 21 steps
        ({"warmup_steps": 7}, None, 7),
        ({"warmup_steps": 7, "lr_scheduler_type": "constant"}, None, 0),
    ],
)
def test_the_warm_up_in_steps(given, rows, expected):
    run = convert_trl({**BASE, **given}, rows)
    assert run.tree["model"]["warmup_steps"] == expected
    assert not run.lacks


@pytest.mark.parametrize(
    "given",
    [
        {"warmup_ratio": 0.1},
        {"load_in_4bit": True},  # without LoRA
        {"deepspeed": "zero3.json"},  # which is not there
        {"lr_scheduler_type": "polynomial"},
        {"optim": "galore_adamw"},
        {"report_to": "trackio"},
        {"num_train_epochs": 0.5},
        {"loss_type": "hinge", "ld_alpha": 0.5},
        {"truncation_mode": "keep_end"},
    ],
    ids=str,
)
def test_what_has_no_counterpart_is_told(given):
    assert convert_trl({**BASE, **given}).lacks.keys() == {[*given][-1]}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"learning_rat": 1, "what": 2}, "'learning_rat' \\(did you mean 'learning_rate'.*'what' "),
        ({"beta": "high"}, "beta='high': expected a number"),
        ({"loss_type": "kto_pair"}, "loss_type='kto_pair': expected some of"),
        ({"loss_type": ["sigmoid"], "loss_weights": [1, 2]}, "expected a number for each"),
        ({"loss_type": "apo_zero", "f_divergence_type": "forward_kl"}, "does not go with"),
        ({"fp16": True, "bf16": True}, "both true"),
        ({"sync_ref_model": True, "use_peft": True}, "goes neither"),
        ({"dtype": "int8"}, "dtype='int8'"),
        ({"datasets": "x"}, "expected a mapping with path"),
        ({"model_init_kwargs": "{a"}, "is no JSON"),
        ({"gradient_accumulation_steps": 0}, "expected 1 or more"),
    ],
)
def test_what_cannot_be_is_refused(given, words):
    with pytest.raises(InputError, match=words):
        convert_trl({**BASE, **given})


def test_a_command_line_over_a_file(folder, capsys):
    Path("dpo.yaml").write_text("beta: 0.5\nlearning_rate: 5e-7\neval_strategy: no\n", "utf-8")
    line = "trl dpo --config dpo.yaml --beta=0.2 --no_disable_dropout --use-peft --lora_r 4"
    line += " --model_name_or_path m --dataset_name d --lora_target_modules q_proj v_proj"
    main(["convert", *line.split(), "--hub_token", "hf_secret"])
    text, told = capsys.readouterr()
    tree = yaml.safe_load(text)
    assert tree["model"]["losses"]["sigmoid"]["init_args"] == {"beta": 0.2}
    assert tree["model"]["optimizer"]["init_args"]["lr"] == 5e-7
    assert not tree["model"]["policy"]["disable_dropout"]
    assert tree["model"]["policy"]["lora"]["target_modules"] == ["q_proj", "v_proj"]
    assert "no option lacks" in told
    assert "hf_secret" not in text + told


def test_other_command_lines(folder, capsys):
    line = "accelerate launch --num_processes 2 x/dpo.py --model_name_or_path m --dataset_name d"
    main(["convert", *line.split()])
    assert yaml.safe_load(capsys.readouterr().out)["trainer"]["devices"] == 2
    Path("f.yaml").write_text(yaml.safe_dump(FACTORY), encoding="utf-8")
    main(["convert", "llamafactory-cli", "train", "f.yaml", "pref_beta=0.3"])
    loss = yaml.safe_load(capsys.readouterr().out)["model"]["losses"]["sigmoid"]
    assert loss["init_args"] == {"beta": 0.3}


def test_the_status_says_that_something_is_lacking(folder, capsys):
    Path("theirs.yaml").write_text(yaml.safe_dump({**BASE, "load_in_8bit": True}), "utf-8")
    with pytest.raises(SystemExit) as exit_:
        main(["convert", "theirs.yaml", "--output", "ours.yaml"])
    assert exit_.value.code == 1
    assert "load_in_8bit: no counterpart" in Path("ours.yaml").read_text("utf-8")
    with pytest.raises(SystemExit) as exit_:
        main(["convert", "trl", "sft"])
    assert exit_.value.code == 2
    assert "expected `trl dpo`" in capsys.readouterr().err


def test_nothing_needs_torch(folder):
    import subprocess

    code = "import sys; from lit_tidpo.commands import convert; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
