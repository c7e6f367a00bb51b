"""Computing the reference's log-probs before a run, and serving them to its steps."""

from __future__ import annotations

import itertools
import math
import shutil
import time
import uuid
from collections.abc import Iterator, Sized
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from lit_tidpo.contracts import NEEDS
from lit_tidpo.errors import InputError
from lit_tidpo.modules.runtime import from_all_ranks
from lit_tidpo.objective import Objective
from lit_tidpo.reference import Reference
from lit_tidpo.reference_cache import (
    LogprobStore,
    ReleasableReference,
    complete,
    describe,
    fingerprint,
    row_keys,
    rows_digest,
    write_part,
)
from lit_tidpo.structures import ResponseBatch

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
        self.folder = None if folder is None else Path(folder)
        if folder is not None:
            _check_needs(objective)
        self._objective = objective
        self._store = LogprobStore()
        self._model: dict[str, str] = {}
        self._datasets: list[object] = []

    @property
    def replaces_runs(self) -> bool:
        """Whether no step has to run the reference."""
        return self.folder is not None and "anchor" not in self._objective.needs

    def describe(self, policy: nn.Module, reference: Reference) -> None:
        """Note what the reference is, while the policy is in its starting state and whole."""
        if self.folder is not None:
            own = reference.model
            self._model = describe(policy if own is None else own, base_only=own is None)

    def lookup(self, batch: ResponseBatch) -> Tensor | None:
        """Log-probs of a batch, ``[N, T]``; None before a Trainer has had any computed.

        Raises:
            InputError: If a row was not in the data.
        """
        return self._store.lookup(batch) if self._datasets else None

    def prepare(
        self, trainer: Trainer, policy: nn.Module, reference: Reference, *loaders: Any
    ) -> None:
        """Read the log-probs of all pairs, or compute and write them; then let the reference go.

        Args:
            trainer: Knows devices and precision.
            policy: Runs as the reference where that has no model of its own.
            reference: The reference.
            loaders: Loaders, lists of loaders, or None.

        Raises:
            InputError: If a loader's data cannot be walked, or what was kept is damaged.
        """
        if self.folder is None:
            return
        lists = [entry if isinstance(entry, (list, tuple)) else [entry] for entry in loaders]
        for loader in itertools.chain.from_iterable(lists):
            dataset = getattr(loader, "dataset", None)
            if loader is not None and not any(seen is dataset for seen in self._datasets):
                share = _share(loader, trainer)
                self._read_or_compute(self.folder, share, trainer, policy, reference)
                self._datasets.append(dataset)
        if isinstance(reference, ReleasableReference) and not trainer.sanity_checking:
            reference.release()

    def _read_or_compute(
        self,
        root: Path,
        share: DataLoader[Any],
        trainer: Trainer,
        policy: nn.Module,
        reference: Reference,
    ) -> None:
        start = time.monotonic()
        keys = {key for batch in _batches(share) for key in row_keys(batch)}
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
                rows = self._compute(share, trainer, policy, reference)
                partial.mkdir(parents=True, exist_ok=True)
                write_part(partial / f"part-{trainer.global_rank}.safetensors", rows)
                from_all_ranks({})
                if trainer.is_global_zero:
                    complete(partial, folder, content)
                from_all_ranks({})
            finally:
                shutil.rmtree(partial, ignore_errors=True)  # there only if something failed
        self._store.open(folder)
        what = "read from" if found["found"] else "computed and kept in"
        rank_zero_info(
            f"reference log-probs of {len(all_keys)} responses {what} {str(folder)!r} in "
            f"{time.monotonic() - start:.1f} s"
        )

    def _compute(
        self, share: DataLoader[Any], trainer: Trainer, policy: nn.Module, reference: Reference
    ) -> dict[bytes, Tensor]:
        """Log-probs of the response tokens of each row, by its key, on the CPU in fp32."""
        rows: dict[bytes, Tensor] = {}
        with torch.inference_mode(False), torch.no_grad():
            for batch in _batches(share):
                keys, mask = row_keys(batch), batch.response_mask
                moved = trainer.strategy.batch_to_device(batch)
                with (
                    trainer.precision_plugin.forward_context(),
                    reference.active(policy, moved.input_ids.device) as model,
                ):
                    # The reference in the policy's place: nothing else has to run.
                    (forward,) = self._objective.run(model, reference, moved, frozenset())
                logps = forward.policy.logps.float().cpu()
                rows |= {key: logps[row][mask[row]] for row, key in enumerate(keys)}
        return rows


def _check_needs(objective: Objective) -> None:
    """Refuse components that log-probs of the pairs cannot serve."""
    asked = {f"loss {name!r}": part.needs for name, part in objective.losses.items()}
    asked[f"importance {type(objective.importance).__name__}"] = objective.importance_needs()
    for component, needs in asked.items():
        for need in sorted(needs - {"reference.logps"}):
            if need == "kl" or need.startswith("reference."):
                remedy = " (weighted_dpo: alpha=0)" if need == "kl" else ""
                raise InputError(
                    f"{component} needs {need!r}, the {NEEDS[need]}, which cached log-probs cannot "
                    f"give: set the component up without it{remedy}, or leave "
                    "model.reference_cache out"
                )


def _share(loader: Any, trainer: Trainer) -> DataLoader[Any]:
    """A loader of this rank's part of a data set, in order; all ranks get as many batches."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        raise InputError(
            "model.reference_cache needs a DataLoader whose data can be walked before the run, "
            f"got a stream ({type(getattr(loader, 'dataset', loader)).__name__}): set "
            "data.streaming=false, or leave reference_cache out"
        )
    size, world = len(cast(Sized, loader.dataset)), trainer.world_size
    end = math.ceil(size / world) * world
    batch_size = loader.batch_size
    if batch_size is None and loader.batch_sampler is not None:  # a batch sampler of the user's
        batch_size = getattr(loader.batch_sampler, "batch_size", None) or 1
    return DataLoader(
        loader.dataset,
        batch_size=batch_size,
        sampler=[position % size for position in range(trainer.global_rank, end, world)],
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        generator=torch.Generator(),  # the global one is training's
    )


def _batches(share: DataLoader[Any]) -> Iterator[ResponseBatch]:
    for batch in share:
        if not isinstance(batch, ResponseBatch):
            raise InputError(
                f"model.reference_cache: the loader gives {type(batch).__name__}, expected "
                "ResponseBatch; let its collate_fn make one"
            )
        yield batch
