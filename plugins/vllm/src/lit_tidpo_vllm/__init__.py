"""Anchors sampled by vLLM."""

from lit_tidpo_vllm.sampler import VLLMSampler

__all__ = ["VLLMSampler"]
