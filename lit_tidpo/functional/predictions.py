"""What losses and estimators take from a model's next-token distributions, in one go.

Per token: the label's log-prob and logit, the entropy, and the divergence from a reference. From
logits, or straight from the last hidden states: logits of all tokens at once take tokens times
vocabulary numbers, several times over, so a tile of tokens is projected, reduced and forgotten, and
projected again in the backward pass. Memory then grows with the tile, not with the tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import linear


class Projection(NamedTuple):
    """A linear output layer and what it is applied to.

    Attributes:
        hidden: Last hidden states, ``[M, H]``.
        weight: ``[V, H]``.
        bias: ``[V]``, or None.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None


class Predictions(NamedTuple):
    """Per-token quantities in fp32 (fp64 for fp64 input), ``[M]`` each.

    Attributes:
        logps: Log-prob of the label in nats.
        label_logits: Logit of the label.
        entropy: Entropy of the distribution in nats; zero if not asked for.
        kl: ``KL(reference || policy)`` in nats; zero without a reference.
        log_collision: ``log sum p ** 2``, without a gradient; zero if not asked for.
    """

    logps: Tensor
    label_logits: Tensor
    entropy: Tensor
    kl: Tensor
    log_collision: Tensor


def predictions(
    logits: Tensor,
    labels: Tensor,
    reference: Tensor | None = None,
    entropy: bool = False,
    collision: bool = False,
) -> Predictions:
    """Reduce logits to per-token quantities.

    With ``p = softmax z`` and primes for the reference: ``H = -sum p log p`` and
    ``KL = sum p' (log p' - log p)`` (TDPO, arXiv 2404.11999). The gradient with respect to ``z`` is
    ``g_logp (1_y - p) + g_label 1_y - g_H p (log p + H) + g_KL (p - p')``. The softmax runs in fp32
    whatever the dtype of the logits; ``-inf`` on entries that are never a label is legal.

    Args:
        logits: ``[M, V]``.
        labels: Token ids, ``[M]``.
        reference: Logits of the reference where the divergence is asked for; takes no gradient,
            ``[M, V]``.
        entropy: Whether the entropy is asked for.
        collision: Whether ``log_collision`` is asked for.

    Returns:
        The quantities, inside the graph.

    Example:
        >>> predictions(torch.zeros(1, 4), torch.tensor([2]), entropy=True).entropy.exp()
        tensor([4.])
    """
    arguments = (logits, labels, reference, entropy, collision)
    return Predictions(*_FromLogits.apply(*arguments))  # type: ignore[no-untyped-call]


def tiled_predictions(
    policy: Projection,
    labels: Tensor,
    tile: int,
    reference: Projection | None = None,
    entropy: bool = False,
    collision: bool = False,
) -> Predictions:
    """Do as :func:`predictions`, from hidden states, with the logits of a few tokens at a time.

    Args:
        policy: Takes gradients.
        labels: Token ids, ``[M]``.
        tile: Tokens whose logits are held at a time.
        reference: Where the divergence is asked for; takes no gradient.
        entropy: Whether the entropy is asked for.
        collision: Whether ``log_collision`` is asked for.

    Returns:
        The quantities, inside the graph.

    Example:
        >>> hidden, weight = torch.zeros(2, 3), torch.zeros(4, 3)
        >>> tiled_predictions(Projection(hidden, weight), torch.tensor([0, 1]), tile=1).logps.exp()
        tensor([0.2500, 0.2500])
    """
    layers = [*_matmul_dtype(policy), *(_matmul_dtype(reference) if reference else [None] * 3)]
    arguments = (*layers, labels, tile, entropy, collision)
    return Predictions(*_FromHidden.apply(*arguments))  # type: ignore[no-untyped-call]


