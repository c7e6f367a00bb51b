import pytest
import torch
from lit_tidpo_ablation import AblationImportance

from lit_tidpo.errors import InputError
from lit_tidpo.models.models import Models
from lit_tidpo.testing import check_importance_estimator, tiny_batch, tiny_policy


@pytest.mark.parametrize("target", ["response_logp", "max_logit"])
def test_keeps_the_contract(target):
    check_importance_estimator(AblationImportance(target))


def changed(policy, ids, start, target):
    """The target of a row without each of its response tokens, one plain forward each."""
    embeddings = policy.get_input_embeddings()(ids)
    values = []
    for place in (None, *range(start, ids.shape[1])):
        kept = embeddings.clone()
        if place is not None:
            kept[0, place] = 0
        logits = policy(inputs_embeds=kept).logits[0]
        logps = logits.log_softmax(-1)
        summed = sum(logps[t - 1, ids[0, t]] for t in range(start, ids.shape[1]))
        values.append(summed if target == "response_logp" else logits[-1].max())
    return (torch.stack(values[1:]) - values[0]).abs()


@pytest.mark.parametrize("target", ["response_logp", "max_logit"])
def test_equals_forwards_with_an_embedding_of_zero(target):
    policy, batch, estimator = tiny_policy(), tiny_batch(), AblationImportance(target)
    (results,) = Models(policy).run([(batch, estimator.needs)])
    scores = estimator.scores(results)
    for row, (start, end) in enumerate(
        zip(batch.prompt_lengths.tolist(), batch.lengths.tolist(), strict=True)
    ):
        with torch.no_grad():
            expected = changed(policy, batch.input_ids[row : row + 1, :end], start, target)
        assert expected.max() > 1e-2
        torch.testing.assert_close(scores[row, start:end], expected, atol=1e-4, rtol=1e-3)


def test_another_target_is_refused():
    with pytest.raises(InputError, match="target='loss': expected one of"):
        AblationImportance("loss")
