"""A checkpoint becomes a folder that transformers loads (G9)."""

from __future__ import annotations

import json
from types import SimpleNamespace

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from lit_tidpo.cli import main
from lit_tidpo.errors import InputError
from lit_tidpo.models.export import export_checkpoint, mergeable, read_checkpoint
from lit_tidpo.models.policy import LoraOptions, PolicyConfig
from lit_tidpo.modules.sft import SFTModule

from .runs import (
    LORA,
    NO_TRIPLET,
    QUIET,
    SGD,
    TEMPLATE,
    fit,
    logits,
    make_data,
    make_module,
    write_model,
)

pytestmark = QUIET


def fitted(model_folder, source, folder, policy, **options):
    """A checkpoint, and the module that wrote it."""
    module = make_module(model_folder, policy=policy, **NO_TRIPLET, **options)
    fit(module, make_data(source, model_folder), folder)
    return folder / "step=3.ckpt", module


@pytest.mark.parametrize(
    "policy",
    [
        pytest.param({}, id="whole"),
        pytest.param(LORA, id="lora"),
        pytest.param({"dtype": "auto"}, id="auto"),
        pytest.param({"adapter": True}, id="adapter"),
    ],
)
def test_an_export_reproduces_the_policy(model_folder, source, batch, adapter, tmp_path, policy):
    policy = {"adapter": adapter} if "adapter" in policy else policy
    checkpoint, module = fitted(model_folder, source, tmp_path / "saved", policy)
    folder = tmp_path / "exported"
    export_checkpoint(checkpoint, folder)
    reloaded = AutoModelForCausalLM.from_pretrained(folder)
    assert type(reloaded).__name__ == "LlamaForCausalLM"
    expected = logits(module.policy.eval(), batch)
    # Merged adapters round once more, in units of 5e-7 for these logits of up to 5.
    atol = 3e-5 if module.policy_config.lora or module.policy_config.adapter else 1e-5
    torch.testing.assert_close(logits(reloaded, batch), expected, atol=atol, rtol=0)
    start = AutoModelForCausalLM.from_pretrained(model_folder)
    assert (logits(start, batch) - expected).abs().max() > 1e-3
    assert reloaded.config.attention_dropout == 0.1  # off in training, still the model's own
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer("Q1 yes")["input_ids"] == _ids(model_folder, "Q1 yes")


def _ids(folder, text):
    return AutoTokenizer.from_pretrained(folder)(text)["input_ids"]


def test_the_template_that_was_trained_with_travels(model_folder, source, tmp_path):
    template = "{% for m in messages %}<{{ m.content }}>{% endfor %}"
    module = make_module(model_folder, **NO_TRIPLET)
    data = make_data(source, model_folder, chat_template=template)
    fit(module, data, tmp_path / "saved", max_steps=1)
    export_checkpoint(tmp_path / "saved" / "step=1.ckpt", tmp_path / "exported")
    exported = AutoTokenizer.from_pretrained(tmp_path / "exported")
    assert exported.chat_template == template


def test_generation_settings_travel(model_folder, source, tmp_path):
    policy = AutoModelForCausalLM.from_pretrained(model_folder)
    policy.generation_config.update(eos_token_id=[2, 5], do_sample=True, temperature=0.6)
    start = tmp_path / "start"
    policy.save_pretrained(start)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(start)
    checkpoint, _ = fitted(str(start), source, tmp_path / "saved", {})
    export_checkpoint(checkpoint, tmp_path / "exported")
    settings = AutoModelForCausalLM.from_pretrained(tmp_path / "exported").generation_config
    assert settings.eos_token_id == [2, 5]
    assert settings.temperature == 0.6


def test_the_command_exports(model_folder, source, tmp_path):
    module = SFTModule(PolicyConfig(path=model_folder), optimizer=SGD)
    fit(module, make_data(source, model_folder), tmp_path / "saved")
    folder = tmp_path / "exported"
    main(["export", str(tmp_path / "saved" / "step=3.ckpt"), str(folder), "--dtype=bfloat16"])
    reloaded = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert reloaded.dtype == torch.bfloat16
    for name, value in module.policy.state_dict().items():
        assert torch.equal(reloaded.state_dict()[name], value.to(torch.bfloat16))
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"


def test_adapters_of_a_bfloat16_base_are_merged_in_float32(model_folder, source, tmp_path):
    """Merged in bfloat16, they changed the log-probs of a real model by half a nat."""
    policy = {"dtype": "bfloat16", "lora": LoraOptions(r=2, alpha=2)}
    checkpoint, module = fitted(model_folder, source, tmp_path / "saved", policy)
    export_checkpoint(checkpoint, tmp_path / "exported")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype="auto")
    assert reloaded.dtype == torch.bfloat16
    own, name = module.policy.base_model.model, "model.layers.0.self_attn.q_proj"
    adapted = own.get_submodule(name)
    expected = adapted.base_layer.weight.float() + adapted.get_delta_weight("default").float()
    assert torch.equal(reloaded.get_submodule(name).weight, expected.bfloat16())


