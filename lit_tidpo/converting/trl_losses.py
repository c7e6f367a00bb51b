"""What the loss types of TRL's DPOTrainer become."""

from __future__ import annotations

from typing import Any

from lit_tidpo.converting.options import Conversion
from lit_tidpo.converting.trl_options import CALLED
from lit_tidpo.errors import InputError

_DIVERGENCES = {"forward_kl": "ForwardKL", "js_divergence": "JensenShannon"}
_DIVERGING = {"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"}
_SMOOTHED = {"robust", "exo_pair", "aot", "aot_unpaired"}
_CDPO = (
    "TRL 1.16 does not read it with this loss type; for cDPO, as in its first releases, name the "
    "loss cdpo"
)


def convert_losses(run: Conversion) -> None:
    """Set the losses, their weights and settings."""
    kinds = run["loss_type"]
    weights = run["loss_weights"] or [1.0] * len(kinds)
    numbers = all(isinstance(weight, (int, float)) for weight in weights)
    if len(weights) != len(kinds) or not numbers:
        raise InputError(f"loss_weights={weights}: expected a number for each loss_type of {kinds}")
    losses: dict[str, Any] = {}
    factors: dict[str, float] = {}
    for kind, weight in zip(kinds, weights, strict=True):
        name = kind if kind not in losses else f"{kind}_{len(losses)}"
        losses[name] = _loss(run, kind)
        factors[name] = weight
    if run["rpo_alpha"]:
        losses["nll"], factors["nll"] = {"class_path": "sft"}, run["rpo_alpha"]
    if run["router_aux_loss_coef"]:
        losses["router"], factors["router"] = {"class_path": "router"}, 1.0
    elif run["router_aux_loss_coef"] is None:
        why = "TRL adds it to the loss of a mixture of experts: name the loss router for one"
        run.tell("router_aux_loss_coef", "near", why)
    if run["label_smoothing"] and not _SMOOTHED & {*kinds}:
        run.tell("label_smoothing", "idle", _CDPO)
    if "discopop" not in kinds:
        run.idle("of the loss discopop", "discopop_tau")
    if not str(run["f_divergence_type"]).lower().endswith("alpha_divergence"):
        run.idle("of alpha_divergence", "f_alpha_divergence_coef")
    run.set("model.importance", None)
    run.set("model.losses", losses)
    run.set("model.loss_weights", factors)


def _loss(run: Conversion, kind: str) -> dict[str, Any]:
    if kind not in CALLED:
        raise InputError(f"loss_type={kind!r}: expected some of {list(CALLED)}")
    if kind == "sft":
        if run["use_weighting"]:
            run.tell("use_weighting", "none", "WPO weighs the loss sigmoid alone here")
        run.tell("loss_type", "near", "sft is the mean over each response, not over the batch")
        return {"class_path": "sft"}
    settings: dict[str, Any] = {"beta": run["beta"]}
    if kind in _SMOOTHED:
        settings["label_smoothing"] = run["label_smoothing"]
    if kind == "discopop":
        settings["tau"] = run["discopop_tau"]
    if kind in ("sigmoid_norm", "ipo"):
        settings["length_normalised"] = True
    divergence = _divergence(run, kind)
    if divergence:
        settings["divergence"] = divergence
    name, changes = _variant(run, kind, bool(divergence))
    return {"class_path": name, "init_args": {**settings, **changes}}


def _variant(run: Conversion, kind: str, diverges: bool) -> tuple[str, dict[str, Any]]:
    """The loss of a loss type, or the one that three further options make of ``sigmoid``."""
    asked = {
        "ld_alpha": run["ld_alpha"] not in (None, 1.0),
        "use_weighting": run["use_weighting"],
        "reference_free": run["reference_free"],
    }
    names = [name for name in asked if asked[name]]
    variants: dict[str, tuple[str, dict[str, Any]]] = {
        "ld_alpha": ("ld_dpo", {"alpha": run["ld_alpha"]}),
        "use_weighting": ("wpo", {"aligned": True}),
        "reference_free": ("cpo", {"alpha": 0.0}),
    }
    plain = kind == "sigmoid" and not diverges
    if plain and len(names) == 1:
        return variants[names[0]]
    for name in names:
        loss = variants[name][0]
        what = f"{loss} is of the loss type sigmoid alone, without f-divergences or the others"
        run.tell(name, "none", f"{what}: choose one of them")
    return CALLED[kind], {}


def _divergence(run: Conversion, kind: str) -> Any:
    name, alpha = run["f_divergence_type"], run["f_alpha_divergence_coef"]
    name = str(name).rpartition(".")[2].lower()  # FDivergenceType.JS_DIVERGENCE of older releases
    if name == "reverse_kl" or (name == "alpha_divergence" and abs(alpha - 1) < 1e-6):
        return None
    if kind not in _DIVERGING:
        raise InputError(f"f_divergence_type={name!r} does not go with loss_type={kind!r} in TRL")
    if name == "alpha_divergence":
        return {"class_path": "AlphaDivergence", "init_args": {"alpha": alpha}}
    if name not in _DIVERGENCES:
        known = ["reverse_kl", *_DIVERGENCES, "alpha_divergence"]
        raise InputError(f"f_divergence_type={name!r}: expected one of {known}")
    return {"class_path": _DIVERGENCES[name]}
