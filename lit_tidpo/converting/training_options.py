"""The options of transformers' ``TrainingArguments``, as TRL and LLaMA-Factory have them."""

from __future__ import annotations

from lit_tidpo.converting.options import becomes, by_name, idle, lacking, same

_SHOWN = "what is printed and logged, and where, is the Trainer's here"
_FAST = "speed or memory alone"
_GONE = "removed from transformers or deprecated, without effect there"
_METRICS = "metrics are those of this package, over whole validation splits"
_HUB = "nothing is uploaded: `lit-tidpo export`, then `hf upload`"
_LOADING = "loaders stay in order and keep their workers as torch does"
_DDP = "strategies find out what DDP needs; `trainer.strategy` takes one with other settings"
_MESH = "`--config configs/strategies/fsdp2_tensor_parallel.yaml --trainer.devices N`"
_RESUME = "give `--run NAME --resume`; checkpoints of transformers are not read: start from one as "
_RATIO = "a share of the run is taken of the steps, which need `max_steps`, or `--rows` here"
_BEST = "`--ckpt_path best` takes the checkpoint with the best one; nothing is loaded at the end"

TRAINING = by_name(
    [
        becomes("output_dir", "trainer_output", "trainer.default_root_dir"),
        same("per_device_train_batch_size", 8, "data.batch_size"),
        same("per_device_eval_batch_size", 8, "data.eval_batch_size"),
        becomes("num_train_epochs", 3.0, "trainer.max_epochs", why=f"a fraction: {_RATIO}"),
        becomes("max_steps", -1, "trainer.max_steps", why="above 0, epochs do not count"),
        becomes("learning_rate", 5e-5, "model.optimizer.init_args.lr"),
        becomes("lr_scheduler_type", "linear", "model.lr_schedule"),
        lacking("lr_scheduler_kwargs", None, "`linear` and `cosine` end at 0, after one fall"),
        becomes("warmup_steps", 0.0, "model.warmup_steps", why=f"less than 1: {_RATIO}"),
        becomes("warmup_ratio", 0.0, "model.warmup_steps", why=_RATIO),
        becomes("optim", "adamw_torch_fused", "model.optimizer"),
        lacking("optim_args", None, "write them under `model.optimizer.init_args`"),
        lacking("optim_target_modules", None, "GaLore and APOLLO: take `model.policy.lora`"),
        becomes(
            "weight_decay",
            0.0,
            "model.optimizer.init_args.weight_decay",
            "it decays biases and norms, too, which transformers leaves out",
        ),
        becomes("adam_beta1", 0.9, "model.optimizer.init_args.betas"),
        becomes("adam_beta2", 0.999, "model.optimizer.init_args.betas"),
        becomes("adam_epsilon", 1e-8, "model.optimizer.init_args.eps"),
        same("gradient_accumulation_steps", 1, "trainer.accumulate_grad_batches"),
        becomes("max_grad_norm", 1.0, "trainer.gradient_clip_val", why="0 clips nothing"),
        lacking("label_smoothing_factor", 0.0, "leave it out: preference losses do not read it"),
        becomes("bf16", None, "trainer.precision", kind=bool),
        becomes("fp16", False, "trainer.precision"),
        becomes("logging_steps", 500.0, "trainer.log_every_n_steps", why=f"below 1: {_RATIO}"),
        becomes("logging_strategy", "steps", "trainer.log_every_n_steps"),
        becomes("report_to", "none", "trainer.logger", kind=list),
        becomes("run_name", None, "trainer.logger", why="the name in W&B and MLflow", kind=str),
        becomes("project", "huggingface", "trainer.logger", why="of W&B"),
        becomes("eval_strategy", "no", "trainer.limit_val_batches"),
        becomes("eval_steps", None, "trainer.val_check_interval", kind=float, why=_RATIO),
        becomes("eval_on_start", False, "trainer.num_sanity_val_steps"),
        lacking("eval_delay", 0.0, "validation begins at once: leave it out"),
        becomes("save_strategy", "steps", "trainer.callbacks: ModelCheckpoint"),
        becomes(
            "save_steps", 500.0, "trainer.callbacks: ModelCheckpoint", why=f"below 1: {_RATIO}"
        ),
        becomes("save_total_limit", None, "trainer.callbacks: ModelCheckpoint", kind=int),
        becomes("save_only_model", False, "trainer.callbacks: ModelCheckpoint"),
        becomes("load_best_model_at_end", False, "trainer.callbacks: ModelCheckpoint", _BEST),
        becomes("metric_for_best_model", None, "trainer.callbacks: ModelCheckpoint", kind=str),
        becomes("greater_is_better", None, "trainer.callbacks: ModelCheckpoint", kind=bool),
        becomes("seed", 42, "model.seed", "it draws other numbers here: other orders and dropout"),
        becomes("data_seed", None, "data.seed", "another order than theirs", kind=int),
        lacking("full_determinism", False, "set `trainer.deterministic: true`"),
        becomes("use_cpu", False, "trainer.accelerator"),
        becomes("no_cuda", False, "trainer.accelerator"),
        same("dataloader_drop_last", False, "data.drop_last"),
        same("dataloader_num_workers", 0, "data.num_workers"),
        becomes("train_sampling_strategy", "random", "data.group_by_length"),
        becomes("group_by_length", False, "data.group_by_length"),
        becomes("gradient_checkpointing", False, "model.policy.activation_checkpointing"),
        lacking("activation_checkpointing", None, "FSDP's: set `gradient_checkpointing`"),
        becomes("torch_compile", False, "model.policy.compile_layers"),
        lacking("use_liger_kernel", False, "`model.logits_at_once` bounds the logits' memory"),
        lacking("liger_kernel_config", None, "`model.logits_at_once` bounds the logits' memory"),
        lacking("neftune_noise_alpha", None, "noise on embeddings: leave it out", kind=float),
        lacking("auto_find_batch_size", False, "`lit-tidpo estimate --memory GB` finds it"),
        lacking("tf32", None, "set `torch.set_float32_matmul_precision` in a plugin"),
        lacking("bf16_full_eval", False, "validation has the precision of training"),
        lacking("fp16_full_eval", False, "validation has the precision of training"),
        lacking("accelerator_config", None, "shuffling and splitting are the data's here"),
        lacking("parallelism_config", None, _MESH),
        becomes("fsdp", None, "trainer.strategy", why="FSDP2"),
        becomes(
            "fsdp_config",
            None,
            "model.policy.activation_checkpointing",
            "layers are those that transformers keeps whole",
        ),
        becomes("deepspeed", None, "trainer.strategy", why="by the stage in its file"),
        lacking("resume_from_checkpoint", None, f"{_RESUME}`model.policy.path`"),
        lacking("push_to_hub", False, _HUB),
        lacking("debug", "", "`lit-tidpo --debug` shows where errors come from"),
        lacking("include_for_metrics", [], _METRICS),
        lacking("batch_eval_metrics", False, _METRICS),
        lacking("eval_accumulation_steps", None, _METRICS, kind=int),
    ],
    idle(None, _FAST, "activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"),
    idle(None, _FAST, "torch_empty_cache_steps", "torch_compile_backend", "torch_compile_mode"),
    idle(None, _SHOWN, "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
    idle(None, _SHOWN, "disable_tqdm", "logging_dir", "include_tokens_per_second"),
    idle(False, _SHOWN, "logging_first_step", "log_on_each_node", "logging_nan_inf_filter"),
    idle("no", _SHOWN, "include_num_input_tokens_seen", "log_level", "log_level_replica"),
    idle(True, "only means over all tokens of processes read it", "average_tokens_across_devices"),
    idle(False, "training caches nothing", "use_cache"),
    idle(
        False, _METRICS, "prediction_loss_only", "eval_do_concat_batches", "eval_use_gather_object"
    ),
    idle(None, "one process writes a checkpoint", "save_on_each_node", "save_safetensors"),
    idle(False, "SIGTERM leaves a checkpoint anyway", "enable_jit_checkpoint"),
    idle(None, _HUB, "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy"),
    idle(None, _HUB, "hub_always_push", "hub_revision"),
    idle(False, "runs go on with the next row", "ignore_data_skip"),
    idle(False, "runs restore their callbacks", "restore_callback_states_from_checkpoint"),
    idle(None, _LOADING, "dataloader_pin_memory", "dataloader_persistent_workers"),
    idle(None, _LOADING, "dataloader_prefetch_factor", "dataloader_multiprocessing_context"),
    idle(True, _LOADING, "dataloader_in_order"),
    idle(None, "columns are found by name", "remove_unused_columns", "label_names"),
    idle("length", "lengths are those of the tokens", "length_column_name"),
    idle(None, _DDP, "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers"),
    idle(None, _DDP, "ddp_static_graph", "ddp_backend", "ddp_timeout", "local_rank"),
    idle(True, "`trainer.profiler` measures", "skip_memory_metrics"),
    idle(True, "`fit` trains, `validate` and `predict` do the rest", "do_train"),
    idle(False, "`fit` trains, `validate` and `predict` do the rest", "do_eval", "do_predict"),
    idle(False, _GONE, "overwrite_output_dir", "use_legacy_prediction_loop", "past_index"),
)
