"""The options of the policy and of further models: which they are, and how they are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lit_tidpo.errors import InputError, check_choice
from lit_tidpo.models.quantization import Quantization


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
LigerKernel = Literal["rms_norm", "rope"]
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
        liger: Compute these by kernels of Liger, on GPUs: ``rms_norm``, ``rope``; proven on a few
            tokens before the first pass.
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
    liger: list[LigerKernel] | None = None
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
        if self.liger is not None:
            self._check_liger(self.liger)
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

    def _check_liger(self, kernels: list[LigerKernel]) -> None:
        if not kernels or len(set(kernels)) < len(kernels):
            raise InputError(f"policy.liger={kernels}: expected one kernel or more, each once")
        for kernel in kernels:
            check_choice("policy.liger", kernel, LigerKernel)
        if self.compile_layers:
            raise InputError(
                "policy.liger does not go with policy.compile_layers, which fuses norms and "
                "positions by itself: set one"
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
