"""Write what ``predict`` found for each token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lit_tidpo.errors import InputError
from lit_tidpo.modules.runtime import from_all_ranks
from lit_tidpo.structures import Prediction


def prediction_rows(prediction: Prediction, tokenizer: Any) -> Iterator[dict[str, Any]]:
    """One row for each response of a prediction.

    Args:
        prediction: Per-token results of a batch.
        tokenizer: Turns ids into text; None leaves the text out.

    Yields:
        ``index`` of the pair in its data set, ``role``, and lists with one entry for each response
        token: ``token_ids``, ``tokens`` (text), ``policy_logps``, ``reference_logps``,
        ``log_ratios``, ``kl`` (nats) and ``weights``.
    """
    batch = prediction.batch
    for role, scores in prediction.scores.items():
        ids = batch.input_ids[batch.rows(role)]
        for pair in range(batch.size):
            if not bool(batch.counted[pair]):
                continue
            mask = scores.mask[pair]
            token_ids = ids[pair][mask].tolist()
            columns: dict[str, Tensor | None] = {
                "policy_logps": scores.policy_logps,
                "reference_logps": scores.reference_logps,
                "log_ratios": scores.log_ratios,
                "kl": scores.kl,
                "weights": scores.weights,
            }
            yield {
                "index": int(batch.index[pair]),
                "role": role,
                "token_ids": token_ids,
                "tokens": [tokenizer.decode([token]) for token in token_ids] if tokenizer else [],
                **{
                    name: values[pair][mask].tolist()
                    for name, values in columns.items()
                    if values is not None
                },
            }


def log_folder(trainer: Trainer) -> Path:
    """Folder of the run's logs."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def tokenizer_of(trainer: Trainer) -> Any:
    """Tokenizer of the run's data; None where they are plain loaders."""
    return getattr(getattr(trainer, "datamodule", None), "tokenizer", None)


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

        shares = from_all_ranks({"rows": self._rows})
        if not trainer.is_global_zero:
            return
        rows = sorted((row for share in shares for row in share["rows"]), key=_place)
        target = self._target(trainer)
        target.parent.mkdir(parents=True, exist_ok=True)
        table = datasets.Dataset.from_list(rows)
        if target.suffix == ".parquet":
            table.to_parquet(target)
        else:
            table.to_json(target)

    def _target(self, trainer: Trainer) -> Path:
        return log_folder(trainer) / "tokens.jsonl" if self.path is None else Path(self.path)


def _place(row: dict[str, Any]) -> tuple[int, str]:
    return row["index"], row["role"]