class _FromLogits(Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Predictions:
        logits, labels, reference, entropy, collision = arguments
        results = _reduce(logits, labels, reference, entropy, collision)
        ctx.mark_non_differentiable(results.log_collision)
        ctx.save_for_backward(logits, reference, labels, results.entropy)
        ctx.set_materialize_grads(False)
        return results

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        logits, reference, labels, entropy = ctx.saved_tensors
        incoming = _Gradients.of(gradients, entropy)
        d_logits = torch.empty_like(logits)
        _write_gradients(d_logits, logits, labels, entropy, incoming, reference)
        return d_logits, None, None, None, None


class _FromHidden(Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Predictions:
        *layers, labels, tile, entropy, collision = arguments
        policy, reference = Projection(*layers[:3]), Projection(*layers[3:])
        parts = []
        for part in _tiles(labels, tile):
            others = None if reference.hidden is None else _project(reference, part)
            own = _project(policy, part)
            parts.append(_reduce(own, labels[part], others, entropy, collision))
        results = _joined(parts)
        ctx.mark_non_differentiable(results.log_collision)
        ctx.tile = tile
        ctx.save_for_backward(*layers, labels, results.entropy)
        ctx.set_materialize_grads(False)
        return results

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        *layers, labels, entropy = ctx.saved_tensors
        policy, reference = Projection(*layers[:3]), Projection(*layers[3:])
        incoming = _Gradients.of(gradients, entropy)
        wide = entropy.dtype
        results = [
            torch.zeros_like(value, dtype=wide) if value is not None and needed else None
            for value, needed in zip(policy, ctx.needs_input_grad, strict=False)
        ]
        rows = slice(0, 0) if reference.hidden is None else incoming.diverging()
        for part in _tiles(labels, ctx.tile):
            mine = incoming.of_tokens(part)
            diverging = part.start < rows.stop and rows.start < part.stop
            others = _project(reference, part) if diverging else None
            logits = _project(policy, part)
            _write_gradients(logits, logits, labels[part], entropy[part], mine, others)
            _add_weight_gradients(results, policy, part, logits)
        own = [None if d is None else d.to(layers[i].dtype) for i, d in enumerate(results)]
        return (*own, *[None] * 7)


class _Gradients(NamedTuple):
    """Incoming gradients of the quantities, ``[M]`` each; None where nothing comes."""

    logps: Tensor | None
    label_logits: Tensor | None
    entropy: Tensor | None
    kl: Tensor | None

    @classmethod
    def of(cls, gradients: tuple[Tensor | None, ...], like: Tensor) -> _Gradients:
        logps, label_logits, entropy, kl, _ = gradients
        return cls(torch.zeros_like(like) if logps is None else logps, label_logits, entropy, kl)

    def of_tokens(self, part: slice) -> _Gradients:
        """Those of some tokens."""
        return _Gradients(*(None if gradient is None else gradient[part] for gradient in self))

    def diverging(self) -> slice:
        """From the first to the last token with a gradient of its divergence.

        TDPO2 stops that of the chosen responses, which come first. Where asking would be waiting,
        all tokens are taken, of which those without a gradient add nothing.
        """
        if self.kl is None:
            return slice(0, 0)
        if not _is_at_hand(self.kl):
            return slice(0, len(self.kl))
        tokens = self.kl.nonzero().flatten().tolist()
        return slice(tokens[0], tokens[-1] + 1) if tokens else slice(0, 0)


def _reduce(
    logits: Tensor, labels: Tensor, reference: Tensor | None, entropy: bool, collision: bool
) -> Predictions:
    """Quantities of tokens whose logits are there."""
    parts = []
    for part in _tiles(labels, _reduced_at_once(logits)):
        own, label = logits[part], labels[part, None]
        log_p = _log_softmax(own)
        log_q = None if reference is None else _log_softmax(reference[part])
        nothing = log_p.new_zeros(len(label))
        quantities = Predictions(
            logps=log_p.gather(-1, label).squeeze(-1),
            label_logits=own.gather(-1, label).squeeze(-1).to(log_p.dtype),
            entropy=-_expectation(log_p.exp(), log_p) if entropy else nothing,
            kl=nothing if log_q is None else _expectation(log_q.exp(), log_q - log_p),
            log_collision=(2 * log_p).logsumexp(-1) if collision else nothing,
        )
        parts.append(quantities)
    return _joined(parts)


def _write_gradients(
    into: Tensor,
    logits: Tensor,
    labels: Tensor,
    entropy: Tensor,
    incoming: _Gradients,
    reference: Tensor | None,
) -> None:
    """Write the gradient with respect to the logits, which may be ``logits`` itself."""
    for part in _tiles(labels, _reduced_at_once(logits)):
        mine = incoming.of_tokens(part)
        rows = mine.diverging()
        q = None if reference is None else _log_softmax(reference[part][rows]).exp_()
        log_p = _log_softmax(logits[part])
        into[part] = _logit_gradients(log_p, labels[part], entropy[part], mine, q, rows)


def _reduced_at_once(logits: Tensor) -> int:
    """Tokens that are reduced at a time: a CPU is fastest with what its cache holds."""
    size = 2**18 if logits.device.type == "cpu" else 2**24
    return max(1, size // logits.shape[-1])


def _joined(parts: list[Predictions]) -> Predictions:
    return Predictions(*(torch.cat(values) for values in zip(*parts, strict=True)))


def _logit_gradients(
    log_p: Tensor,
    labels: Tensor,
    entropy: Tensor,
    incoming: _Gradients,
    q: Tensor | None,
    rows: slice,
) -> Tensor:
    """Gradient with respect to the logits, ``[M, V]``."""
    logps, label_logits, d_entropy, kl = incoming
    assert logps is not None
    factor = -logps[:, None] if kl is None else (kl - logps)[:, None]
    gradient = log_p.exp()
    if d_entropy is not None:
        surprise = log_p.masked_fill(gradient == 0, 0.0).add_(entropy[:, None])
        factor = factor - surprise.mul_(d_entropy[:, None])
    gradient.mul_(factor)
    if q is not None and kl is not None:
        gradient[rows].addcmul_(q, kl[rows, None], value=-1.0)
    at_label = logps if label_logits is None else logps + label_logits
    return gradient.scatter_add_(-1, labels[:, None], at_label[:, None])


def _add_weight_gradients(
    results: list[Tensor | None], policy: Projection, part: slice, d_logits: Tensor
) -> None:
    """Add a tile's share to the gradients of hidden states, weight and bias."""
    d_hidden, d_weight, d_bias = results
    if d_hidden is not None:
        d_hidden[part] = d_logits @ policy.weight
    if d_weight is not None:
        hidden = policy.hidden[part]
        if d_weight.dtype == hidden.dtype:
            d_weight.addmm_(d_logits.mT, hidden)
        else:
            d_weight.add_(d_logits.mT @ hidden)
    if d_bias is not None:
        d_bias.add_(d_logits.sum(0, dtype=d_bias.dtype))


def _matmul_dtype(layer: Projection) -> Projection:
    """Cast as autocast would: a backward pass does not see its state."""
    device = layer.hidden.device.type
    if not torch.is_autocast_enabled(device):
        return layer
    dtype = torch.get_autocast_dtype(device)
    hidden, weight, bias = layer
    return Projection(hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))


def _tiles(labels: Tensor, tile: int) -> list[slice]:
    return [slice(start, start + tile) for start in range(0, len(labels), tile)]


def _project(layer: Projection, part: slice) -> Tensor:
    return linear(layer.hidden[part], layer.weight, layer.bias)


def _log_softmax(logits: Tensor) -> Tensor:
    return logits.log_softmax(-1, dtype=None if logits.dtype == torch.float64 else torch.float32)


def _expectation(p: Tensor, values: Tensor) -> Tensor:
    """``sum p v``; an entry of no probability adds nothing, even if its value is infinite."""
    products = p * values
    if not _is_at_hand(p):
        return products.masked_fill_(p == 0, 0.0).sum(-1)
    sums = products.sum(-1)
    broken = sums.isnan()
    if bool(broken.any()):
        values = values[broken].masked_fill(p[broken] == 0, 0.0)
        sums[broken] = (p[broken] * values).sum(-1)
    return sums


def _is_at_hand(values: Tensor) -> bool:
    """Whether values can be looked at without waiting for a device."""
    return values.device.type == "cpu"
