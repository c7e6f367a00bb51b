"""Sampling by an engine of vLLM in this process, on the policy's own device."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from lit_tidpo.errors import InputError
from lit_tidpo.sampling.base import OnAnyRank, Sampler, context_lengths, sampled_batch
from lit_tidpo.structures import ResponseBatch


class VLLMSampler(Sampler):
    """Anchors from vLLM, which is handed the policy's weights before it samples.

    The engine has a copy of the model and its cache of keys and values beside the training, in one
    process on one device.

    Args:
        path: Model that the engine is built from: ``policy.path``, as a Hub name or a folder.
        sync_steps: Optimizer steps for which the engine samples with the weights it was handed; 1
            hands them over at each step.
        max_length: Tokens of prompt and response that the engine makes room for.
        memory: Share of the device's memory that the engine takes, 0 to 1.
        dtype: What the engine computes in.
    """

    def __init__(
        self,
        path: str,
        sync_steps: int = 1,
        max_length: int = 4096,
        memory: float = 0.3,
        dtype: str = "bfloat16",
    ) -> None:
        if sync_steps < 1:
            raise InputError(f"sync_steps={sync_steps}: expected 1 or more")
        if max_length < 2:
            raise InputError(f"max_length={max_length}: expected 2 or more")
        if not 0 < memory < 1:
            raise InputError(f"memory={memory}: expected more than 0 and less than 1")
        self.path = path
        self.sync_steps = sync_steps
        self.max_length = max_length
        self.memory = memory
        self.dtype = dtype
        self._handed_over: int | None = None

    def sample(
        self,
        policy: Any,
        batch: ResponseBatch,
        count: int = 1,
        step: int = 0,
        on_any_rank: OnAnyRank | None = None,
    ) -> ResponseBatch:
        """Sample responses; see :meth:`lit_tidpo.sampling.base.Sampler.sample`.

        Raises:
            InputError: If vLLM is not there, a row is too long for it, or the run has several
                processes.
        """
        self._check(on_any_rank)
        first = batch.role(batch.roles[0])
        host, contexts = first.host, context_lengths(first.host, self.options).tolist()
        longest = max(contexts) + self.options.max_new_tokens
        if longest > self.max_length:
            raise InputError(
                f"an anchor may have {longest} tokens with its prompt, but the sampler has "
                f"max_length={self.max_length}: raise it, or lower anchor.max_new_tokens"
            )
        self._hand_over(policy, step)
        given = [
            ids[:length].tolist() for ids, length in zip(host.input_ids, contexts, strict=True)
        ]
        outputs = self._engine.generate(
            [{"prompt_token_ids": ids} for ids in given],
            self._parameters(len(given), count, self.ends(policy)),
            use_tqdm=False,
        )
        rows = [
            torch.tensor([*ids, *output.outputs[place].token_ids])
            for place in range(count)
            for ids, output in zip(given, outputs, strict=True)
        ]
        known = dataclasses.replace(
            host,
            input_ids=pad_sequence(rows, batch_first=True),
            prompt_lengths=host.prompt_lengths.repeat(count),
            lengths=torch.tensor([len(row) for row in rows]),
        )
        return sampled_batch(first, known, count)

    def _check(self, on_any_rank: OnAnyRank | None) -> None:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if on_any_rank is not None or (distributed and torch.distributed.get_world_size() > 1):
            raise InputError("sampling by vLLM takes one process: set trainer.devices=1")
        if self.options.compiled:
            raise InputError("anchor.compiled has no effect on vLLM: leave it out")

    def _parameters(self, prompts: int, count: int, ends: list[int]) -> list[Any]:
        """How each prompt is responded to; seeds come from torch's generator."""
        from vllm import SamplingParams

        options = self.options
        return [
            SamplingParams(
                n=count,
                temperature=options.temperature,
                top_k=options.top_k or -1,
                top_p=options.top_p,
                max_tokens=options.max_new_tokens,
                stop_token_ids=ends,
                ignore_eos=True,  # those of the policy's settings are among the ends
                detokenize=False,
                seed=seed,
            )
            for seed in torch.randint(2**31, (prompts,)).tolist()
        ]

    @functools.cached_property
    def _engine(self) -> Any:
        # In this process, so that weights are handed over without being copied to another.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        try:
            from vllm import LLM
        except ImportError as error:
            raise InputError(
                "the sampler needs vLLM: pip install 'lit-tidpo-vllm[engine]'"
            ) from error
        with torch.inference_mode(False), torch.random.fork_rng():
            return LLM(
                model=self.path,
                skip_tokenizer_init=True,
                dtype=self.dtype,
                max_model_len=self.max_length,
                gpu_memory_utilization=self.memory,
            )

    def _hand_over(self, policy: Any, step: int) -> None:
        """Give the engine the policy's weights, if those it has are too old."""
        last = self._handed_over
        if last is not None and 0 <= step - last < self.sync_steps:
            return
        self._engine.apply_model(functools.partial(_load, policy=policy))
        self._engine.reset_prefix_cache()  # of the old weights
        self._handed_over = step


def _load(model: Any, policy: Any) -> None:
    """Load the policy's weights into the engine's model."""
    model.load_weights(merged_weights(policy))


@torch.no_grad()
def merged_weights(policy: Any) -> Iterator[tuple[str, Tensor]]:
    """Weights by their names in the model without adapters, which are added to what they adapt.

    The policy stays as it is: merging adapters and taking them out again would round its weights.

    Args:
        policy: A model of transformers, or peft's wrapper of one with LoRA.

    Yields:
        Name and weight.
    """
    inner: nn.Module = policy.get_base_model() if hasattr(policy, "get_base_model") else policy
    adapted = {
        name: module for name, module in inner.named_modules() if hasattr(module, "base_layer")
    }
    for name, value in inner.state_dict().items():
        layer = next((each for each in adapted if name.startswith(f"{each}.")), None)
        if layer is None:
            yield name, value
        elif name.startswith(f"{layer}.base_layer."):
            if name == f"{layer}.base_layer.weight":
                module: Any = adapted[layer]
                for adapter in module.active_adapters:
                    value = value + module.get_delta_weight(adapter).to(value.dtype)
            yield name.replace(".base_layer.", "."), value
