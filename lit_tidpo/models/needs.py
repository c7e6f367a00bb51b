"""Everything that an estimator or a loss can ask for: one entry a quantity, in one table.

A need is ``MODEL.FIELD``, such as ``policy.logps``, ``reference.kl`` or, of a further model of the
run, ``teacher.logps``; or the name of something that is of no model. What models compute, what a
component finds, the conformance checks, the columns of ``predict``, ``lit-tidpo plugins --needs``
and the table in CONTRIBUTING.md all come from here.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from lit_tidpo.errors import InputError

if TYPE_CHECKING:
    from lit_tidpo.models.model_pass import ModelPass


@dataclass(frozen=True)
class Need:
    """One quantity.

    Attributes:
        words: What it is.
        shape: Its shape for all rows of a batch; of one role, its rows of it.
        fill: Takes it from a model's pass; None where it is not a model's.
        by_token: Whether that gives a value for each response token, ``[M]`` or ``[M, H]``, to be
            put at its place among zeros.
        attributed: Whether a gradient for the input embeddings is taken, so that the model has a
            graph even if it is frozen.
        eager: Whether only eager attention has it.
        router: Whether only a mixture of experts has it.
        padded: Whether only padded rows have it.
        whole: Whether it spans the prompt, so that a model under another prompt has none.
        last: Whether the last token's logits are wanted besides those that predict the response.
        entropy: Whether the reduction of the logits must make the entropy.
        collision: Whether it must make the log of the collision probability.
        compared: Whether the model is compared with the policy, token by token.
        extra: What serving it costs beside a forward of the model and a gradient.
        given: What in the data gives it.
    """

    words: str
    shape: str
    fill: Callable[[ModelPass], Any] | None = None
    by_token: bool = False
    attributed: bool = False
    eager: bool = False
    router: bool = False
    padded: bool = False
    whole: bool = False
    last: bool = False
    entropy: bool = False
    collision: bool = False
    compared: bool = False
    extra: str = ""
    given: str = ""


OF_A_MODEL: Mapping[str, Need] = {
    "logps": Need(
        "log-probs of the response tokens in nats, zero elsewhere",
        "[N, T]",
        attrgetter("predicted.logps"),
        by_token=True,
    ),
    "entropy": Need(
        "entropy in nats of the distribution that predicts each response token, zero elsewhere",
        "[N, T]",
        attrgetter("predicted.entropy"),
        by_token=True,
        entropy=True,
    ),
    "log_collision": Need(
        "log of the probability that two draws from the distribution that predicts each response "
        "token agree, without a graph, zero elsewhere",
        "[N, T]",
        attrgetter("predicted.log_collision"),
        by_token=True,
        collision=True,
    ),
    "label_logits": Need(
        "logit of each response token, zero elsewhere",
        "[N, T]",
        attrgetter("predicted.label_logits"),
        by_token=True,
    ),
    "kl": Need(
        "KL(model || policy) in nats of the distributions that predict each response token, zero "
        "elsewhere",
        "[N, T]",
        attrgetter("divergence"),
        by_token=True,
        compared=True,
    ),
    "hidden": Need(
        "last hidden states, which the output layer turns into the logits that predict each "
        "response token, zero elsewhere",
        "[N, T, H]",
        attrgetter("hidden"),
        by_token=True,
    ),
    "final_logits": Need(
        "logits at the last token of each row",
        "[N, V]",
        attrgetter("final_logits"),
        last=True,
    ),
    "embeddings": Need(
        "input embeddings, inside the graph",
        "[N, T, H]",
        attrgetter("output.embeddings"),
        attributed=True,
        whole=True,
    ),
    "attentions": Need(
        "attention probabilities, under eager attention",
        "[N, heads, T, T] a layer",
        attrgetter("output.attentions"),
        eager=True,
        padded=True,
        whole=True,
        extra="eager attention",
    ),
    "router_loss": Need(
        "balancing loss of a mixture of experts over all tokens of the batch, times the "
        "router_aux_loss_coef of its configuration, the same for each row",
        "[N]",
        attrgetter("output.router_loss"),
        router=True,
        padded=True,
        whole=True,
        extra="padded rows",
    ),
    "attend": Need(
        "a function of rows: in eval mode and without a graph, the attention that the last token "
        "of each row pays, a layer `[N, heads, T]`",
        "a function",
        attrgetter("attend"),
        eager=True,
        extra="forwards over other rows under eager attention",
    ),
    "scaled": Need(
        "a function of a factor, one for all tokens or for each: the model run once more, in eval "
        "mode, with the embeddings of the response times the factor, and what was asked of it",
        "a function",
        attrgetter("scaled"),
        attributed=True,
        whole=True,
        extra="a forward and a backward a step",
    ),
}
"""What can be asked of each model."""

OF_NO_MODEL: Mapping[str, Need] = {
    "weights": Need(
        "importance weights, zero off the response, and as 'scores' the scores that they were made "
        "of (losses only)",
        "[N, T]",
        by_token=True,
    ),
    "anchor": Need(
        "responses sampled from the policy, as the role 'anchor' (losses only): their log-probs "
        "under the policy and, where asked for, the reference",
        "rows of their own",
    ),
    "rewards": Need(
        "a number for each response from the data",
        "[N]",
        given="the columns score_chosen and score_rejected of pairs",
    ),
    "labels": Need(
        "whether each response is desirable, from the data; of pairs the chosen ones are",
        "[N]",
        given="the column label of single responses",
    ),
    "mismatched": Need(
        "each prompt with the response to another one, as context.mismatched (losses only): their "
        "log-probs under the policy and, where asked for, the reference, without a graph",
        "rows of their own",
    ),
    "behaviour_logps": Need(
        "log-probs of the response tokens under the model that wrote them, from the data",
        "[N, T]",
        by_token=True,
        given="behaviour_logps of each response that a GroupCollator gets",
    ),
}
"""What else can be asked for."""

FROM_THE_DATA = ("rewards", "labels", "behaviour_logps")
FROM_THE_RUN = ("weights", "anchor", "mismatched")


def describe_needs() -> list[tuple[str, str, str]]:
    """Name, shape and meaning of everything that can be asked for."""
    of_models = [
        (f"{'other' if need.compared else 'MODEL'}.{field}", need.shape, need.words)
        for field, need in OF_A_MODEL.items()
    ]
    return of_models + [(name, need.shape, need.words) for name, need in OF_NO_MODEL.items()]


def find(need: str) -> Need:
    """The entry of a need, whatever model it asks."""
    model, _, field = need.rpartition(".")
    return OF_A_MODEL[field] if model else OF_NO_MODEL[need]


@cache
def models_of(needs: frozenset[str]) -> frozenset[str]:
    """Names of the models that are asked for something."""
    return frozenset(need.rpartition(".")[0] for need in needs) - {""}


@cache
def fields_of(needs: frozenset[str], model: str) -> frozenset[str]:
    """What one model is asked for."""
    return frozenset(need.rpartition(".")[2] for need in needs if need.startswith(f"{model}."))


def check_needs(component: str, needs: frozenset[str], models: Iterable[str] | None = None) -> None:
    """Refuse needs that nothing can serve.

    Args:
        component: How the message calls the component.
        needs: What it declares.
        models: Names of the models that there are; None takes any.

    Raises:
        InputError: If there is no such quantity or no such model.
    """
    if not isinstance(needs, (frozenset, set)):
        raise InputError(
            f"{component} has needs={needs!r}: expected a frozenset of names, such as "
            "frozenset({'reference.logps'})"
        )
    known = None if models is None else {"policy", "reference", *models}
    for need in sorted(needs):
        model, _, field = need.rpartition(".")
        if not model and need in OF_NO_MODEL:
            continue
        if field not in OF_A_MODEL or not model.isidentifier():
            raise InputError(
                f"{component} needs {need!r}; what can be asked for: MODEL.FIELD with a field of "
                f"{sorted(OF_A_MODEL)}, or one of {sorted(OF_NO_MODEL)}"
            )
        if known is not None and model not in known:
            raise InputError(
                f"{component} needs {need!r}, but the run has the models {sorted(known)} alone: "
                f"{_meant(model, known)}add model.models.{model}"
            )
        if model == "policy" and OF_A_MODEL[field].compared:
            raise InputError(
                f"{component} needs {need!r}, which compares a model with the policy: expected "
                f"another model, such as 'reference.{field}'"
            )


def _meant(model: str, known: Iterable[str]) -> str:
    likely = difflib.get_close_matches(model, known, 1)
    return f"did you mean {likely[0]!r}? Otherwise " if likely else ""
