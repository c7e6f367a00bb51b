"""What is checked of each family: every part of a run, against plain forwards of single rows."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from modules.runs import byte_tokenizer, make_data, quiet_trainer, write_data
from transformers import AutoModelForCausalLM

from lit_tidpo.errors import InputError
from lit_tidpo.importance.attention_importance import AttentionImportance
from lit_tidpo.models.export import export_checkpoint
from lit_tidpo.models.policy import LoraOptions, PolicyConfig
from lit_tidpo.models.quirks.modes import evaluating
from lit_tidpo.modules.preference import PreferenceModule
from lit_tidpo.sampling.anchor_options import AnchorOptions

from .families import CHECKS

SGD = functools.partial(torch.optim.SGD, lr=0.02)
END = 2


@torch.no_grad()
def row_by_row(policy, batch):
    """Log-probs of the response tokens, each row alone and without padding."""
    logps = torch.zeros(batch.input_ids.shape)
    for row, length in enumerate(batch.lengths.tolist()):
        ids, start = batch.input_ids[row : row + 1, :length], int(batch.prompt_lengths[row])
        values = policy(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
        logps[row, start:length] = values[start - 1 : -1].gather(-1, ids[0, start:, None])[:, 0]
    return logps


@torch.no_grad()
def continued(policy, ids, count):
    """The likeliest token, again and again, without cache, mask or padding."""
    for _ in range(count):
        logits = policy(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        ids = [*ids, int(logits.argmax())]
        if ids[-1] == END:
            break
    return ids


class Compared(Callback):
    """Compares the log-probs of each pass in training with plain forwards, row by row."""

    def __init__(self):
        self.passes = 0

    def on_train_start(self, trainer, module):
        run = module.models.run

        def compared(requests):
            found = run(requests)
            for results in found:
                self.passes += 1
                with evaluating(module.built_policy):
                    expected = row_by_row(module.built_policy, results.batch)
                torch.testing.assert_close(
                    results["policy.logps"].detach(), expected, atol=1e-3, rtol=1e-4
                )
            return found

        module.models.run = compared


class World:
    """A family's model on disk, and data."""

    def __init__(self, family, folder: Path):
        self.family = family
        self.folder = folder
        self.model = str(folder / "model")
        family.model().save_pretrained(self.model)
        byte_tokenizer().save_pretrained(self.model)
        self.data = make_data(write_data(folder / "data"), self.model)

    def module(self, policy=None, **options):
        return PreferenceModule(
            PolicyConfig(self.model, **(policy or {})),
            **{"optimizer": SGD, "anchor": AnchorOptions(max_new_tokens=4), **options},
        )

    @functools.cached_property
    def trained(self):
        """A module after some steps of the whole objective."""
        module = self.module()
        self.checkpoint = self.fit(module, "fit", 3)
        return module

    @functools.cached_property
    def batch(self):
        self.data.setup("fit")
        return next(iter(self.data.train_dataloader()))

    def fit(self, module, name, steps):
        """Train, compare each pass, and give the checkpoint."""
        compared = Compared()
        saver = ModelCheckpoint(self.folder / name, save_last=True)
        trainer = quiet_trainer(
            max_steps=steps, callbacks=[compared, saver], enable_checkpointing=True
        )
        trainer.fit(module, self.data)
        assert compared.passes >= steps
        return self.folder / name / "last.ckpt"


def check_fit(world):
    """Three steps of the default objective, with anchors; gives the layout."""
    return world.trained.models.layout


def check_anchors(world):
    """The likeliest anchors are those of each row alone."""
    policy, sampler, batch = world.trained.built_policy, world.trained.sampler, world.batch
    sampler.options = AnchorOptions(max_new_tokens=6, top_k=1)
    sampled = sampler.sample(policy, batch)
    assert len(set(batch.prompt_lengths.tolist())) > 1
    policy.eval()
    for row in range(batch.size):
        prompt = batch.input_ids[row, : int(batch.prompt_lengths[row])].tolist()
        found = sampled.input_ids[row, : int(sampled.lengths[row])].tolist()
        assert found == continued(policy, prompt, 6)


def check_predict(world):
    """Weights of the validation data are finite, and log-probs those of rows alone."""
    policy = world.trained.built_policy.eval()
    for found in quiet_trainer().predict(world.trained, world.data):
        assert bool(found.values["weights"].isfinite().all())
        expected = row_by_row(policy, found.batch)
        torch.testing.assert_close(found.values["policy.logps"], expected, atol=1e-3, rtol=1e-4)


def check_export(world):
    """What is written gives the logits of what was trained."""
    policy = world.trained.built_policy.eval()
    export_checkpoint(world.checkpoint, world.folder / "exported")
    again = AutoModelForCausalLM.from_pretrained(world.folder / "exported").eval()
    ids = torch.arange(3, 13).unsqueeze(0)
    with torch.no_grad():
        logits = [model(input_ids=ids, use_cache=False).logits for model in (policy, again)]
    torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)


def check_lora(world):
    """Two steps with adapters on all linear layers, which are merged in the end."""
    module = world.module({"lora": LoraOptions(r=2)})
    checkpoint = world.fit(module, "lora", 2)
    named = module.built_policy.named_parameters()
    assert any(bool(value.any()) for name, value in named if "lora_B" in name)
    export_checkpoint(checkpoint, world.folder / "merged")


def check_attention(world):
    """A step with the importance from eager attention."""
    module = world.module({"attn_implementation": "eager"}, importance=AttentionImportance())
    world.fit(module, "attention", 1)


def check_checkpointing(world):
    """Recomputed activations give the same gradients."""
    gradients = []
    for on in (False, True):
        module = world.module({"activation_checkpointing": on})
        module.configure_model()
        module(world.batch, sampling_seed=1).loss.mean().backward()
        found = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
        gradients.append(torch.cat(found))
    scale = gradients[0].abs().max()
    torch.testing.assert_close(gradients[1] / scale, gradients[0] / scale, atol=1e-4, rtol=0)


RUNS = dict(
    zip(
        CHECKS,
        (
            check_fit,
            check_anchors,
            check_predict,
            check_export,
            check_lora,
            check_attention,
            check_checkpointing,
        ),
        strict=True,
    )
)


def outcomes(family, folder: Path) -> dict[str, str]:
    """By check: what it gave, or ``refused: `` and the words; anything else is raised."""
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        world = World(family, folder)
        for name, check in RUNS.items():
            try:
                found[name] = check(world) or "works"
            except InputError as error:
                found[name] = f"refused: {str(error).replace(world.model, 'PATH')}"
            except Exception as error:
                raise AssertionError(f"{family.name}, {name}: {type(error).__name__}") from error
    return found
