"""A page beside the logs: curves of the run and the weights of a few pairs, token by token."""

from __future__ import annotations

import difflib
from collections import defaultdict
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from markupsafe import Markup

from lit_tidpo.callbacks.drawings import check_drawing, draw_curves
from lit_tidpo.callbacks.exhibits import exhibits
from lit_tidpo.callbacks.first_pairs import first_pairs
from lit_tidpo.callbacks.places import free_file, log_folder
from lit_tidpo.errors import InputError
from lit_tidpo.explaining.page import rendered
from lit_tidpo.modules.preference import PreferenceModule
from lit_tidpo.modules.runtime import told_by_data

_METRICS = (
    "train/loss/total",
    "train/rewards/margins",
    "val/rewards/accuracies",
    "val/logps/accuracies",
)
_OF_SINGLE_RESPONSES = (
    "train/loss/total",
    "train/rewards/chosen",
    "train/rewards/rejected",
    "val/rewards/chosen",
    "val/rewards/rejected",
)


class ReportPage(Callback):
    """Writes ``report.html`` into the log folder when ``fit`` ends, or ``report-1.html``, ...

    Loggers that hold pages get it, too: Weights & Biases, MLflow, Comet and LitLogger. A run that
    goes on from a checkpoint draws its curves from the start.

    Args:
        pairs: Pairs of the first validation batch to show.
        metrics: Logged metrics to draw against the step; by default loss, margins and accuracies
            (of single responses the rewards by label), and each loss of several. Those of the
            validation are also told in numbers, before and after: the first is measured by
            ``num_sanity_val_steps: -1``. What the run logs no value of is left out.
    """

    def __init__(
        self,
        pairs: int = 4,
        metrics: list[str] | None = None,
    ) -> None:
        if pairs < 1:
            raise InputError(f"report pairs={pairs}: expected 1 or more")
        self.pairs = pairs
        self.metrics = list(metrics or ())
        self._named = metrics is not None
        self._curves: dict[str, list[tuple[int, float]]] = defaultdict(list)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out before the work whether the page can be made."""
        if not isinstance(pl_module, PreferenceModule):
            raise InputError(
                f"the report page shows token weights, which {type(pl_module).__name__} has none "
                "of: expected a PreferenceModule"
            )
        losses = [f"train/loss/{name}" for name in pl_module.objective.losses]
        if not self._named:
            is_paired = told_by_data(trainer, "is_paired", True)
            self.metrics = [*(_METRICS if is_paired else _OF_SINGLE_RESPONSES)]
            self.metrics += losses if len(losses) > 1 else []
        known = [f"{stage}/{name}" for stage in ("train", "val") for name in pl_module.means.names]
        for metric in self.metrics:
            if metric not in (*known, "train/skipped_steps"):
                near = difflib.get_close_matches(metric, known, n=3)
                raise InputError(
                    f"report metric {metric!r} is none that is logged; the nearest are {near}"
                )
        check_drawing("the report page")

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Keep the step's values; those of the last validation are still there, and are not its."""
        self._keep(trainer, "train/")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the validation's values."""
        self._keep(trainer, "val/")

    def _keep(self, trainer: Trainer, stage: str) -> None:
        for name in self.metrics:
            if not name.startswith(stage):
                continue
            value = trainer.callback_metrics.get(name)
            points = self._curves[name]
            if value is not None and (
                not points or points[-1] != (trainer.global_step, float(value))
            ):
                points.append((trainer.global_step, float(value)))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the page."""
        assert isinstance(pl_module, PreferenceModule)
        pairs = first_pairs(trainer, pl_module, self.pairs)
        folder = log_folder(trainer)  # by all ranks: Lightning broadcasts it
        if not trainer.is_global_zero:
            return
        drawn = {name: points for name in self.metrics if (points := self._curves[name])}
        lacking = sorted({*self.metrics} - drawn.keys())
        if lacking and self._named:
            rank_zero_warn(f"the report leaves out {lacking}: the run logged no value of them")
        spans = self._before_and_after()
        page = rendered(
            "report",
            title=f"{folder}, {trainer.global_step} steps",
            spans=spans,
            curves=Markup(draw_curves(drawn) if drawn else ""),
            pairs=pairs,
        )
        folder.mkdir(parents=True, exist_ok=True)
        target = free_file(folder / "report.html")
        target.write_text(page, encoding="utf-8")
        for exhibit in exhibits(trainer.loggers):
            exhibit.page(target)
        for name, (before, after) in spans.items():
            rank_zero_info(f"{name}: {before:.3f} before, {after:.3f} after")
        rank_zero_info(f"report: {target}")

    def state_dict(self) -> dict[str, Any]:
        """The curves so far."""
        return {"curves": dict(self._curves)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the curves."""
        self._curves.update(state_dict["curves"])

    def _before_and_after(self) -> dict[str, tuple[float, float]]:
        """First and last value of each validation metric."""
        return {
            name: (points[0][1], points[-1][1])
            for name in self.metrics
            if name.startswith("val/") and (points := self._curves[name])
        }
