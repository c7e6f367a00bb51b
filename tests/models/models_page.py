"""Runs the whole matrix of families and writes docs/models.md: ``make models``."""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path

import torch
import transformers

from .families import CHECKS, FAMILIES, Family
from .family_checks import outcomes

PAGE = Path(__file__).parents[2] / "docs/models.md"
HEAD = """# Families of models

Written by `make models` with transformers {version}: {count} families as random models of two or
three layers, each through all of these, on a CPU in fp32.

- **fit**: three steps of the default objective (gradient importance with its prior, weighted DPO
  with the KL term, the triplet loss on sampled anchors). After each pass the log-probs of all rows,
  anchors included, are those of a plain forward of each row alone, to 1e-3 nats. What stands in the
  column is the layout that `layout: auto` chose.
- **anchors**: the likeliest anchors are, token by token, what plain forwards of each row alone go
  on with.
- **predict**: finite weights, and log-probs as above.
- **export**: what is written gives the logits of what was trained.
- **LoRA**: two steps with adapters on all linear layers, compared in the same way; the adapters
  move, and are merged for export.
- **attention**: a step with attention importance under `attn_implementation: eager`.
- **checkpointing**: recomputed activations give the same gradients.

A number stands for a refusal, one line that says why; they are listed below. A family that is not
here is proven in the same way when a run starts: packed rows, padded rows and generation are
compared with plain passes of a few tokens. What differs is not used, or refused.

Of what `AutoModelForCausalLM` of this transformers has, three kinds are not here, as they were
not run: decoders of models that see, hear or translate (BART and its relatives, Whisper, `gemma3`,
`git` and their like); encoders beside BERT, RoBERTa and XLNet; and decoders of text that came late,
such as `gemma4_text`, `glm4_moe_lite`, `dbrx`, `exaone_moe`, `longcat_flash`, `jais2`,
`kimi_linear` and `deepseek_v32`.

"""


def mismatches(family: Family, found: dict[str, str]) -> list[str]:
    """What came out otherwise than the row says."""
    wrong = []
    for check, outcome in found.items():
        expected = family.refused.get(check)
        if expected is not None:
            fits = outcome.startswith("refused: ") and expected in outcome
        else:
            fits = outcome == (family.layout if check == "fit" else "works")
        if not fits:
            wrong.append(f"{family.name}, {check}: {outcome}; expected {expected or 'works'}")
    return wrong


def page(results: dict[str, dict[str, str]]) -> str:
    """The page of what came out, by family."""
    reasons: list[str] = []

    def cell(outcome: str) -> str:
        reason = outcome.removeprefix("refused: ")
        if reason == outcome:
            return outcome
        if reason not in reasons:
            reasons.append(reason)
        return str(reasons.index(reason) + 1)

    rows = [["family", *CHECKS], ["---"] * (1 + len(CHECKS))]
    rows += [[f"`{name}`", *map(cell, found.values())] for name, found in results.items()]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    listed = "".join(f"{number}. {reason}\n" for number, reason in enumerate(reasons, 1))
    head = HEAD.format(version=transformers.__version__, count=len(results))
    return f"{head}{table}\n{listed}"


def main() -> int:
    """Run all rows, or those named; without names, write the page."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    names, results, wrong = sys.argv[1:], {}, []
    for family in FAMILIES:
        if names and family.name not in names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            results[family.name] = outcomes(family, Path(folder))
        wrong += mismatches(family, results[family.name])
        print(family.name, results[family.name], flush=True)
    print("\n".join(wrong) or "all as expected")
    if not names and not wrong:
        PAGE.write_text(page(results), encoding="utf-8")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
