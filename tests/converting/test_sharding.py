"""Strategies, quantised weights and added tokens of other trainers."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from lit_tidpo.commands.convert import run as convert
from lit_tidpo.converting.llama_factory import convert_llama_factory
from lit_tidpo.converting.sharding import _PACKAGED
from lit_tidpo.converting.trl import convert_trl
from lit_tidpo.errors import InputError
from lit_tidpo.models.policy import LoraOptions, PolicyConfig

BASE = {"model_name_or_path": "m", "dataset_name": "d"}
FP32 = {**BASE, "bf16": False}
LORA = {**BASE, "use_peft": True}
FACTORY = {"stage": "dpo", "model_name_or_path": "m", "dataset": "d"}
FSDP2 = yaml.safe_load(
    (Path(__file__).parents[2] / "configs" / "strategies" / "fsdp2.yaml").read_text("utf-8")
)["trainer"]["strategy"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text(
        '{"d": {"hf_hub_url": "a/b", "ranking": true}}'
    )
    return tmp_path


def zero(stage, **more):
    return {"zero_optimization": {"stage": stage, **more}}


@pytest.mark.parametrize(
    ("given", "expected", "fate"),
    [
        ({**FP32, "deepspeed": zero(2)}, "deepspeed_stage_2", None),
        ({**BASE, "deepspeed": zero(3)}, FSDP2, "near"),  # in bf16
        ({**BASE, "deepspeed": zero(0)}, "ddp", None),
        (
            {**FP32, "deepspeed": zero(3, offload_param={"device": "cpu"})},
            "deepspeed_stage_3",
            "none",
        ),
        ({**LORA, "deepspeed": zero(3), "load_in_4bit": True}, "ddp", "none"),
        ({**BASE, "fsdp": "full_shard auto_wrap"}, FSDP2, None),
        ({**BASE, "fsdp": True}, FSDP2, None),
        ({**BASE, "fsdp": ["hybrid_shard", "auto_wrap"]}, FSDP2, "near"),
        ({**BASE, "fsdp": "full_shard offload"}, FSDP2, "none"),
        ({**BASE, "fsdp": "no_shard"}, "ddp", None),
    ],
    ids=str,
)
def test_the_strategy_and_what_is_told(given, expected, fate):
    run = convert_trl(given)
    assert run.tree["trainer"]["strategy"] == expected
    name = "fsdp" if "fsdp" in given else "deepspeed"
    assert run.told.get(name, (None,))[0] == fate


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"distributed_type": "FSDP"}, "file of accelerate, .* accelerate launch --config_file f"),
        ({"zero_optimization": {}}, "file of DeepSpeed, .* trl dpo .* --deepspeed f.yaml"),
    ],
)
def test_such_a_file_alone_is_called_by_its_name(given, told, folder):
    Path("f.yaml").write_text(yaml.safe_dump(given), "utf-8")
    with pytest.raises(InputError, match=told):
        convert(["convert", "f.yaml"])


def test_files_of_deepspeed_and_accelerate(folder, capsys):
    Path("z2.json").write_text(json.dumps(zero(2)))
    found = convert_llama_factory({**FACTORY, "finetuning_type": "full", "deepspeed": "z2.json"})
    assert found.tree["trainer"]["strategy"] == "deepspeed_stage_2"
    sharding = {
        "fsdp_version": 2,
        "fsdp_offload_params": True,
        "fsdp_activation_checkpointing": True,
    }
    content = {"distributed_type": "FSDP", "num_processes": 4, "fsdp_config": sharding}
    Path("acc.yaml").write_text(yaml.safe_dump(content))
    line = "accelerate launch --config_file acc.yaml x/dpo.py --model_name_or_path m"
    with pytest.raises(SystemExit):  # for the offloading
        convert(["convert", *line.split(), "--dataset_name", "d", "--no_gradient_checkpointing"])
    text, told = capsys.readouterr()
    tree = yaml.safe_load(text)
    assert (tree["trainer"]["devices"], tree["trainer"]["strategy"]) == (4, FSDP2)
    assert tree["model"]["policy"]["activation_checkpointing"]
    assert "nothing is offloaded" in told


@pytest.mark.parametrize("name", _PACKAGED)
def test_the_files_that_trl_brings_along_say_so(name):
    found = Path(find_spec("trl").origin).parent / "accelerate_configs" / f"{name}.yaml"
    theirs = yaml.safe_load(found.read_text("utf-8"))
    ours = _PACKAGED[name]
    assert theirs["num_processes"] == ours["num_processes"]
    assert theirs["distributed_type"] == ours["distributed_type"]
    for stage in (ours.get("deepspeed_config") or {}).values():
        assert theirs["deepspeed_config"]["zero_stage"] == stage
    run = convert_trl({**BASE, "accelerate_config": name})
    assert run.tree["trainer"]["devices"] == (1 if name == "single_gpu" else 8)
    run = convert_trl({**BASE, "accelerate_config": name, "num_processes": 2})
    assert run.tree["trainer"]["devices"] == 2  # what is typed counts
    assert not run.lacks


@pytest.mark.parametrize(
    ("given", "kind", "fate"),
    [
        ({"load_in_4bit": True, "use_bnb_nested_quant": True}, "nf4", None),
        ({"load_in_4bit": True}, "nf4", "near"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, "nf4", "near"),
        ({"load_in_8bit": True}, "int8", "near"),
    ],
    ids=str,
)
def test_quantised_weights_of_trl(given, kind, fate):
    run = convert_trl({**LORA, **given})
    policy = run.tree["model"]["policy"]
    PolicyConfig(**{**policy, "lora": LoraOptions(**policy["lora"])})  # is accepted
    assert policy["quantization"] == kind
    assert run.told.get(next(iter(given)), (None,))[0] == fate


def test_quantised_weights_and_added_tokens_of_llama_factory(folder):
    given = {"quantization_bit": 4, "add_tokens": "<a>,<b>", "add_special_tokens": ["<c>"]}
    run = convert_llama_factory({**FACTORY, **given, "resize_vocab": True})
    policy = run.tree["model"]["policy"]
    PolicyConfig(**{**policy, "lora": LoraOptions(**policy["lora"])})
    assert (policy["quantization"], policy["added_tokens"]) == ("nf4", ["<a>", "<b>", "<c>"])
    assert not run.lacks
    other = convert_llama_factory({**FACTORY, "quantization_bit": 4, "quantization_method": "hqq"})
    assert other.lacks.keys() == {"quantization_method"}
    other = convert_llama_factory({**FACTORY, "quantization_bit": 3})
    assert other.lacks.keys() == {"quantization_bit"}


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match="both true"):
        convert_trl({**LORA, "load_in_4bit": True, "load_in_8bit": True})
    with pytest.raises(InputError, match="stage=4: expected 0 to 3"):
        convert_trl({**BASE, "deepspeed": zero(4)})
