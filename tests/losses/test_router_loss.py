"""The balancing loss of mixtures of experts, against transformers' own function and by hand."""

import pytest
import torch
import transformers
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from lit_tidpo.errors import InputError
from lit_tidpo.losses.dpo_loss import DPOLoss
from lit_tidpo.losses.router_loss import RouterLoss
from lit_tidpo.models.policy import PolicyConfig
from lit_tidpo.modules.preference import PreferenceModule
from lit_tidpo.testing import check_loss_component, tiny_batch, tiny_policy

SIZES = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
}


def mixtral(**settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.MixtralForCausalLM(transformers.MixtralConfig(**SIZES, **settings))


def module(policy, **options):
    made = PreferenceModule(
        PolicyConfig(), losses={"preference": DPOLoss(), "router": RouterLoss()}, **options
    )
    made.attach(policy)
    return made


def router_logits(policy, batch):
    """Of every real token, layer by layer, each row alone."""
    rows = [
        policy(batch.input_ids[row : row + 1, :length], output_router_logits=True).router_logits
        for row, length in enumerate(batch.lengths.tolist())
    ]
    return tuple(torch.cat(layer) for layer in zip(*rows, strict=True))


def test_it_is_that_of_transformers_over_all_real_tokens_of_the_batch():
    policy, batch = mixtral(router_aux_loss_coef=0.03), tiny_batch()
    made = module(policy)
    found = made(batch)
    expected = 0.03 * load_balancing_loss_func(router_logits(policy, batch), 4, 2)
    torch.testing.assert_close(found.losses["router"], expected.expand(batch.size))
    torch.testing.assert_close(found.loss, found.losses["preference"] + found.losses["router"])
    assert made.models.layout == "padded"


def test_it_is_the_sum_of_shares_times_probabilities():
    """Switch Transformer, Eq. 4, in plain loops; transformers adds up over the k choices."""
    policy, batch = mixtral(router_aux_loss_coef=1.0), tiny_batch()
    found = module(policy)(batch).losses["router"][0].item()
    logits = torch.cat(router_logits(policy, batch)).double()
    chosen, probabilities = [0.0] * 4, [0.0] * 4
    for token in logits:
        shares = token.softmax(-1).tolist()
        for expert in sorted(range(4), key=lambda each: -shares[each])[:2]:
            chosen[expert] += 1 / len(logits)
        for expert in range(4):
            probabilities[expert] += shares[expert] / len(logits)
    by_hand = 4 * sum(c * p for c, p in zip(chosen, probabilities, strict=True))
    assert found == pytest.approx(by_hand, rel=1e-5)


def test_the_routers_get_its_gradient_and_its_factor_counts():
    gradients = []
    for factor in (0.0, 1.0, 3.0):
        policy = mixtral(router_aux_loss_coef=1.0)
        # Of two equal models DPO has a gradient of the routers, too: its difference counts.
        module(policy, loss_weights={"router": factor})(tiny_batch()).loss.mean().backward()
        gradients.append(policy.model.layers[0].mlp.gate.weight.grad.clone())
    one, three = gradients[1] - gradients[0], gradients[2] - gradients[0]
    assert float(one.abs().max()) > 1e-4
    torch.testing.assert_close(three, 3 * one, rtol=1e-3, atol=1e-6)


def test_it_keeps_the_contract_of_a_loss():
    check_loss_component(RouterLoss())


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (tiny_policy, "LlamaForCausalLM computes no balancing loss"),
        (lambda: mixtral(router_aux_loss_coef=0.0), "router_aux_loss_coef=0 in the configuration"),
    ],
)
def test_a_model_without_one_is_refused(policy, words):
    with pytest.raises(InputError, match=words):
        module(policy())


def test_packed_rows_are_refused_where_prompts_count():
    with pytest.raises(InputError, match=r"layout=packed .*router_loss is computed row by row"):
        module(mixtral(), layout="packed")
