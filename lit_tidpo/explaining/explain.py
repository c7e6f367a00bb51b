"""Explaining pairs: several estimators and what models say of each token, from one pass."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lit_tidpo.data.collation import PairCollator
from lit_tidpo.data.tokenization import PairTokenizer, TokenizationOptions
from lit_tidpo.errors import InputError
from lit_tidpo.explaining.page import rendered
from lit_tidpo.explaining.pairs import ExplainedPair, explained_pairs
from lit_tidpo.explaining.subjects import Subject, subject_of
from lit_tidpo.functional.importance import scale_weights
from lit_tidpo.importance.base import ImportanceEstimator, check_estimator, checked_scores
from lit_tidpo.models.needs import find, models_of
from lit_tidpo.models.quirks.modes import evaluating
from lit_tidpo.models.reference import check_compatible
from lit_tidpo.plugins.registry import IMPORTANCE, load
from lit_tidpo.sampling.anchor_options import AnchorOptions
from lit_tidpo.sampling.generation import Generation
from lit_tidpo.schedules import at
from lit_tidpo.seeding import seeded
from lit_tidpo.structures import ResponseBatch

Text = str | list[dict[str, Any]]
Estimators = Mapping[str, ImportanceEstimator] | Sequence[str]

_LONGEST = 2**20
"""Tokens of a typed pair at the most; models refuse what is too long for them."""
_DEFAULT = ("hybrid", "difference", "entropy")


@dataclass
class Explanation:
    """Explained pairs; a notebook shows them as a page.

    Attributes:
        pairs: The pairs.
        title: Heading of the page.
    """

    pairs: list[ExplainedPair]
    title: str

    def html(self) -> str:
        """The page."""
        roles = dict.fromkeys(each.role for pair in self.pairs for each in pair.responses)
        return rendered("explanation", title=self.title, pairs=self.pairs, roles=["prompt", *roles])

    def save(self, path: str | Path) -> Path:
        """Write the page.

        Args:
            path: A file, which is overwritten.

        Returns:
            The file.
        """
        file = Path(path).expanduser()
        file.write_text(self.html(), encoding="utf-8")
        return file

    def _repr_html_(self) -> str:
        """The page in a frame of its own, which reaches nothing of the notebook."""
        page = html.escape(self.html())
        return (
            f'<iframe sandbox="allow-scripts" srcdoc="{page}" title="explanation" '
            'style="width:100%;height:40rem;border:0"></iframe>'
        )


def explain(
    policy: str | Path | nn.Module,
    prompt: Text,
    chosen: Text,
    rejected: Text,
    *,
    importance: Estimators | None = None,
    reference: str | nn.Module | None = None,
    tokenizer: Any = None,
    anchor_tokens: int = 0,
    seed: int = 0,
) -> Explanation:
    """Show how importance is shared out among the tokens of two responses.

    Args:
        policy: A checkpoint of ``fit``, a model's folder, a name on the Hub, ``builtin:NAME``, or a
            causal language model of transformers.
        prompt: Text, or chat messages as ``role`` and ``content``.
        chosen: Text that goes on from the prompt, or messages.
        rejected: The same.
        importance: Estimators by a name of your choice, or names of plugins; by default that of
            the checkpoint, or ``hybrid``, and beside it ``difference`` and ``entropy``.
        reference: Model of the log-ratios: a folder or name, or a model; by default what a
            checkpoint was trained against, and none of other policies.
        tokenizer: The tokenizer of a ``policy`` that is a model, which has to be given.
        anchor_tokens: Tokens of a response that the policy samples to the prompt; 0 samples none.
        seed: Seed of that.

    Returns:
        What a notebook shows, or ``save`` writes.

    Raises:
        InputError: If the policy cannot be used, or is not what an estimator asks for.

    Example:
        >>> found = explain("builtin:policy", "x = [1", ", 2]", ", 2)", importance=["difference"])
        >>> [token for token, new in zip(found.pairs[0].responses[1].tokens,
        ...     found.pairs[0].responses[1].edited) if new]
        [')']
    """
    explainer = Explainer(subject_of(policy, reference, tokenizer), importance)
    batch = explainer.batch(prompt, chosen, rejected)
    return Explanation(explainer.explain([batch], anchor_tokens, seed), "Token importance")


class Explainer:
    """Runs the models once for all that estimators and page need together.

    Args:
        subject: What is explained.
        importance: See :func:`explain`.

    Raises:
        InputError: If an estimator asks for what there is not.
    """

    def __init__(self, subject: Subject, importance: Estimators | None = None) -> None:
        self.tokenizer = subject.tokenizer
        self.estimators = _estimators(subject, importance)
        asked = [each.needs for each in self.estimators.values()]
        self.module = module = subject.module
        others = module.models.others
        for name, estimator in self.estimators.items():
            check_estimator(estimator, others)
            missing = models_of(estimator.needs) - {"policy", *others}
            if missing:
                raise InputError(
                    f"importance {name!r} asks for the models {sorted(missing)}, which there are "
                    "none of: give a reference, or a checkpoint whose run had them"
                )
        compared = {"reference.logps", "reference.kl"} if "reference" in others else set[str]()
        self.needs = frozenset({"policy.entropy"} | compared).union(*asked)
        if any(find(need).eager for need in self.needs):
            subject.hand_out_attentions()
        check_compatible(module.models.policy, others, self.needs)

    def batch(self, prompt: Text, chosen: Text, rejected: Text) -> ResponseBatch:
        """A pair as a batch.

        Args:
            prompt: Text or messages.
            chosen: A response to it.
            rejected: Another one.

        Raises:
            InputError: If there is nothing to compare.
        """
        row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        options = TokenizationOptions(_LONGEST, _LONGEST // 2)
        tokenised = PairTokenizer(self.tokenizer, options)(row, 0)
        if tokenised["problem"]:
            raise InputError(f"nothing to explain: {tokenised['problem']}")
        return PairCollator()([tokenised])

    def explain(
        self, batches: Iterable[ResponseBatch], anchor_tokens: int = 0, seed: int = 0
    ) -> list[ExplainedPair]:
        """Explain batches.

        Args:
            batches: Rows of any roles.
            anchor_tokens: Tokens of a sampled response to each prompt at the most; 0 samples none.
            seed: Seed of that.
        """
        return [pair for batch in batches for pair in self._explain(batch, anchor_tokens, seed)]

    def _explain(self, batch: ResponseBatch, anchor_tokens: int, seed: int) -> list[ExplainedPair]:
        objective, models = self.module.objective, self.module.models
        batch = self.module.transfer_batch_to_device(
            batch, next(models.policy.parameters()).device, 0
        )
        asked = [batch]
        if anchor_tokens:
            sampler = Generation(AnchorOptions(max_new_tokens=anchor_tokens))
            sampler.prepare(models.policy)
            with seeded(seed, batch.input_ids.device):
                asked.append(sampler.sample(models.policy, batch))
        takes_gradients = any(find(need).attributed for need in self.needs)
        with evaluating(models.policy), torch.set_grad_enabled(takes_gradients):
            found = objective.ask(models, *((each, self.needs) for each in asked))
            weights = [
                {
                    name: scale_weights(
                        checked_scores(at(estimator, None), results), results.mask, objective.scale
                    ).detach()
                    for name, estimator in self.estimators.items()
                }
                for results in found
            ]
        return explained_pairs(zip(found, weights, strict=True), self.tokenizer)


def _estimators(subject: Subject, given: Estimators | None) -> dict[str, ImportanceEstimator]:
    """Estimators by name."""
    if isinstance(given, Mapping):
        return dict(given)
    found: dict[str, ImportanceEstimator] = {}
    if given is None and subject.data is not None:
        found["of the run"] = subject.module.objective.importance
    names = _DEFAULT[len(found) :] if given is None else given
    return found | {name: load(IMPORTANCE, name, ImportanceEstimator)() for name in names}
