"""The options of LLaMA-Factory's stages ``dpo`` and ``kto`` (its model, data and method)."""

from __future__ import annotations

from lit_tidpo.converting import quantising
from lit_tidpo.converting.options import Option, becomes, by_name, idle, lacking, same
from lit_tidpo.converting.training_options import TRAINING

_KERNELS = "speed or memory alone: `model.logits_at_once` and `model.policy.compile_layers`"
_OPTIMIZERS = "name an optimizer of yours as `model.optimizer`, or take `model.policy.lora`"
_ADAPTERS = "adapters are LoRA's here: take `finetuning_type: lora`"
_ROWS = "their rows start as the mean of the others, and are trained beside adapters, too"
_MEDIA = "text alone is trained on"
_OTHER_STAGE = "of another stage"
_INFERENCE = "of inference, or of another command"
_LAUNCH = "start one process a device as `trainer.devices` and `trainer.num_nodes` say"
_PROFILER = "`trainer.profiler` measures"
_MODEL_CODE = "take a model that has it in its own configuration"
_TEMPLATE = "set `data.chat_template`"
_MIX = "with weights in `data.source`, training rows are drawn in these shares"

PREF_LOSS = (
    "`hinge` and `ipo` are what they say; LLaMA-Factory 0.9.5 trains `sigmoid` in their place "
    "under TRL 0.24"
)

