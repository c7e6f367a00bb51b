"""The policy: which model it is, and how it is loaded."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lit_tidpo.errors import InputError, check_choice, explained
from lit_tidpo.locations import check_revision, gguf_option, locate
from lit_tidpo.models.adapted_layers import not_to_adapt
from lit_tidpo.models.experts import silence_router
from lit_tidpo.models.offload import offload_activations
from lit_tidpo.models.proofs import check_causal
from lit_tidpo.models.quantization import (
    Quantization,
    keep_differentiable,
    quantization_settings,
)
from lit_tidpo.models.quirks import (
    add_rows,
    attention_kernel,
    check_untied,
    checkpoint_activations,
    compile_layers,
    disable_dropout,
    is_causal_type,
    keep_weights,
    token_layers,
)
from lit_tidpo.models.tokenizer import load_tokenizer
from lit_tidpo.seeding import seeded

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class LoraOptions:
    """Low-rank adapters through peft (arXiv 2106.09685); the reference is then the base model.

    Attributes:
        r: Rank.
        alpha: Scale of the update is ``alpha / r``.
        dropout: Dropout on the adapters' input; has an effect with ``disable_dropout: false`` only.
        target_modules: Names of the layers to adapt; None adapts all linear layers but the head.
        use_rslora: Scale the update by ``alpha / sqrt(r)`` instead (rsLoRA, arXiv 2312.03732).
        use_dora: Learn magnitude and direction of the weights apart (DoRA, arXiv 2402.09353).
        modules_to_save: Names of modules that are trained as a whole beside the adapters.
        rank_pattern: Ranks of layers that have another one, by (a regular expression of) their
            name.
        alpha_pattern: The same for ``alpha``.
    """

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: list[str] | None = None
    use_rslora: bool = False
    use_dora: bool = False
    modules_to_save: list[str] | None = None
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, int] = field(default_factory=dict)


def lora_options(given: Mapping[str, Any] | None) -> LoraOptions | None:
    """Options of adapters from the plain values that a checkpoint or a parser has."""
    return None if given is None else LoraOptions(**given)


Init = Literal["pretrained", "random"]
DType = Literal["float32", "bfloat16", "float16", "auto"]


@dataclass(frozen=True)
class PolicyConfig:
    """Which model is trained and how it is loaded.

    Attributes:
        path: A name on the Hub, a local folder, or ``builtin:NAME``.
        revision: Branch, tag or commit on the Hub.
        gguf_file: Name of the GGUF file there that holds model and tokenizer; its weights are
            dequantised, and what is trained and exported is a model like any other.
        init: ``pretrained`` loads the weights; ``random`` makes new ones from the folder's
            ``config.json``.
        init_seed: Seed of new weights: random ones, and those of new adapters.
        dtype: Type of the parameters; ``auto`` takes the one that they are stored in.
        quantization: Weights under adapters: ``nf4`` of 4 bits, by bitsandbytes, or ``int8``, by
            torchao. A reference of its own is not quantised.
        added_tokens: Texts that become tokens of their own. Their rows of the embeddings start as
            the mean of the others and are trained, beside adapters, too; the reference keeps them
            as they start.
        attn_implementation: Attention kernel; ``auto`` takes ``sdpa``, or ``eager`` where the model
            has no other, with a word. The attention estimator needs ``eager``.
        lora: Train adapters instead of all parameters.
        adapter: Folder of a trained peft adapter to go on with; the reference is a frozen copy of
            it.
        activation_checkpointing: Recompute activations in the backward pass to save memory.
        compile_layers: Compile the decoder's layers with ``torch.compile``, without the attention
            kernel; worthwhile on GPUs, from some hundred steps on.
        disable_dropout: Set every dropout probability of the model to 0, as other trainers do.
        trust_remote_code: Let the Hub repository run its own modelling code.
        activation_offload: Keep activations in the memory of the CPU between forward and backward
            pass. It saves a GPU's; on a CPU they are copied for nothing.
        stochastic_rounding: Let the optimizer compute its steps in fp32, and round them to bfloat16
            weights up or down at random, so that small steps count on average.
        save_frozen: Whether checkpoints hold weights that are not trained, too. Without, they hold
            adapters alone, and the rest comes from ``path`` again.
    """

    path: str = ""
    revision: str | None = None
    gguf_file: str | None = None
    init: Init = "pretrained"
    init_seed: int = 0
    dtype: DType = "float32"
    quantization: Quantization | None = None
    added_tokens: list[str] | None = None
    attn_implementation: str = "auto"
    lora: LoraOptions | None = None
    adapter: str | None = None
    activation_checkpointing: bool = False
    compile_layers: bool = False
    disable_dropout: bool = True
    trust_remote_code: bool = False
    activation_offload: bool = False
    stochastic_rounding: bool = False
    save_frozen: bool = True

    def __post_init__(self) -> None:
        check_choice("policy.init", self.init, Init)
        check_choice("policy.dtype", self.dtype, DType)
        if self.quantization is not None:
            self._check_quantization()
        if not 0 <= self.init_seed < 2**63:
            raise InputError(f"policy.init_seed={self.init_seed}: expected 0 or more")
        if self.init_seed and self.init == "pretrained" and self.lora is None:
            raise InputError(
                f"policy.init_seed={self.init_seed} has no effect with policy.init='pretrained': "
                "leave it out, set policy.init=random, or train new adapters with policy.lora"
            )
        if self.disable_dropout and self.lora is not None and self.lora.dropout > 0:
            raise InputError(
                f"policy.lora.dropout={self.lora.dropout} has no effect with "
                "policy.disable_dropout=true: set one of them"
            )
        if self.activation_offload and self.compile_layers:
            raise InputError(
                "policy.activation_offload does not go with policy.compile_layers, which keeps "
                "activations by itself: set one"
            )
        if self.stochastic_rounding and self.dtype not in ("bfloat16", "auto"):
            raise InputError(
                f"policy.stochastic_rounding has no effect with policy.dtype={self.dtype!r}: set "
                "policy.dtype=bfloat16, or leave it out"
            )
        if not self.save_frozen and self.lora is None and self.adapter is None:
            raise InputError(
                "policy.save_frozen=false has no effect without adapters, as all weights are "
                "trained: leave it out, or set policy.lora"
            )
        if self.lora is not None and self.adapter is not None:
            raise InputError(
                "policy.lora starts a new adapter and policy.adapter goes on with one: set one"
            )

    def _check_quantization(self) -> None:
        check_choice("policy.quantization", self.quantization, Quantization)
        given = f"policy.quantization={self.quantization!r}"
        if self.lora is None and self.adapter is None:
            raise InputError(
                f"{given} makes weights that cannot be trained: set policy.lora, or leave it out"
            )
        if self.save_frozen:
            raise InputError(
                f"{given} makes weights that checkpoints do not hold: set "
                "policy.save_frozen=false, so that they are made of policy.path again"
            )
        if self.init == "random" or self.gguf_file is not None:
            raise InputError(
                f"{given} quantises weights while they are read from policy.path: leave "
                "policy.init and policy.gguf_file out"
            )


@dataclass(frozen=True)
class ModelOptions:
    """A further model of a run, which estimators and losses can ask by its name.

    Attributes:
        path: A name on the Hub, a local folder, or ``builtin:NAME``; None takes the policy's: as it
            starts where there is an adapter, as it is at each step where there is none.
        revision: Branch, tag or commit on the Hub.
        adapter: Folder of a trained peft adapter on top.
        prompt: Text that is put before every prompt.
    """

    path: str | None = None
    revision: str | None = None
    adapter: str | None = None
    prompt: str | None = None

    def __post_init__(self) -> None:
        if self.path is None and self.adapter is None and not self.prompt:
            raise InputError(
                "a further model needs a path, an adapter or a prompt, which tell it from the "
                "policy: set one under model.models.NAME"
            )
        if self.revision is not None and self.path is None:
            raise InputError(f"revision={self.revision!r} has no effect without a path: set both")


_reads_weights = ContextVar("reads_weights", default=True)


@contextmanager
def without_weights() -> Iterator[None]:
    """Make models of their configs alone meanwhile: no weights are read."""
    token = _reads_weights.set(False)
    try:
        yield
    finally:
        _reads_weights.reset(token)


def policy_tokenizer(config: PolicyConfig) -> PreTrainedTokenizerBase:
    """The tokenizer that lies with a policy, with the tokens that are added.

    Args:
        config: Which policy.

    Raises:
        InputError: If there is none.
    """
    return load_tokenizer(
        config.path,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
        gguf_file=config.gguf_file,
        added_tokens=config.added_tokens,
    )


def build_policy(config: PolicyConfig) -> PreTrainedModel:
    """Load the model to be trained.

    Args:
        config: Which model, and how.

    Returns:
        The model in train mode.

    Raises:
        InputError: If the path, the adapter or the weights cannot be used.
    """
    model: Any = _load(config)
    if config.lora is not None:
        model = _with_lora(model, config.lora, config)
    if config.adapter is not None:
        model = _with_adapter(model, config.adapter)
    policy: PreTrainedModel = model.train()
    if config.disable_dropout:
        disable_dropout(policy)
    if config.activation_checkpointing:
        checkpoint_activations(policy)
    if config.compile_layers:
        compile_layers(policy)
    if config.activation_offload:
        offload_activations(policy)
    return policy


def _load(config: PolicyConfig) -> Any:
    model: Any
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    if not config.path:
        raise InputError("policy.path is not set: name a model, or attach() one in Python")
    path = locate(config.path)
    options: dict[str, Any] = {
        "revision": config.revision,
        "trust_remote_code": config.trust_remote_code,
        **gguf_option(config.gguf_file),
    }
    check_revision("policy.revision", config.revision, config.path)
    loading: dict[str, Any] = {"dtype": config.dtype}
    with_kernel = ""
    if config.attn_implementation != "auto":
        loading["attn_implementation"] = config.attn_implementation
        with_kernel = f" with policy.attn_implementation={config.attn_implementation}"
    with explained(f"policy.path={config.path!r} cannot be loaded{with_kernel}"):
        architecture = AutoConfig.from_pretrained(path, **options)
        if getattr(architecture, "is_encoder_decoder", False):
            raise InputError(
                f"policy.path={config.path!r} is an encoder-decoder ({architecture.model_type}): "
                "expected a causal language model"
            )
        if not is_causal_type(architecture):
            raise InputError(
                f"policy.path={config.path!r} is a {architecture.model_type}, of which there is no "
                "causal language model: expected a model of text alone; of one that sees or hears, "
                "name a folder that holds its language model"
            )
        if config.quantization is not None:
            if not _reads_weights.get():
                raise InputError(
                    f"policy.quantization={config.quantization!r} is made while weights are read, "
                    "which nothing is here: leave it out"
                )
            loading["dtype"] = _dtype(config, architecture)
            loading["quantization_config"] = quantization_settings(
                config.quantization, loading["dtype"]
            )
        if config.init == "pretrained" and _reads_weights.get():
            if config.gguf_file is not None:
                from transformers import GgufConfig

                loading["quantization_config"] = GgufConfig(dequantize=True)
            load: Any = AutoModelForCausalLM.from_pretrained
            model, found = load(path, output_loading_info=True, **loading, **options)
            _check_weights(config.path, found)
        else:
            loading["dtype"] = _dtype(config, architecture)
            with seeded(config.init_seed):
                model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                    architecture, trust_remote_code=config.trust_remote_code, **loading
                )
            with suppress(OSError):  # not every model comes with generation settings
                model.generation_config = GenerationConfig.from_pretrained(
                    path, revision=config.revision or "main"
                )
        if config.added_tokens is not None:
            with seeded(config.init_seed):
                add_rows(model, _tokenizer(config))
        silence_router(model)
        keep_weights(model)
        keep_differentiable(model)
        check_causal(model)
    if config.attn_implementation == "auto" and attention_kernel(model) == "eager":
        rank_zero_info(f"{type(model).__name__} runs eager attention: it has no other")
    return model


def _dtype(config: PolicyConfig, architecture: Any) -> torch.dtype:
    """Type of the parameters, by itself."""
    if config.dtype == "auto":
        return architecture.dtype or torch.float32
    dtype: torch.dtype = getattr(torch, config.dtype)
    return dtype


def _check_weights(path: str, found: dict[str, Any]) -> None:
    """Refuse weights that are not those of the model; transformers would draw them at random."""
    for problem in ("missing_keys", "mismatched_keys"):
        names = sorted(map(str, found.get(problem) or ()))
        if names:
            raise InputError(
                f"policy.path={path!r}: {len(names)} tensors of the model are "
                f"{problem.removesuffix('_keys')} in its files, such as {names[0]}: use a complete "
                "causal language model, or policy.init=random"
            )
    surplus = sorted(found.get("unexpected_keys") or ())
    if surplus:
        rank_zero_warn(
            f"policy.path={path!r}: {len(surplus)} tensors of its files are no part of the model "
            f"and are left out, such as {surplus[0]}"
        )


def _tokenizer(config: PolicyConfig) -> Any:
    """The tokenizer of the path, with the added tokens."""
    return load_tokenizer(
        config.path,
        None,
        config.revision,
        config.trust_remote_code,
        config.gguf_file,
        config.added_tokens,
    )


def _with_lora(model: PreTrainedModel, lora: LoraOptions, config: PolicyConfig) -> PreTrainedModel:
    peft = _import_peft()
    adapters = peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules or "all-linear",
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        modules_to_save=lora.modules_to_save,
        rank_pattern=lora.rank_pattern,
        alpha_pattern=lora.alpha_pattern,
        task_type="CAUSAL_LM",
    )
    if config.added_tokens is not None:
        ids = _tokenizer(config).convert_tokens_to_ids(config.added_tokens)
        adapters.trainable_token_indices = dict.fromkeys(token_layers(model), ids)
    if lora.target_modules is None:
        adapters.exclude_modules = not_to_adapt(model) or None
        if adapters.exclude_modules:
            rank_zero_info(
                f"Adapters leave out {len(adapters.exclude_modules)} linear layers, whose weights "
                f"the model uses in other ways, such as {adapters.exclude_modules[0]}"
            )
    # All ranks start alike, whatever else they drew.
    with explained("policy.lora cannot be applied"), seeded(config.init_seed):
        adapted: PreTrainedModel = peft.get_peft_model(model, adapters)
        check_untied(adapted)
        check_causal(adapted)
    return adapted


def _with_adapter(model: PreTrainedModel, adapter: str) -> PreTrainedModel:
    peft, folder = _import_peft(), locate(adapter)
    if Path(folder).is_dir() and not (Path(folder) / "adapter_config.json").is_file():
        raise InputError(
            f"policy.adapter={adapter!r} holds no adapter_config.json: name an adapter's folder"
        )
    with explained(f"policy.adapter={adapter!r} cannot be loaded"), warnings.catch_warnings():
        # Fresh ones would take the place of what the folder lacks.
        warnings.filterwarnings("error", "Found missing adapter keys")
        try:
            adapted: PreTrainedModel = peft.PeftModel.from_pretrained(
                model, folder, is_trainable=True
            )
        except UserWarning as error:
            text = " ".join(str(error).split())[:200]
            raise InputError(f"policy.adapter={adapter!r} lacks tensors: {text}") from error
    check_untied(adapted)
    return adapted


def _import_peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise InputError("adapters need peft: pip install 'lit-tidpo[lora]'") from error
    return peft