def test_a_folder_that_holds_something_is_refused(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"export folder .* is not empty: choose a new one"):
        export_checkpoint(tmp_path / "last.ckpt", tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(tmp_path / "last.ckpt"), str(tmp_path)])
    assert stopped.value.code == 2
    assert "is not empty" in capsys.readouterr().err
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_checkpoints_that_cannot_be_used(model_folder, source, tmp_path):
    checkpoint, _ = fitted(model_folder, source, tmp_path / "saved", {})
    whole = checkpoint.read_bytes()
    bad = tmp_path / "bad.ckpt"
    with pytest.raises(InputError, match="no checkpoint at"):
        read_checkpoint(bad)
    for content in (b"", b"not a checkpoint", whole[: len(whole) // 2], whole[:100]):
        bad.write_bytes(content)
        with pytest.raises(InputError, match=r"bad\.ckpt' cannot be read .* corrupt"):
            read_checkpoint(bad)
    torch.save({"weights": torch.zeros(1)}, bad)
    with pytest.raises(InputError, match="is no Lightning checkpoint"):
        read_checkpoint(bad)
    content = torch.load(checkpoint, weights_only=True)
    content["hyper_parameters"]["policy"]["path"] = ""
    torch.save(content, bad)
    with pytest.raises(InputError, match="does not say which model its policy is"):
        export_checkpoint(bad, tmp_path / "exported")
    content["hyper_parameters"]["policy"]["path"] = model_folder
    del content["state_dict"]["policy.lm_head.weight"]
    torch.save(content, bad)
    with pytest.raises(InputError, match=r"bad\.ckpt' does not fit .*lm_head"):
        export_checkpoint(bad, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_a_corrupt_checkpoint_stops_the_command_early(model_folder, source, tmp_path, capsys):
    bad = tmp_path / "bad.ckpt"
    bad.write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(SystemExit) as stopped:
        main(
            [
                "fit",
                f"--model.policy.path={model_folder}",
                f"--data.source={source}",
                f"--ckpt_path={bad}",
                f"--trainer.default_root_dir={tmp_path}",
                "--trainer.accelerator=cpu",
                "--trainer.logger=false",
            ]
        )
    assert stopped.value.code == 2
    assert "cannot be read" in capsys.readouterr().err


def test_merging_into_a_quantised_base_is_refused():
    policy = SimpleNamespace(hf_quantizer=object(), float=lambda: None)
    with pytest.raises(InputError, match="cannot be merged into a quantised base"):
        mergeable(policy)


def test_a_file_in_the_folders_place_is_refused(model_folder, source, tmp_path):
    checkpoint, _ = fitted(model_folder, source, tmp_path / "saved", {})
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file: choose a new one"):
        export_checkpoint(checkpoint, tmp_path / "file")


@pytest.mark.parametrize("step", ["merging", "writing"])
def test_an_export_that_is_not_the_policy_is_refused_and_leaves_nothing(
    model_folder, source, tmp_path, monkeypatch, step
):
    checkpoint, _ = fitted(model_folder, source, tmp_path / "saved", LORA)
    whole = LlamaForCausalLM.save_pretrained

    def spoiled(policy, *rest, **options):
        with torch.no_grad():
            policy.lm_head.weight.mul_(1.5)
        return whole(policy, *rest, **options)

    if step == "writing":
        monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", spoiled)
    else:
        monkeypatch.setattr(peft.LoraModel, "merge_and_unload", lambda adapted: adapted.unload())
    with pytest.raises(InputError, match=f"{step} .* nothing was exported"):
        export_checkpoint(checkpoint, tmp_path / "to" / "exported")
    assert not list((tmp_path / "to").glob("*"))


@pytest.mark.parametrize(
    ("lora", "tied"),
    [
        pytest.param(LoraOptions(r=2), True, id="tied"),
        pytest.param(
            LoraOptions(
                r=2,
                use_rslora=True,
                use_dora=True,
                modules_to_save=["lm_head"],
                rank_pattern={"q_proj": 4},
                alpha_pattern={"v_proj": 3},
            ),
            False,
            id="all",
        ),
    ],
)
def test_an_adapter_travels_alone(source, batch, tmp_path, lora, tied):
    """From a checkpoint that holds no other weights, to be loaded by peft itself."""
    model_folder = write_model(tmp_path / "base", tie_word_embeddings=tied)
    policy = {"lora": lora, "save_frozen": False}
    checkpoint, module = fitted(model_folder, source, tmp_path / "saved", policy)
    names = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert names
    assert all("lora_" in name or "modules_to_save" in name for name in names)
    folder = tmp_path / "exported"
    main(["export", str(checkpoint), str(folder), "--adapter"])
    assert not list(folder.glob("model*"))
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    reloaded = peft.PeftModel.from_pretrained(base, folder).eval()
    expected = logits(module.policy.eval(), batch)
    torch.testing.assert_close(logits(reloaded, batch), expected, atol=1e-6, rtol=0)
    with reloaded.disable_adapter():
        assert (logits(reloaded, batch) - expected).abs().max() > 1e-3
    export_checkpoint(checkpoint, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged, batch), expected, atol=1e-4, rtol=0)


def test_an_adapter_of_none_is_refused(model_folder, source, tmp_path):
    checkpoint, _ = fitted(model_folder, source, tmp_path / "saved", {})
    with pytest.raises(InputError, match="has no adapters: leave --adapter out"):
        export_checkpoint(checkpoint, tmp_path / "exported", adapter=True)
