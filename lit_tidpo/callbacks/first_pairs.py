"""The pairs of a run that pages and pictures show."""

from __future__ import annotations

from lightning.pytorch import Trainer

from lit_tidpo.callbacks.token_writer import tokenizer_of
from lit_tidpo.explaining.pairs import ExplainedPair, explained_pairs
from lit_tidpo.modules.preference import PreferenceModule
from lit_tidpo.structures import Results


def first_pairs(trainer: Trainer, module: PreferenceModule, count: int) -> list[ExplainedPair]:
    """The first pairs of the validation split with their weights; all ranks have to ask.

    Args:
        trainer: The Trainer, within ``fit``.
        module: What it trains.
        count: Pairs at the most; there are no more than in a validation batch.
    """
    loaders = trainer.val_dataloaders
    first = next(iter(loaders), None) if isinstance(loaders, (list, tuple)) else loaders
    if first is None:
        return []
    batch = trainer.strategy.batch_to_device(next(iter(first)))
    was_training = module.training
    module.eval()
    # Not the module's own method: a strategy may have to gather weights first.
    module.on_predict_batch_start(batch, 0)
    prediction = trainer.strategy.predict_step(batch, 0)
    module.train(was_training)
    results = Results(prediction.batch, prediction.values)
    weights = {"weight": results["weights"]}
    return explained_pairs([(results, weights)], tokenizer_of(trainer))[:count]
