"""What is measured: how many rows, and by which policies and detectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from benchmarks.evidence.defects.detectors import trained_detector
from benchmarks.evidence.defects.estimators import estimators
from benchmarks.evidence.defects.policies import trained_policy
from benchmarks.evidence.defects.rows import DefectRow, held_out_rows
from benchmarks.evidence.defects.scoring import Scores, frozen_policy, score_rows
from lit_tidpo.importance.detector_importance import DetectorImportance

START = "builtin:policy"


@dataclass(frozen=True)
class Extent:
    """How much is measured.

    Attributes:
        seeds: Trained policies and detectors.
        steps: Training steps of each policy.
        rows: Test rows.
        other_rows: Rows of the validation split that the position profile is learnt from, and of
            the training split that tokens are counted in.
        detail_rows: Rows of the costly measures: faithfulness, white space, agreement, integrated
            gradients.
        cost_pairs: Pairs of the batch that costs are measured on.
        integration_steps: Points of integrated gradients.
        detectors: Whether detectors are trained, one for each seed and one without each kind of
            defect; otherwise the shipped one serves.
    """

    seeds: int = 5
    steps: int = 100
    rows: int | None = 400
    other_rows: int | None = None
    detail_rows: int = 100
    cost_pairs: int = 16
    integration_steps: int = 8
    detectors: bool = True


class Subject:
    """Held-out rows, and the policies and detectors that score them.

    Args:
        extent: How much is measured.
        folder: Where trained policies and detectors are kept.
        tell: Called with a line about the progress.

    Attributes:
        rows: Rows of the test split.
        detail: The first of them, for the costly measures.
        start: The shipped policy, which is also the reference.
        policies: Policies after some training, one for each seed.
        detectors: Paths of detectors, one for each seed.
    """

    def __init__(self, extent: Extent, folder: Path, tell: Callable[[str], None]) -> None:
        self.extent = extent
        self.folder = folder
        self.tell = tell
        self.rows = held_out_rows("test", extent.rows)
        self.detail = self.rows[: extent.detail_rows]
        self.start = frozen_policy(START)
        self.detectors = [
            trained_detector(folder, seed) if extent.detectors else "builtin:detector"
            for seed in range(extent.seeds)
        ]
        tell("detectors are trained")
        self.policies = [
            frozen_policy(str(trained_policy(folder, seed, extent.steps)))
            for seed in range(extent.seeds)
        ]
        tell("policies are trained")

    def scores(self, policy: nn.Module, rows: Sequence[DefectRow], seed: int) -> Scores:
        """Scores of all estimators, with the detector and the random scores of a seed."""
        return score_rows(policy, self.start, rows, estimators(self.detectors[seed], seed))

    def detected(self, path: str, rows: Sequence[DefectRow]) -> list[Tensor]:
        """Scores of a detector."""
        name, detector = "detector", DetectorImportance(path)
        return score_rows(self.start, self.start, rows, {name: detector})[name]

    def others(self, split: str) -> list[DefectRow]:
        """Rows of another split."""
        return held_out_rows(split, self.extent.other_rows)
