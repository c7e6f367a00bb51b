"""Bases of few bits, as bitsandbytes has them in the other trainers."""

from __future__ import annotations

from lit_tidpo.converting.options import Conversion

SCALES = "the scales of 4 bits are quantised as well (nested, double quantisation)"
EIGHT = "torchao's int8: weights alone, where bitsandbytes rounds activations, too"
KEPT = "`policy.quantization`: nf4 and int8, of weights under LoRA"


def quantise(run: Conversion, name: str, bits: int, kind: str, nested: bool) -> None:
    """Set weights of 4 or 8 bits, once adapters are set.

    Args:
        run: The conversion.
        name: Option that asks for them.
        bits: Of a weight.
        kind: ``nf4`` or ``fp4``, of 4 bits.
        nested: Whether its scales are quantised.
    """
    policy = run.tree["model"]["policy"]
    if not (policy.get("lora") or policy.get("adapter")):
        run.tell(name, "none", "quantised weights cannot be trained: ask for LoRA, too")
        return
    if bits not in (4, 8):
        run.tell(name, "none", f"{bits} bits: {KEPT}")
        return
    run.set("model.policy.quantization", "nf4" if bits == 4 else "int8")
    run.set("model.policy.save_frozen", False)
    if bits == 8:
        run.tell(name, "near", EIGHT)
    elif kind != "nf4":
        run.tell(name, "near", f"takes nf4 for {kind}")
    elif not nested:
        run.tell(name, "near", SCALES)
