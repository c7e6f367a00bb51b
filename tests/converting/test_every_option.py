"""Every option of TRL that is said to have a counterpart changes the configuration."""

import pytest

from lit_tidpo.converting.trl import convert_trl
from lit_tidpo.converting.trl_options import OPTIONS

BASE = {
    "model_name_or_path": "m",
    "dataset_name": "d",
    "use_peft": True,
    "eval_strategy": "steps",
    "max_steps": 40,
}
# Another value than the default, where it is not one step away.
OTHERS = {
    "accelerate_config": "zero2",
    "attn_implementation": "sdpa",
    "bf16": False,
    "datasets": [{"path": "z"}],
    "deepspeed": {"zero_optimization": {"stage": 2}},
    "dtype": "bfloat16",
    "eval_steps": 5,
    "eval_strategy": "epoch",
    "evaluation_strategy": "epoch",
    "f_divergence_type": "js_divergence",
    "fsdp": "full_shard",
    "fsdp_config": {"activation_checkpointing": True},
    "logging_steps": 7,
    "loss_type": "hinge",
    "loss_weights": [2.0],
    "lr_scheduler_type": "cosine",
    "max_steps": 50,
    "model_init_kwargs": {"dtype": "bfloat16"},
    "num_train_epochs": 7,
    "optim": "rmsprop",
    "pad_to_multiple_of": 8,
    "report_to": "tensorboard",
    "save_steps": 7,
    "save_strategy": "epoch",
    "torch_dtype": "bfloat16",
    "train_sampling_strategy": "group_by_length",
    "use_peft": True,
}
BEST, WANDB = {"load_best_model_at_end": True}, {"report_to": "wandb"}
MOVING = {"use_peft": False, "sync_ref_model": True}
# What an option needs in order to count.
WITH = {
    "discopop_tau": {"loss_type": "discopop"},
    "evaluation_strategy": {"eval_strategy": None},
    "f_alpha_divergence_coef": {"f_divergence_type": "alpha_divergence"},
    "fp16": {"bf16": False},
    "fsdp_config": {"fsdp": "full_shard", "gradient_checkpointing": False},
    "greater_is_better": BEST,
    "label_smoothing": {"loss_type": "robust"},
    "lora_dropout": {"disable_dropout": False},
    "metric_for_best_model": BEST,
    "num_train_epochs": {"max_steps": -1},
    "project": WANDB,
    "ref_model_mixup_alpha": MOVING,
    "ref_model_sync_steps": MOVING,
    "run_name": WANDB,
    "streaming": {"datasets": [{"path": "z"}]},
    "sync_ref_model": {"use_peft": False},
    "use_peft": {"use_peft": False},
}
# Another value than the default is told of.
TOLD = {"logging_strategy", "truncation_mode", "lora_task_type"}


def other(option):
    kind = option.kind or type(option.default)
    steps = {bool: not option.default, int: (option.default or 0) + 2 if kind is int else 0}
    steps |= {float: (option.default or 0) + 0.25 if kind is float else 0, list: ["z"]}
    return OTHERS.get(option.name, steps.get(kind, "z"))


@pytest.mark.parametrize(
    "option", [each for each in OPTIONS.values() if each.to], ids=lambda each: each.name
)
def test_it_changes_the_configuration(option):
    base = {**BASE, **WITH.get(option.name, {})}
    base = {name: value for name, value in base.items() if value is not None}
    changed = convert_trl({**base, option.name: other(option)})
    if option.name in TOLD:
        assert option.name in changed.told
    else:
        assert changed.tree != convert_trl(base).tree
