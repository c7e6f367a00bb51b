"""Write what ``predict`` found for each token."""

from __future__ import annotations

from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lit_tidpo.callbacks.places import log_folder
from lit_tidpo.errors import InputError
from lit_tidpo.models.kept_logps import row_keys
from lit_tidpo.modules.runtime import data_share, from_all_ranks, told_by_data
from lit_tidpo.structures import Prediction


def prediction_rows(prediction: Prediction, tokenizer: Any) -> Iterator[dict[str, Any]]:
    """One row for each response of a prediction.

    Args:
        prediction: Per-token results of a batch.
        tokenizer: Turns ids into text; None leaves the text out.

    Yields:
        ``index`` of the prompt in its data set, ``role``, ``row``, which names prompt and response
        by their tokens, the ``label`` of a single response, and lists with one entry for each
        response token: ``token_ids``, ``tokens`` (text), what was computed of it under the name of
        the need with a line for the dot (``policy_logps``, ``reference_logps``, ``reference_kl``,
        ``weights``, ``scores``, ...), and ``log_ratios``.
    """
    for role in prediction.batch.roles:
        results = prediction.of_role(role)
        columns = {need.replace(".", "_"): values for need, values in results.items()}
        if "reference.logps" in results:
            columns["log_ratios"] = results.log_ratios
        keys, labels = row_keys(results.batch), results.batch.desirable
        for place, index in enumerate(results.batch.index.tolist()):
            if not bool(results.batch.counted[place]):
                continue
            mask = results.mask[place]
            token_ids = results.batch.input_ids[place][mask].tolist()
            yield {
                "index": index,
                "role": role,
                "row": keys[place].hex(),
                **({} if labels is None else {"label": bool(labels[place])}),
                "token_ids": token_ids,
                "tokens": [tokenizer.decode([token]) for token in token_ids] if tokenizer else [],
                **{name: values[place][mask].tolist() for name, values in columns.items()},
            }


def tokenizer_of(trainer: Trainer) -> Any:
    """Tokenizer of the run's data; None where they are plain loaders."""
    return told_by_data(trainer, "tokenizer", None)


class TokenWriter(Callback):
    """Writes per-token log-ratios and importance weights in ``predict``.

    Args:
        path: File to write, ``.jsonl`` or ``.parquet``; by default ``tokens.jsonl`` in the log
            folder.
    """

    def __init__(self, path: str | None = None) -> None:
        if path is not None and Path(path).suffix not in (".jsonl", ".parquet"):
            raise InputError(
                f"tokens.path={path!r}: expected a name that ends in .jsonl or .parquet"
            )
        self.path = path
        self._rows: list[dict[str, Any]] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to overwrite a file, before the work."""
        target = self._target(trainer)
        if target.exists():
            raise InputError(f"{str(target)!r} exists: move it away, or set tokens.path")
        self._rows = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the rows of a batch."""
        self._rows.extend(prediction_rows(outputs, tokenizer_of(trainer)))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the rows of all ranks, in the order of the data set."""
        import datasets

        shares = from_all_ranks({"share": data_share(trainer)["rank"], "rows": self._rows})
        target = self._target(trainer)  # by all ranks: Lightning broadcasts the log folder
        if not trainer.is_global_zero:
            return
        # Ranks that split matrices between them have the same rows.
        shares = list({each["share"]: each for each in shares}.values())
        # Stable: the responses of a prompt keep the order of their roles.
        rows = sorted((row for share in shares for row in share["rows"]), key=itemgetter("index"))
        target.parent.mkdir(parents=True, exist_ok=True)
        table = datasets.Dataset.from_list(rows)
        if target.suffix == ".parquet":
            table.to_parquet(target)
        else:
            table.to_json(target)
        rank_zero_info(f"tokens: {target} ({len(rows):,} rows)")

    def _target(self, trainer: Trainer) -> Path:
        if self.path is None:
            return log_folder(trainer) / "tokens.jsonl"
        return Path(self.path).expanduser()
