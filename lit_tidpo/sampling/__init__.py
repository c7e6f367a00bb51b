"""Responses sampled from the policy during training."""
