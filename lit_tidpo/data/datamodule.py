"""The LightningDataModule of preference pairs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from lightning.pytorch.trainer.states import TrainerFn

from lit_tidpo.data.mixing import names_sources, split_source
from lit_tidpo.data.ranked import Against, RowOptions, TrainedTurns
from lit_tidpo.data.rendering import SpecialTokens
from lit_tidpo.data.reports import InvalidRows, PreparationReport
from lit_tidpo.data.split_loaders import SplitLoaders
from lit_tidpo.data.splits import SplitSource
from lit_tidpo.data.tokenised import sides_of
from lit_tidpo.data.tokenization import PairTokenizer, TokenizationOptions
from lit_tidpo.models.tokenizer import load_tokenizer


class PreferenceDataModule(SplitLoaders):
    r"""Preference pairs from the Hub, a folder or a file, tokenised and batched.

    A row has ``chosen`` and ``rejected``, as text or as chat messages, and mostly ``prompt``;
    optionally ``chosen_weights`` and ``rejected_weights`` with one number per response token, or
    ``chosen_spans`` and ``rejected_spans``, lists of ``[start, end]`` in characters of the
    response's text: tokens that overlap one have the weight 1, others 0; ``score_chosen`` and
    ``score_rejected`` with a reward for each response; and ``pair_weight``, by which the pair's
    loss is multiplied.
    Training order depends on ``seed`` and the epoch alone, and a run that is resumed in the middle
    of an epoch goes on with the next row, whatever the batch size.

    Args:
        source: Data set, whose rows have any of the shapes of ``lit-tidpo data --shapes``: name on
            the Hub, ``builtin:NAME``, a folder of files named like their splits or made by
            ``save_to_disk``, or one .json, .jsonl, .csv or .parquet file, also as .gz or .zst (the
            split ``train``). Several are a list of ``{source: ..., weight: ..., split: ...,
            columns: ..., name: ..., revision: ...}``: without weights each row comes once, with
            them training rows are drawn until all have come. Programs may give a ``Dataset``, a
            ``DatasetDict`` or a list of rows.
        tokenizer: Tokenizer: path, name on the Hub, or ``builtin:NAME``.
        tokenizer_revision: Branch, tag or commit of a tokenizer on the Hub.
        trust_remote_code: Let the tokenizer's repository run its own code.
        tokenizer_gguf_file: Name of the GGUF file there that holds the tokenizer.
        added_tokens: Texts that become tokens of their own.
        name: Configuration of a Hub data set that has several.
        revision: Branch, tag or commit of a Hub data set.
        columns: For each of our names of columns the one in the data, such as ``{prompt: question,
            chosen: good, rejected: bad}``; null leaves out a column of that name.
        against: Which of the ranked completions of a row the best one stands against: one of the
            lower ones at ``random`` (the same in every run), the ``worst``, or the ``next`` best.
        score: Field of ranked completions that ranks them; None takes the first that there is of
            ``overall_score``, ``fine-grained_score`` and ``score``.
        trained_turns: Turns of a response: the ``single`` one of the assistant, so that
            conversations that part earlier are invalid rows, or ``all`` of the assistant's after
            the parting, with what others say in between as context that is not trained on.
        train_split: Split to train on.
        validation_split: Split to validate on.
        test_split: Split to test on.
        predict_split: Split to predict on.
        validation_fraction: Share of the training split that is held out, by ``seed``, where the
            data have no validation split; 0 holds out nothing.
        max_rows: Read only the first rows of each split; None reads all.
        max_length: Most tokens of prompt and response together. Responses are cut on the right.
        max_prompt_length: Tokens that a prompt keeps, cut on the left, however long the responses
            are; None means half of ``max_length``.
        chat_template: Jinja text or path of a template that replaces the tokenizer's own.
        special_tokens: What a special token within the text of a message is: ``text``, or a
            ``control`` token. In rows of plain text they always are control tokens.
        invalid_rows: What to do with rows whose responses are empty or identical, also after
            truncation, or that have no prompt: ``raise`` an error or ``drop`` them.
        batch_size: Pairs in a training batch of one device.
        eval_batch_size: Pairs in a batch of validation, test and prediction; None means
            ``batch_size``.
        drop_last: Leave out an incomplete last training batch rather than train on it.
        group_by_length: Put pairs of like length into a batch, so that less is padding.
        pad_to_multiple: Pad batches to a multiple of this many tokens.
        lookahead: Training batches that are read at a time, so that anchors can be sampled for all
            of them at once: ``model.anchor.reuse_steps`` times the accumulated batches of a step.
            The command sets it.
        num_workers: Processes that load batches; 0 loads in the main one, and streaming takes at
            most 1.
        processes: Processes that tokenise the data before the run.
        streaming: Read and tokenise rows as they are needed, rather than all at the start.
        shuffle_buffer: Rows among which a stream is shuffled; only with ``streaming``.
        cache_dir: Folder for downloaded and tokenised data; None means that of ``datasets``.
        seed: Seed of the training order and of the held-out rows.

    Attributes:
        reports: What became of the rows of each split.

    Raises:
        InputError: If an argument is out of range, or arguments do not fit together.
    """

    def __init__(
        self,
        source: str | list[dict[str, Any]],
        tokenizer: str,
        tokenizer_revision: str | None = None,
        trust_remote_code: bool = False,
        tokenizer_gguf_file: str | None = None,
        added_tokens: list[str] | None = None,
        name: str | None = None,
        revision: str | None = None,
        columns: dict[str, str | None] | None = None,
        against: Against = "random",
        score: str | None = None,
        trained_turns: TrainedTurns = "single",
        train_split: str = "train",
        validation_split: str = "validation",
        test_split: str = "test",
        predict_split: str = "validation",
        validation_fraction: float = 0.0,
        max_rows: int | None = None,
        max_length: int = 1024,
        max_prompt_length: int | None = None,
        chat_template: str | None = None,
        special_tokens: SpecialTokens = "text",
        invalid_rows: InvalidRows = "raise",
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        drop_last: bool = False,
        group_by_length: bool = False,
        pad_to_multiple: int = 1,
        lookahead: int = 1,
        num_workers: int = 0,
        processes: int = 1,
        streaming: bool = False,
        shuffle_buffer: int = 1000,
        cache_dir: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        cache_dir = None if cache_dir is None else os.path.expanduser(cache_dir)
        # Not to the logger: Lightning refuses to fit where a module logs another value of a name.
        # Rows themselves are nothing that a checkpoint should hold.
        kept = isinstance(source, str) or names_sources(source)
        self.save_hyperparameters(logger=False, ignore=[] if kept else ["source"])
        common = SplitSource(
            source,
            name=name,
            revision=revision,
            cache_dir=cache_dir,
            streaming=streaming,
            train_split=train_split,
            validation_split=validation_split,
            validation_fraction=validation_fraction,
            max_rows=max_rows,
            seed=seed,
            columns=columns or {},
            processes=processes,
        )
        self.source = split_source(source, common)
        self.options = TokenizationOptions(
            max_length,
            max_prompt_length,
            chat_template,
            special_tokens,
            RowOptions(against, score, trained_turns),
        )
        self.trained_turns = trained_turns
        self.tokenizer_source = tokenizer
        self.tokenizer_revision = tokenizer_revision
        self.trust_remote_code = trust_remote_code
        self.tokenizer_gguf_file = tokenizer_gguf_file
        self.added_tokens = added_tokens
        self.test_split = test_split
        self.predict_split = predict_split
        self.invalid_rows = invalid_rows
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.drop_last = drop_last
        self.group_by_length = group_by_length
        self.pad_to_multiple = pad_to_multiple
        self.lookahead = lookahead
        self.num_workers = num_workers
        self.processes = processes
        self.shuffle_buffer = shuffle_buffer
        self._check()

    @cached_property
    def pair_tokenizer(self) -> PairTokenizer:
        """What turns rows into token ids."""
        tokenizer = load_tokenizer(
            self.tokenizer_source,
            self.options.chat_template,
            self.tokenizer_revision,
            self.trust_remote_code,
            self.tokenizer_gguf_file,
            self.added_tokens,
        )
        return PairTokenizer(tokenizer, self.options)

    def raw_rows(self, split: str) -> Iterator[tuple[str, Any]]:
        """Each source that has a split, and its rows as they are.

        Raises:
            InputError: If there is none, or its rows have none of the shapes that are read.
        """
        raw: Any = self.source.load()
        for part, own, name in self.source.having(raw, split):
            yield part.label, part.rows(own, name)

    def prepare_data(self) -> None:
        """Tokenise what the run needs, in one process, so that the others find it in the cache."""
        if self.source.streaming:
            return
        raw: Any = self.source.load()
        stage = TrainerFn.FITTING if self.trainer is None else self.trainer.state.fn
        for split in self._splits(stage, raw):
            self.source.tokenised(raw, split, self.pair_tokenizer)

    def setup(self, stage: str) -> None:
        """Load the splits of a stage.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``.

        Raises:
            InputError: If a split is missing or cannot be used.
        """
        raw: Any = self.source.load()
        for split in self._splits(stage, raw):
            if split in self._rows:
                continue
            if isinstance(self.source, SplitSource) and self.source.streaming:
                self.source.tell_unused(raw, split)
                self.reports[split] = PreparationReport(split)
                self._rows[split] = self.source.rows(raw, split)
            else:
                self._rows[split], reports = self.source.usable(
                    raw, split, self.pair_tokenizer, self.invalid_rows
                )
                self.reports |= reports

    @property
    def response_ends(self) -> frozenset[int]:
        """Tokens that whole responses of the training data end in; none of a stream."""
        rows = self._rows.get(self.source.train_split, [])
        if self.source.streaming:
            return frozenset()
        first = (rows[place] for place in range(min(len(rows), 100)))
        return frozenset(
            row[f"{side}_ids"][-1]
            for row in first
            for side in sides_of(row)[:1]
            if not row[f"{side}_truncated"] and row.get("label", True)
        )

    def _splits(self, stage: str | None, raw: Any) -> list[str]:
        if stage == TrainerFn.VALIDATING:
            return [self.source.validation_split]
        if stage == TrainerFn.TESTING:
            return [self.test_split]
        if stage == TrainerFn.PREDICTING:
            return [self.predict_split]
        return self.source.splits_to_fit(raw)
