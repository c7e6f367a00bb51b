"""Computing the reference's log-probs before a run, and serving them to its steps."""

from __future__ import annotations

import itertools
import shutil
import time
import uuid
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader

from lit_tidpo.errors import InputError
from lit_tidpo.models.kept_logps import (
    complete,
    describe,
    fingerprint,
    row_keys,
    rows_digest,
    write_part,
)
from lit_tidpo.models.models import Models
from lit_tidpo.models.needs import find
from lit_tidpo.models.reference import FrozenModel
from lit_tidpo.modules.rank_share import rank_share, response_batches
from lit_tidpo.modules.runtime import from_all_ranks
from lit_tidpo.objective import Objective

_OPTION = "model.reference_cache"
# Raise it when the same model and rows come to make other log-probs, so that old folders rest.
_VERSION = 1


class CachedReference:
    """Log-probs of the reference for the pairs of a run, each computed once.

    The whole data set of each loader is walked in order, so that shuffling, dropped batches and
    limits of the Trainer make no difference.

    Args:
        folder: Where they are kept; None computes nothing and serves nothing.
        objective: What will use them.

    Raises:
        InputError: If the objective needs more of the reference than log-probs.
    """

    def __init__(self, folder: str | None, objective: Objective) -> None:
        self.folder = None if folder is None else Path(folder).expanduser()
        if folder is not None:
            _check_needs(objective)
        self._objective = objective
        self._model: dict[str, str] = {}
        self._seen: list[tuple[object, str]] = []

    @property
    def replaces_runs(self) -> bool:
        """Whether no step has to run the reference."""
        return self.folder is not None and not {"anchor", "mismatched"} & self._objective.needs

    def describe(self, models: Models) -> None:
        """Note what the reference is, while the policy is in its starting state and whole."""
        self._seen = []
        if self.folder is not None:
            own = models.others["reference"].model
            self._model = describe(models.policy if own is None else own, base_only=own is None)

    def prepare(self, trainer: Trainer, models: Models, *loaders: Any) -> None:
        """Read the log-probs of all pairs, or compute and write them; then let the reference go.

        Args:
            trainer: Knows devices and precision.
            models: Learn what the reference's log-probs are.
            loaders: Loaders, lists of loaders, or None.

        Raises:
            InputError: If a loader's data cannot be walked, or what was kept is damaged.
        """
        if self.folder is None:
            return
        lists = [entry if isinstance(entry, (list, tuple)) else [entry] for entry in loaders]
        for loader in itertools.chain.from_iterable(lists):
            dataset, precision = getattr(loader, "dataset", None), str(trainer.precision)
            if loader is not None and not any(
                seen is dataset and computed_in == precision for seen, computed_in in self._seen
            ):
                share = rank_share(loader, trainer, _OPTION)
                self._read_or_compute(self.folder, share, trainer, models)
                self._seen.append((dataset, precision))
        reference = models.others["reference"]
        if isinstance(reference, FrozenModel) and not trainer.sanity_checking:
            reference.release()

    def _read_or_compute(
        self, root: Path, share: DataLoader[Any], trainer: Trainer, models: Models
    ) -> None:
        start = time.monotonic()
        keys = {key for batch in response_batches(share, _OPTION) for key in row_keys(batch)}
        all_keys = {key for part in from_all_ranks({"keys": keys}) for key in part["keys"]}
        content = {
            "version": _VERSION,
            "reference": self._model,
            "precision": str(trainer.precision),
            "rows": {"number": len(all_keys), "digest": rows_digest(all_keys)},
        }
        folder = root / fingerprint(content)
        # As rank 0 sees it, so that all ranks take the same branch.
        found = from_all_ranks({"found": folder.exists(), "run": uuid.uuid4().hex})[0]
        if not found["found"]:
            partial = root / f".{folder.name}.{found['run']}"
            try:
                rows = self._compute(share, trainer, models)
                partial.mkdir(parents=True, exist_ok=True)
                write_part(partial / f"part-{trainer.global_rank}.safetensors", rows)
                from_all_ranks({})
                if trainer.is_global_zero:
                    complete(partial, folder, content)
                from_all_ranks({})
            finally:
                shutil.rmtree(partial, ignore_errors=True)  # there only if something failed
        models.kept.open(folder)
        what = "read from" if found["found"] else "computed and kept in"
        rank_zero_info(
            f"reference log-probs of {len(all_keys)} responses {what} {str(folder)!r} in "
            f"{time.monotonic() - start:.1f} s"
        )

    def _compute(
        self, share: DataLoader[Any], trainer: Trainer, models: Models
    ) -> dict[bytes, Tensor]:
        """Log-probs of the response tokens of each row, by its key, on the CPU in fp32."""
        rows: dict[bytes, Tensor] = {}
        with torch.inference_mode(False), torch.no_grad():
            for batch in response_batches(share, _OPTION):
                keys, mask = row_keys(batch), batch.response_mask
                moved = trainer.strategy.batch_to_device(batch)
                with trainer.precision_plugin.forward_context():
                    logps = models.run_reference(moved).float().cpu()
                rows |= {key: logps[row][mask[row]] for row, key in enumerate(keys)}
        return rows


def _check_needs(objective: Objective) -> None:
    """Refuse components that log-probs of the pairs cannot serve."""
    asked = {f"loss {name!r}": part.needs for name, part in objective.losses.items()}
    asked[f"importance {type(objective.importance).__name__}"] = objective.importance_needs
    for component, needs in asked.items():
        for need in sorted(needs - {"reference.logps"}):
            if need.startswith("reference."):
                remedy = " (weighted_dpo: alpha=0)" if need == "reference.kl" else ""
                raise InputError(
                    f"{component} needs {need!r}, {find(need).words}, which cached log-probs "
                    f"cannot give: set the component up without it{remedy}, or leave "
                    "model.reference_cache out"
                )
