"""``lit-tidpo audit``: which tokens and classes of words carry the weight over a data set."""

from __future__ import annotations

import dataclasses
import json
import sys
from itertools import islice
from pathlib import Path

from lit_tidpo.commands.explain import call_with_plugins, pairs_of
from lit_tidpo.errors import InputError, explained
from lit_tidpo.explaining.audit import check_lexicon, class_weights, heaviest_tokens
from lit_tidpo.explaining.explain import Explainer
from lit_tidpo.explaining.page import rendered
from lit_tidpo.explaining.subjects import subject_of
from lit_tidpo.importance.base import ImportanceEstimator


def run(args: list[str]) -> None:
    """Audit; see :func:`audit_pairs`."""
    call_with_plugins(audit_pairs, args)


def audit_pairs(
    model: str,
    lexicon: str,
    source: str | None = None,
    split: str | None = None,
    pairs: int = 200,
    importance: dict[str, ImportanceEstimator] | None = None,
    reference: str | None = None,
    resamples: int = 2000,
    seed: int = 0,
    max_length: int | None = None,
    batch_size: int = 4,
    output: str = "audit.html",
) -> None:
    """Write a page, and beside it all numbers as JSON.

    Args:
        model: A checkpoint of ``fit``, a model's folder, a name on the Hub or ``builtin:NAME``.
        lexicon: JSON file of classes, each with a list of words.
        source: Data set to take pairs of; by default the one of the checkpoint.
        split: Split of it; by default the one that ``predict`` would take.
        pairs: Pairs to take, from the first.
        importance: Estimators by a name of your choice; by default that of the checkpoint, or
            hybrid, and beside it difference and entropy.
        reference: Model of the log-ratios; by default what a checkpoint was trained against, and
            none of other models.
        resamples: Bootstrap samples of the intervals.
        seed: Seed of them.
        max_length: Tokens of prompt and response at the most; by default those of the checkpoint,
            or 1024.
        batch_size: Pairs that run together.
        output: The page, which is overwritten; the numbers get its name with ``.json``.

    Raises:
        InputError: If a user can mend what is wrong.
    """
    for name, number in (("pairs", pairs), ("batch_size", batch_size), ("resamples", resamples)):
        if number < 1:
            raise InputError(f"{name}={number}: expected 1 or more")
    with explained(f"lexicon {lexicon!r} cannot be read"):
        words = check_lexicon(json.loads(Path(lexicon).expanduser().read_text(encoding="utf-8")))
    subject = subject_of(model, reference)
    data = pairs_of(model, subject, pairs, batch_size, source, split, max_length)
    if not data.is_paired:
        raise InputError(
            f"audit compares chosen and rejected responses, but {data.source.label!r} holds single "
            "ones: take pairs as source"
        )
    batches = islice(data.predict_dataloader(), -(-pairs // batch_size))
    found = Explainer(subject, importance).explain(batches)[:pairs]
    classes = class_weights(found, words, resamples, seed)
    tokens = heaviest_tokens(found)
    title = f"{model}: {data.source.label}, {data.predict_split}"
    page, numbers = Path(output).expanduser(), Path(output).expanduser().with_suffix(".json")
    page.write_text(
        rendered("audit", title=title, pairs=len(found), classes=classes, tokens=tokens),
        encoding="utf-8",
    )
    content = {
        "title": title,
        "pairs": len(found),
        "classes": [dataclasses.asdict(each) for each in classes],
        "heaviest_tokens": tokens,
    }
    numbers.write_text(f"{json.dumps(content, indent=1, ensure_ascii=False)}\n", encoding="utf-8")
    sys.stdout.write(f"{len(found)} pairs: {page}, {numbers}\n")
