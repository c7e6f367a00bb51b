"""Pictures of token weights while a policy is trained."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_tidpo.callbacks.drawings import check_drawing, draw_pair
from lit_tidpo.callbacks.exhibits import exhibits
from lit_tidpo.callbacks.first_pairs import first_pairs
from lit_tidpo.callbacks.places import log_folder
from lit_tidpo.errors import InputError
from lit_tidpo.modules.preference import PreferenceModule


class WeightPictures(Callback):
    """Draws the tokens of the first validation pairs, shaded by weight, at each validation.

    ``weights/pair-INDEX-step-STEP.png`` in the log folder, and the loggers that hold pictures:
    TensorBoard, Weights & Biases, MLflow, Comet, LitLogger. Shades, colours and marks are those of
    the page of ``lit-tidpo explain``: orange above zero, blue below, underlined what differs.

    Args:
        pairs: How many pairs, of one validation batch at the most.
    """

    def __init__(self, pairs: int = 2) -> None:
        if pairs < 1:
            raise InputError(f"pictures pairs={pairs}: expected 1 or more")
        self.pairs = pairs

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out before the work whether there is anything to draw, and what draws."""
        if not isinstance(pl_module, PreferenceModule):
            raise InputError(
                f"pictures show token weights, which {type(pl_module).__name__} has none of: "
                "expected a PreferenceModule"
            )
        check_drawing("a picture of weights")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute the weights on all ranks, whose models may be sharded, and draw on the first."""
        assert isinstance(pl_module, PreferenceModule)
        folder, step = log_folder(trainer) / "weights", trainer.global_step
        found = first_pairs(trainer, pl_module, self.pairs)
        if not trainer.is_global_zero:
            return
        from matplotlib.image import imsave

        folder.mkdir(parents=True, exist_ok=True)
        for pair in found:
            pixels = draw_pair(pair, f"pair {pair.index}, step {step}")
            file = folder / f"pair-{pair.index}-step-{step}.png"
            imsave(file, pixels)
            for exhibit in exhibits(trainer.loggers):
                exhibit.picture(f"weights/{pair.index}", pixels, step, file)
