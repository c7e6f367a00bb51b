"""``lit-tidpo explain``: a page of what estimators and models say of each token of pairs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from jsonargparse import auto_cli

from lit_tidpo.data.datamodule import PreferenceDataModule
from lit_tidpo.errors import InputError
from lit_tidpo.explaining.explain import Explainer, Explanation
from lit_tidpo.explaining.subjects import Subject, subject_of
from lit_tidpo.importance.base import ImportanceEstimator
from lit_tidpo.plugins.parser import PluginArgumentParser, load_named_plugins
from lit_tidpo.structures import ResponseBatch


def run(args: list[str]) -> None:
    """Explain; see :func:`explain_pairs`."""
    call_with_plugins(explain_pairs, args)


def call_with_plugins(function: Callable[..., None], args: list[str]) -> None:
    """Call the function of a command, whose options may name plugins, with all words."""
    PluginArgumentParser.problems = load_named_plugins(args)
    auto_cli(
        function,
        args=args[1:],
        as_positional=True,
        parser_class=PluginArgumentParser,
        prog=f"lit-tidpo {args[0]}",
    )


def explain_pairs(
    model: str,
    source: str | None = None,
    split: str | None = None,
    pairs: int = 8,
    prompt: str | None = None,
    chosen: str | None = None,
    rejected: str | None = None,
    importance: dict[str, ImportanceEstimator] | None = None,
    reference: str | None = None,
    anchor_tokens: int = 0,
    seed: int = 0,
    max_length: int | None = None,
    batch_size: int = 4,
    output: str = "explanation.html",
) -> None:
    """Write a page that shows prompts and responses, token by token.

    Args:
        model: A checkpoint of ``fit``, a model's folder, a name on the Hub or ``builtin:NAME``.
        source: Data set to take pairs of; by default the one of the checkpoint.
        split: Split of it; by default the one that ``predict`` would take.
        pairs: Pairs to take, from the first.
        prompt: Text of a prompt, to be typed with ``chosen`` and ``rejected`` in the place of data.
        chosen: Text that goes on from it.
        rejected: The same.
        importance: Estimators by a name of your choice; by default that of the checkpoint, or
            hybrid, and beside it difference and entropy.
        reference: Model of the log-ratios; by default what a checkpoint was trained against, and
            none of other models.
        anchor_tokens: Tokens of a response that the policy samples to each prompt; 0 samples none.
        seed: Seed of that.
        max_length: Tokens of prompt and response at the most; by default those of the checkpoint,
            or 1024.
        batch_size: Pairs that run together.
        output: The page, which is overwritten.

    Raises:
        InputError: If a user can mend what is wrong.
    """
    for name, number, least in (
        ("pairs", pairs, 1),
        ("batch_size", batch_size, 1),
        ("anchor_tokens", anchor_tokens, 0),
    ):
        if number < least:
            raise InputError(f"{name}={number}: expected {least} or more")
    _check_typed({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    subject = subject_of(model, reference)
    explainer = Explainer(subject, importance)
    batches: Iterable[ResponseBatch]
    if prompt is None or chosen is None or rejected is None:
        data = pairs_of(model, subject, pairs, batch_size, source, split, max_length)
        batches = islice(data.predict_dataloader(), -(-pairs // batch_size))
        title = f"{model}: {data.source.label}, {data.predict_split}"
    elif (source, split, max_length) != (None, None, None):
        raise InputError(
            "a pair was typed: leave out --source, --split and --max_length, which are of data"
        )
    else:
        batches, title = [explainer.batch(prompt, chosen, rejected)], model
    shown = explainer.explain(batches, anchor_tokens, seed)[:pairs]
    file = Explanation(shown, title).save(output)
    sys.stdout.write(f"{len(shown)} pairs: {file}\n")


def _check_typed(texts: dict[str, str | None]) -> None:
    missing = [f"--{name}" for name, text in texts.items() if text is None]
    if 0 < len(missing) < len(texts):
        raise InputError(f"a pair was typed without {' and '.join(missing)}: give all three texts")


def pairs_of(
    model: str,
    subject: Subject,
    pairs: int,
    batch_size: int,
    source: str | None,
    split: str | None,
    max_length: int | None,
) -> PreferenceDataModule:
    """The data, with the split that is explained; see :func:`explain_pairs`."""
    options: dict[str, Any] = dict(subject.data or {"tokenizer": model})
    given = {"source": source, "predict_split": split, "max_length": max_length}
    options |= {name: value for name, value in given.items() if value is not None}
    if "source" not in options:
        raise InputError(
            f"{model!r} does not say which data it is of: give --source, or a pair as --prompt, "
            "--chosen and --rejected"
        )
    # Rows beyond are not read, unless they count for which ones are held out.
    if not options.get("validation_fraction"):
        options["max_rows"] = pairs
    options |= {"batch_size": batch_size, "eval_batch_size": None, "invalid_rows": "drop"}
    data = PreferenceDataModule(**options)
    data.setup("predict")
    return data