_METHOD = [
    becomes("stage", "sft", "model.losses", why="`dpo` or `kto`"),
    becomes("finetuning_type", "lora", "model.policy.lora"),
    becomes("pref_loss", "sigmoid", "model.losses", why=PREF_LOSS),
    becomes("pref_beta", 0.1, "model.losses.*.beta", why="of `orpo` it is `alpha`"),
    becomes("pref_ftx", 0.0, "model.losses: sft", why="with this as its factor"),
    lacking("pref_bco_weight", 0.0, "add the loss `bco` to `model.losses`; its mean is of the run"),
    becomes("simpo_gamma", 0.5, "model.losses: simpo.margin"),
    becomes("dpo_label_smoothing", 0.0, "model.losses: cdpo.label_smoothing"),
    becomes("kto_chosen_weight", 1.0, "model.losses: kto.desirable_weight"),
    becomes("kto_rejected_weight", 1.0, "model.losses: kto.undesirable_weight"),
    becomes(
        "ld_alpha",
        None,
        "model.losses: ld_dpo",
        "the reference's excess tokens count less, too, as in the paper",
        kind=float,
    ),
    becomes("ref_model", None, "model.reference", kind=str),
    lacking("ref_model_adapters", None, "merge them: `lit-tidpo export`"),
    lacking("ref_model_quantization_bit", None, "a reference of its own is not quantised"),
    becomes("lora_rank", 8, "model.policy.lora.r"),
    becomes("lora_alpha", None, "model.policy.lora.alpha", kind=int),
    becomes("lora_dropout", 0.0, "model.policy.lora.dropout"),
    becomes("lora_target", "all", "model.policy.lora.target_modules", kind=list),
    becomes("additional_target", None, "model.policy.lora.modules_to_save", kind=list),
    becomes("use_rslora", False, "model.policy.lora.use_rslora"),
    becomes("use_dora", False, "model.policy.lora.use_dora"),
    lacking("loraplus_lr_ratio", None, _OPTIMIZERS, kind=float),
    lacking("create_new_adapter", False, "merge the adapter first: `lit-tidpo export`"),
    lacking("pissa_init", False, "PiSSA: save the model that its script writes"),
    becomes("pure_bf16", False, "model.policy.dtype"),
    lacking("disable_shuffling", False, "rows are shuffled in each epoch"),
    lacking("early_stopping_steps", None, "`trainer.callbacks`: Lightning's EarlyStopping"),
    lacking("use_galore", False, _OPTIMIZERS),
    lacking("use_apollo", False, _OPTIMIZERS),
    lacking("use_badam", False, _OPTIMIZERS),
    lacking("use_adam_mini", False, _OPTIMIZERS),
    lacking("use_muon", False, _OPTIMIZERS),
    lacking("use_llama_pro", False, _ADAPTERS),
    lacking("freeze_language_model", False, _MEDIA),
    lacking("use_mca", False, _LAUNCH),
    lacking("use_megatron_bridge", False, _LAUNCH),
    lacking("use_hyper_parallel", False, _LAUNCH),
    lacking("use_swanlab", False, "name a logger of yours as `trainer.logger`"),
    *idle(None, "of what asks for it", "loraplus_lr_embedding", "pissa_iter", "pissa_convert"),
    *idle(
        None, "of what asks for it", "module_dropout", "oft_rank", "oft_block_size", "oft_target"
    ),
    *idle(None, "of what asks for it", "freeze_trainable_layers", "freeze_trainable_modules"),
    *idle(None, "of what asks for it", "freeze_extra_modules", "megatron_bridge_args"),
    *idle(None, "of what asks for it", "hyper_parallel_args", "hyper_parallel_cp_size"),
    *idle(None, "of what asks for it", *(f"galore_{n}" for n in ("target", "rank", "scale"))),
    *idle(None, "of what asks for it", "galore_update_interval", "galore_proj_type"),
    *idle(None, "of what asks for it", "galore_layerwise", "apollo_update_interval"),
    *idle(None, "of what asks for it", *(f"apollo_{n}" for n in ("target", "rank", "scale"))),
    *idle(None, "of what asks for it", "apollo_proj", "apollo_proj_type", "apollo_scale_type"),
    *idle(None, "of what asks for it", "apollo_layerwise", "apollo_scale_front", "badam_mode"),
    *idle(None, "of what asks for it", "badam_start_block", "badam_switch_mode"),
    *idle(None, "of what asks for it", "badam_switch_interval", "badam_update_ratio"),
    *idle(None, "of what asks for it", "badam_mask_mode", "badam_verbose"),
    *idle(
        None,
        "of what asks for it",
        *(f"swanlab_{name}" for name in ("project", "workspace", "run_name", "mode", "api_key")),
        *(f"swanlab_{name}" for name in ("logdir", "lark_webhook_url", "lark_secret")),
    ),
    *idle(None, _OTHER_STAGE, "ppo_buffer_size", "ppo_epochs", "ppo_score_norm", "ppo_target"),
    *idle(None, _OTHER_STAGE, "ppo_whiten_rewards", "reward_model", "reward_model_adapters"),
    *idle(None, _OTHER_STAGE, "reward_model_quantization_bit", "reward_model_type"),
    *idle(None, _OTHER_STAGE, "use_dft_loss", "use_asft_loss", "asft_alpha", "use_eaft_loss"),
    *idle(None, _OTHER_STAGE, "eaft_alpha", "compute_accuracy"),
    *idle(None, _MEDIA, "freeze_vision_tower", "freeze_multi_modal_projector"),
    *idle(None, "the report page has curves", "plot_loss", "include_effective_tokens_per_second"),
]
_DATA = [
    becomes("dataset", None, "data.source", why="by `dataset_info.json`", kind=list),
    becomes("dataset_dir", "data", "data.source"),
    becomes("eval_dataset", None, "data.validation_split", kind=list),
    becomes("val_size", 0.0, "data.validation_fraction", "other rows are held out"),
    becomes(
        "cutoff_len", 2048, "data.max_length", "prompts are cut on the left, theirs on the right"
    ),
    becomes("max_samples", None, "data.max_rows", kind=int),
    same("streaming", False, "data.streaming"),
    becomes("buffer_size", 16384, "data.shuffle_buffer"),
    becomes("template", None, "data.chat_template", "it is the tokenizer's own", kind=str),
    lacking("tool_format", None, _TEMPLATE),
    lacking("default_system", None, "a column `system` of the data, or " + _TEMPLATE),
    becomes("enable_thinking", True, "data.chat_template", "it is the tokenizer's own"),
    lacking("preserve_thinking", False, _TEMPLATE),
    becomes("mix_strategy", "concat", "data.source"),
    lacking("interleave_probs", None, _MIX),
    lacking("tokenized_path", None, "name the data themselves; tokens are kept by `datasets`"),
    lacking("train_on_prompt", False, "responses alone are trained on, there as here"),
    lacking("mask_history", False, "responses alone are trained on, there as here"),
    lacking("eval_on_each_dataset", False, "splits are joined: validate them one by one"),
    lacking("packing", None, "`model.layout` packs by itself"),
    lacking("neat_packing", False, "`model.layout` packs by itself"),
    lacking("media_dir", None, _MEDIA),
    *idle(None, "tokens are kept by `datasets`", "overwrite_cache", "data_shared_file_system"),
    *idle(None, "speed alone", "preprocessing_batch_size", "preprocessing_num_workers"),
    *idle(None, _INFERENCE, "eval_num_beams"),
    *idle(True, "padding is masked", "ignore_pad_token_for_loss"),
]
_MODEL = [
    becomes("model_name_or_path", None, "model.policy.path", kind=str),
    becomes("adapter_name_or_path", None, "model.policy.adapter", kind=list),
    lacking("adapter_folder", None, "name the folder as `model.policy.adapter`"),
    becomes("model_revision", "main", "model.policy.revision"),
    same("trust_remote_code", False, "model.policy.trust_remote_code"),
    becomes("cache_dir", None, "data.cache_dir", why="of models: the variable HF_HOME", kind=str),
    becomes("flash_attn", "auto", "model.policy.attn_implementation"),
    becomes("split_special_tokens", False, "data.special_tokens"),
    becomes("train_from_scratch", False, "model.policy.init"),
    becomes("disable_gradient_checkpointing", False, "model.policy.activation_checkpointing"),
    lacking("moe_aux_loss_coef", None, "the loss `router`, whose factor is the model's own"),
    becomes("quantization_bit", None, "model.policy.quantization", kind=int),
    lacking("quantization_method", "bnb", quantising.KEPT),
    *idle("nf4", "4 bits are nf4", "quantization_type"),
    *idle(True, quantising.SCALES, "double_quantization"),
    lacking("rope_scaling", None, _MODEL_CODE),
    lacking("shift_attn", False, _MODEL_CODE),
    lacking("mixture_of_depths", None, _MODEL_CODE),
    becomes("add_tokens", None, "model.policy.added_tokens", _ROWS, kind=list),
    becomes(
        "add_special_tokens",
        None,
        "model.policy.added_tokens",
        f"as tokens like others, which decoding keeps; {_ROWS}",
        kind=list,
    ),
    lacking("new_special_tokens_config", None, f"name the tokens as `add_tokens`: {_ROWS}"),
    *idle(False, "embeddings get rows where tokens are added", "resize_vocab"),
    lacking("use_kt", False, _MODEL_CODE),
    lacking("upcast_layernorm", False, "set `model.policy.dtype: float32`"),
    *idle(None, _KERNELS, "enable_liger_kernel", "use_unsloth", "use_unsloth_gc"),
    *idle(None, _KERNELS, "use_reentrant_gc", "low_cpu_mem_usage", "use_fast_tokenizer"),
    *idle(None, "log-probs are computed in fp32", "upcast_lmhead_output"),
    *idle(None, "a device holds a whole model, or strategies share it", "quantization_device_map"),
    *idle(None, "of what asks for it", "init_special_tokens", "print_param_status"),
    *idle(None, "the variable HF_TOKEN", "hf_hub_token", "ms_hub_token", "om_hub_token"),
    *idle(None, _INFERENCE, "infer_backend", "infer_dtype", "offload_folder", "use_kv_cache"),
    *idle(None, _INFERENCE, "use_v1_kernels", "vllm_config", "sglang_config", "export_dir"),
    *idle(None, _INFERENCE, "vllm_maxlen", "vllm_gpu_util", "vllm_enforce_eager"),
    *idle(None, _INFERENCE, "vllm_max_lora_rank", "sglang_maxlen", "sglang_mem_fraction"),
    *idle(None, _INFERENCE, "sglang_tp_size", "sglang_lora_backend", "export_size"),
    *idle(None, _INFERENCE, "export_device", "export_quantization_bit", "export_hub_model_id"),
    *idle(None, _INFERENCE, "export_quantization_dataset", "export_quantization_nsamples"),
    *idle(None, _INFERENCE, "export_quantization_maxlen", "export_legacy_format"),
    *idle(None, "of what asks for it", "kt_cpu_activation", "kt_weight_path"),
    *idle(None, "of what asks for it", "kt_non_expert_weight_path", "kt_expert_checkpoint_path"),
    *idle(None, "of what asks for it", "kt_use_lora_experts", "kt_lora_expert_num"),
    *idle(None, "of what asks for it", "kt_lora_expert_intermediate_size"),
    *idle(None, _MEDIA, "image_max_pixels", "image_min_pixels", "image_do_pan_and_scan"),
    *idle(None, _MEDIA, "crop_to_patches", "video_max_pixels", "video_min_pixels", "video_fps"),
    *idle(None, _MEDIA, "video_maxlen", "use_audio_in_video", "audio_sampling_rate"),
]
_RUN = [
    lacking("fp8", False, "set `bf16: true`"),
    lacking("predict_with_generate", False, "`lit_tidpo.callbacks.SampleGenerations`"),
    becomes("gradient_checkpointing", True, "model.policy.activation_checkpointing"),
    *idle(None, "of fp8", "fp8_backend", "fp8_enable_fsdp_float8_all_gather"),
    *idle(None, _LAUNCH, "ray_num_workers", "ray_init_kwargs", "master_addr", "master_port"),
    *idle(None, _PROFILER, "enable_torch_profiler", "profiler_output_dir", "profile_modules"),
    *idle(None, _PROFILER, "profiler_wait_steps", "profiler_warmup_steps"),
    *idle(None, _PROFILER, "profiler_active_steps", "profiler_repeat", "profiler_with_stack"),
    *idle(None, _PROFILER, "profiler_record_shapes", "profiler_profile_memory"),
    *idle(None, _INFERENCE, "do_sample", "temperature", "top_p", "top_k", "num_beams"),
    *idle(None, _INFERENCE, "max_length", "max_new_tokens", "repetition_penalty"),
    *idle(None, _INFERENCE, "length_penalty", "skip_special_tokens", "generation_max_length"),
    *idle(None, _INFERENCE, "generation_num_beams", "generation_config", "sortish_sampler"),
]
GROUPS: dict[str, list[Option]] = {
    "FinetuningArguments": _METHOD,
    "DataArguments": _DATA,
    "ModelArguments": _MODEL,
    "TrainingArguments of its own, and GeneratingArguments": _RUN,
}
OPTIONS = by_name(TRAINING.values(), *GROUPS.values())
