"""The options of ``trl dpo`` (TRL 1.16): DPOConfig, ScriptArguments, ModelConfig and older ones."""

from __future__ import annotations

from lit_tidpo.converting import quantising
from lit_tidpo.converting.options import Option, becomes, by_name, idle, lacking, same
from lit_tidpo.converting.training_options import TRAINING

_OLDER = "of older releases; prompts and responses share `max_length`"
_NLL = "the mean over the tokens of each response, not of the batch"

CALLED: dict[str, str] = {
    "sigmoid": "dpo",
    "sigmoid_norm": "dpo",
    "hinge": "hinge",
    "ipo": "ipo",
    "exo_pair": "exo_pair",
    "nca_pair": "nca_pair",
    "robust": "robust",
    "bco_pair": "bco_pair",
    "sppo_hard": "sppo_hard",
    "aot": "aot",
    "aot_unpaired": "aot_unpaired",
    "apo_zero": "apo_zero",
    "apo_down": "apo_down",
    "discopop": "discopop",
    "sft": "sft",
}
"""The loss here of each loss type."""

_DPO = [
    becomes("loss_type", ["sigmoid"], "model.losses"),
    becomes("loss_weights", None, "model.loss_weights", kind=list),
    becomes("beta", 0.1, "model.losses.*.beta"),
    becomes("label_smoothing", 0.0, "model.losses.*.label_smoothing"),
    becomes("f_divergence_type", "reverse_kl", "model.losses.*.divergence"),
    becomes("f_alpha_divergence_coef", 0.5, "model.losses.*.divergence: AlphaDivergence"),
    becomes("ld_alpha", None, "model.losses: ld_dpo", kind=float),
    becomes("use_weighting", False, "model.losses: wpo"),
    becomes("discopop_tau", 0.05, "model.losses: discopop"),
    becomes("max_length", 1024, "data.max_length", "rows of long prompts keep their end"),
    becomes("truncation_mode", "keep_start", "data.max_prompt_length"),
    becomes("precompute_ref_log_probs", False, "model.reference_cache"),
    becomes("sync_ref_model", False, "trainer.callbacks: MovingReference"),
    becomes("ref_model_mixup_alpha", 0.6, "trainer.callbacks: MovingReference.alpha"),
    becomes("ref_model_sync_steps", 512, "trainer.callbacks: MovingReference.every_n_steps"),
    same("disable_dropout", True, "model.policy.disable_dropout"),
    same("activation_offloading", False, "model.policy.activation_offload"),
    same("trust_remote_code", False, "model.policy.trust_remote_code"),
    becomes("model_init_kwargs", None, "model.policy", kind=dict),
    becomes(
        "router_aux_loss_coef",
        None,
        "model.losses: router",
        "its factor is relative to the coefficient of the model's configuration",
        kind=float,
    ),
    becomes("pad_to_multiple_of", "auto", "data.pad_to_multiple"),
    lacking("pad_token", None, "padding is masked: leave it out, or set it in the tokenizer"),
    *idle(None, "speed alone", "dataset_num_proc", "precompute_ref_batch_size"),
    *idle(False, "`model.layout: auto` leaves padding out by itself", "padding_free"),
]
_SCRIPT = [
    becomes("dataset_name", None, "data.source", kind=str),
    same("dataset_config", None, "data.name", kind=str),
    same("dataset_train_split", "train", "data.train_split"),
    same("dataset_test_split", "test", "data.validation_split"),
    same("dataset_streaming", False, "data.streaming"),
    becomes("streaming", False, "data.streaming", why="of `datasets`"),
    becomes("datasets", [], "data.source"),
    becomes("test_split_size", None, "data.validation_fraction", kind=float),
    *idle(False, "strategies here need no such repair", "ignore_bias_buffers"),
]
_MODEL = [
    becomes("model_name_or_path", None, "model.policy.path", kind=str),
    becomes("model_revision", "main", "model.policy.revision"),
    becomes("dtype", "float32", "model.policy.dtype"),
    becomes("attn_implementation", None, "model.policy.attn_implementation", kind=str),
    becomes("use_peft", False, "model.policy.lora"),
    becomes("lora_r", 16, "model.policy.lora.r"),
    becomes("lora_alpha", 32, "model.policy.lora.alpha"),
    becomes("lora_dropout", 0.05, "model.policy.lora.dropout"),
    becomes("lora_target_modules", None, "model.policy.lora.target_modules", kind=list),
    becomes("lora_modules_to_save", None, "model.policy.lora.modules_to_save", kind=list),
    becomes("use_rslora", False, "model.policy.lora.use_rslora"),
    becomes("use_dora", False, "model.policy.lora.use_dora"),
    lacking("lora_target_parameters", None, "name modules as `lora_target_modules`", kind=list),
    becomes("lora_task_type", "CAUSAL_LM", "model.policy.lora"),
    becomes("load_in_8bit", False, "model.policy.quantization", quantising.EIGHT),
    becomes("load_in_4bit", False, "model.policy.quantization"),
    *idle("nf4", "4 bits are nf4", "bnb_4bit_quant_type"),
    *idle(False, quantising.SCALES, "use_bnb_nested_quant"),
    *idle("uint8", "how weights of 4 bits are kept is the library's", "bnb_4bit_quant_storage"),
]
_COMMAND = [
    becomes("num_processes", 1, "trainer.devices", why="of accelerate"),
    becomes(
        "accelerate_config",
        None,
        "trainer.strategy",
        why="with its processes as `trainer.devices`; also as `--config_file` of accelerate",
        kind=str,
    ),
    lacking("env", None, "set these variables in the shell", kind=dict),
]
_EARLIER = [
    becomes("torch_dtype", None, "model.policy.dtype", kind=str),
    becomes("evaluation_strategy", None, "trainer.limit_val_batches", kind=str),
    becomes("rpo_alpha", None, "model.losses: sft", _NLL, kind=float),
    becomes("reference_free", False, "model.losses: cpo with alpha 0"),
    becomes("max_prompt_length", None, "data.max_prompt_length", kind=int),
    lacking("max_completion_length", None, _OLDER, kind=int),
    lacking("max_target_length", None, _OLDER, kind=int),
    lacking("generate_during_eval", False, "`lit_tidpo.callbacks.SampleGenerations` writes them"),
    lacking("ref_adapter_name", None, "an adapter's reference is a frozen copy of it"),
    lacking("model_adapter_name", None, "name the adapter's folder as `model.policy.adapter`"),
    lacking("tools", None, "a column `tools` of the data"),
    *idle(None, "padding is masked", "label_pad_token_id", "padding_value"),
    *idle(
        False,
        "speed or memory alone",
        "use_logits_to_keep",
        "use_liger_loss",
        "use_num_logits_to_keep",
    ),
    *idle(False, "the reference is there where a loss asks for it", "force_use_ref_model"),
    *idle(None, "found in the model", "is_encoder_decoder", "base_model_attribute_name"),
    *idle(None, "the model's own", "ref_model_init_kwargs"),
]
_DEFAULTS = [
    becomes("learning_rate", 1e-6, "model.optimizer.init_args.lr"),
    becomes("logging_steps", 10.0, TRAINING["logging_steps"].to, why=TRAINING["logging_steps"].why),
    becomes("gradient_checkpointing", True, "model.policy.activation_checkpointing"),
    becomes("bf16", None, "trainer.precision", kind=bool, why="true where it is not given"),
]
GROUPS: dict[str, list[Option]] = {
    "DPOConfig": _DPO,
    "ScriptArguments and DatasetMixtureConfig": _SCRIPT,
    "ModelConfig": _MODEL,
    "The command": _COMMAND,
    "Of earlier releases": _EARLIER,
    "TrainingArguments": list(by_name(TRAINING.values(), _DEFAULTS).values()),
}
OPTIONS = by_name(*(GROUPS[name] for name in reversed(GROUPS)))
