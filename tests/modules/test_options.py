"""Every option has an effect or is refused (G10): each field of the configuration is flipped.

A new option fails the first test until it has an entry here.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import liger_stand_in
import pytest
import torch
from gguf_files import write_gguf
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils.data import IterableDataset

from lit_tidpo.data import PreferenceDataModule
from lit_tidpo.errors import InputError
from lit_tidpo.importance.gradient_importance import GradientImportance
from lit_tidpo.importance.hybrid_importance import HybridImportance
from lit_tidpo.importance.priors import GaussianPrior, SoftmaxPrior
from lit_tidpo.importance.tempered_importance import TemperedImportance
from lit_tidpo.importance.uniform_importance import UniformImportance
from lit_tidpo.losses.dpo_loss import DPOLoss
from lit_tidpo.losses.triplet_loss import TripletLoss
from lit_tidpo.losses.weighted_dpo_loss import WeightedDPOLoss
from lit_tidpo.models.loading import build_policy
from lit_tidpo.models.policy import LoraOptions, ModelOptions, PolicyConfig
from lit_tidpo.modules.preference import PreferenceModule
from lit_tidpo.modules.sft import SFTModule
from lit_tidpo.sampling.anchor_options import AnchorOptions
from lit_tidpo.sampling.base import Sampler
from lit_tidpo.sampling.generation import Generation

from .runs import (
    QUIET,
    SGD,
    Recorder,
    byte_tokenizer,
    make_data,
    quiet_trainer,
    write_data,
    write_model,
)

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:.*fitting goes without validation"),
    pytest.mark.filterwarnings("ignore:split '(train|validation)'.*(truncated|dropped|as text)"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),  # the compiler's own
]

Options = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Flip:
    """Another value of one field, and where its effect is seen.

    Attributes:
        observe: Computes something from options; must differ between ``base`` and the flip.
        value: The other value, or what makes it.
        base: Options that both have.
        refused: Part of the message, if the other value is refused instead.
    """

    observe: Callable[[Any, Options], Any]
    value: Any
    base: Options = dataclasses.field(default_factory=dict)
    refused: str | None = None


# What is looked at. Each takes the world and the options of one class.


def policy(world, options):
    return build_policy(PolicyConfig(**{"path": world.model, **options}))


def logits(world, options):
    model = policy(world, options)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(parameter, 0.1)
    return _logits(model.eval(), world)


def _logits(model, world):
    with torch.no_grad():
        return model(input_ids=world.batch.input_ids).logits.flatten().tolist()


def is_noisy(world, options):
    model = policy(world, options)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(parameter, 0.1)
    return _logits(model, world) != _logits(model, world)


def dtypes(world, options):
    return {parameter.dtype for parameter in policy(world, options).parameters()}


def kernel(world, options):
    with torch.no_grad():
        found = policy(world, options)(input_ids=world.batch.input_ids, output_attentions=True)
    return len(found.attentions or ())


def trained_parameters(world, options):
    named = policy(world, options).named_parameters()
    return [(name, value.shape) for name, value in named if value.requires_grad]


def layer_calls(world, options):
    model, calls = policy(world, options), []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    model(input_ids=world.batch.input_ids).logits.sum().backward()
    return len(calls)


def compiled_layers(world, options):
    layers = policy(world, options).model.layers
    return sum(layer._compiled_call_impl is not None for layer in layers)


def kernels(world, options):
    """Layers that have a forward pass of their own, as Liger binds it."""
    with pytest.MonkeyPatch.context() as patch:
        liger_stand_in.install(patch)
        model = policy(world, options)
    return sum("forward" in vars(module) for module in model.modules())


def offloaded(world, options):
    """Whether what the graph keeps of a layer's input is that input itself, or a copy."""
    model, inputs = policy(world, options), []
    norm = model.model.norm
    norm.register_forward_pre_hook(lambda layer, given: inputs.append(given[0]))
    loss = model(input_ids=world.batch.input_ids).logits.sum()
    node, seen = [loss.grad_fn], set()
    while node:
        each = node.pop()
        kept = getattr(each, "_saved_self", None)
        seen |= {kept.data_ptr()} if isinstance(kept, torch.Tensor) else set()
        node += [follower for follower, _ in each.next_functions if follower is not None]
    return inputs[0].data_ptr() in seen


def widths_in_steps(world, options):
    """Types of an optimizer's state after a step."""
    made = module(world, {"policy": PolicyConfig(path=world.model, **options), "optimizer": ADAM})
    optimizer = made.configure_optimizers()["optimizer"]
    for parameter in made.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return {state["exp_avg"].dtype for state in optimizer.state.values()}


def saved_names(world, options):
    made = module(world, {"policy": PolicyConfig(path=world.model, **options)})
    checkpoint = {"state_dict": made.state_dict()}
    made._trainer = SimpleNamespace(optimizers=[])
    made.on_save_checkpoint(checkpoint)
    return sorted(checkpoint["state_dict"])


def remote_class(world, options):
    return type(policy(world, {"path": world.remote, **options})).__name__


def tokenizer_class(world, options):
    return type(world.data(**options).tokenizer).__name__


def lora(observe):
    def observed(world, options):
        adapters = LoraOptions(**{"r": 2, **options})
        return observe(world, {"path": world.other, "lora": adapters, "disable_dropout": False})

    return observed


def module(world, options):
    """A module whose reference differs from its policy, so that every term counts."""
    built = PreferenceModule(
        **{
            "policy": PolicyConfig(path=world.model),
            "reference": world.other,
            "losses": {"preference": WeightedDPOLoss()},
            **options,
        }
    )
    built.configure_model()
    return built


def loss(world, options):
    return module(world, options)(world.batch, 0).loss.tolist()


def weights(world, options):
    return module(world, options)(world.batch, 0).weights.tolist()


def positions_seen(part):
    """Positions that a part of the policy computes."""

    def observed(world, options):
        made, seen = module(world, options), []
        made.policy.get_submodule(part).register_forward_hook(
            lambda layer, inputs, output: seen.append(output.shape[:-1])
        )
        made(world.batch, 0)
        return seen

    return observed


def hybrid(world, options):
    return weights(world, {"importance": HybridImportance(**options)})


def gaussian(world, options):
    return hybrid(world, {"prior": GaussianPrior(**options)})


def reference_logps(world, options):
    context = module(world, options)(world.batch, 0).context
    return context["chosen"]["reference.logps"].tolist()


def losses(world, options):
    return sorted(module(world, options)(world.batch, 0).losses)


class Taught(UniformImportance):
    """Asks for a further model."""

    needs = frozenset({"teacher.logps"})

    def scores(self, results):
        return -results["teacher.logps"]


def taught(world, options):
    """Weights by a teacher of these options, of which there is one anyway."""
    teacher = ModelOptions(**{"path": world.other, **options})
    return weights(world, {"importance": Taught(), "models": {"teacher": teacher}})


def taught_by(world, options):
    return weights(world, {"importance": Taught(), **options})


def anchored(world, options):
    """Losses with a triplet, whose anchors and dropout are drawn."""
    losses = {"preference": DPOLoss(), "triplet": TripletLoss(margin=1e4)}
    base = {"losses": losses, "anchor": AnchorOptions(max_new_tokens=4)}
    made = module(world, {**base, **options})
    made._trainer = SimpleNamespace(
        global_rank=0,
        global_step=0,
        distributed_sampler_kwargs=None,
        strategy=SingleDeviceStrategy("cpu"),
    )
    return made(world.batch, made._seed_of(0, 0, 0)).loss.tolist()


def anchors(world, options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sampler = Generation(AnchorOptions(**{"max_new_tokens": 8, **options}))
        made = sampler.sample(world.policy, world.batch)
    return made.input_ids.tolist()


def generations(world, options):
    """Rows of each generation in two steps."""
    rows, anchor = [], AnchorOptions(**{"max_new_tokens": 2, **options})
    losses = {"preference": DPOLoss(), "triplet": TripletLoss()}
    made = module(world, {"losses": losses, "anchor": anchor, "optimizer": SGD})
    generate = made.policy.generate
    made.policy.generate = lambda **given: rows.append(len(given["input_ids"])) or generate(**given)
    quiet_trainer(max_steps=2).fit(made, world.data(lookahead=anchor.reuse_steps))
    return rows


def compilations(world, options):
    """Whether generation is asked to compile the policy; it is not made to, as that takes long."""
    asked, generate = [], world.policy.generate

    def ask(compile_config=None, cache_implementation=None, **given):
        asked.append(compile_config is not None)
        return generate(**given)

    world.policy.generate = ask
    try:
        anchors(world, options)
    finally:
        del world.policy.generate
    return asked


class Silent(Sampler):
    """Ends each response at once."""

    def sample(self, policy, batch, count=1, step=0, on_any_rank=None):
        rows = batch.role("chosen")
        ids = rows.input_ids.scatter(1, rows.prompt_lengths[:, None], 2)
        lengths = rows.prompt_lengths + 1
        return dataclasses.replace(rows, input_ids=ids, lengths=lengths, roles=("anchor",))


class Counted(GradientImportance):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def scores(self, results):
        self.calls += 1
        return super().scores(results)


def estimator_calls(world, options):
    estimator = Counted()
    made = module(world, {"importance": estimator, "optimizer": SGD, **options})
    quiet_trainer(max_steps=2).fit(made, world.data(batch_size=12))
    return estimator.calls


class Spoiled(DPOLoss):
    def loss(self, context):
        return super().loss(context) * torch.nan


def evaluated(world, options):
    made = module(world, options)
    (metrics,) = quiet_trainer(limit_val_batches=1.0).validate(made, world.data(), verbose=False)
    return sorted(metrics)


def kept_folders(world, options):
    made = module(world, {"losses": {"preference": DPOLoss()}, "optimizer": SGD, **options})
    quiet_trainer(max_steps=1).fit(made, world.data())
    return (world.tmp / "reference").exists()


def skipped(world, options):
    made = module(world, {"losses": {"preference": Spoiled()}, "optimizer": SGD, **options})
    quiet_trainer(max_steps=1).fit(made, world.data())
    return made.skipped_steps


def preference_rates(world, options):
    return _rates(module(world, {"optimizer": SGD, **options}), world)


def _rates(made, world):
    recorder = Recorder()
    quiet_trainer(max_steps=3, callbacks=[recorder]).fit(made, world.data())
    return [metrics["lr"] for metrics in recorder.metrics]


def preference_optimizer(world, options):
    return _optimizer(module(world, options), world)


def _optimizer(made, world):
    trainer = quiet_trainer(max_steps=1)
    trainer.fit(made, world.data())
    return type(trainer.optimizers[0]).__name__


def sft(world, options):
    return SFTModule(**{"policy": PolicyConfig(path=world.model), **options})


def sft_rates(world, options):
    return _rates(sft(world, {"optimizer": SGD, **options}), world)


def sft_optimizer(world, options):
    return _optimizer(sft(world, options), world)


def sft_loss(world, options):
    recorder = Recorder()
    quiet_trainer(max_steps=1, callbacks=[recorder]).fit(sft(world, options), world.data())
    return recorder.metrics[0]["train/loss"]


def loaders(name):
    """The batches of a loader: rows, prompts and widths."""

    def observed(world, options):
        data = world.data(**options)
        data.setup({"train": "fit", "val": "validate"}.get(name, name))
        loader = getattr(data, f"{name}_dataloader")()
        return [
            (batch.index.tolist(), batch.prompt_lengths.tolist(), batch.input_ids.tolist())
            for batch in loader
        ]

    return observed


train, validation = loaders("train"), loaders("val")


def announced(world, options):
    """Rows that each training batch announces."""
    return [
        [rows.index.tolist() for rows in batch.upcoming] for batch in train_loader(world, options)
    ]


def train_loader(world, options):
    data = world.data(**options)
    data.setup("fit")
    return data.train_dataloader()


def workers(world, options):
    return train_loader(world, options).num_workers


def is_stream(world, options):
    return isinstance(train_loader(world, options).dataset, IterableDataset)


def cached_files(world, options):
    train(world, options)
    return (world.tmp / "cache").exists()


def token_files(world, options):
    folder = tempfile.mkdtemp(dir=world.tmp)
    train(world, {**options, "cache_dir": folder})
    return len(list(Path(folder).glob("tokenised-*.arrow")))


# One entry for each field of each class.


def in_world(make):
    """A value that needs the world, by a function of it."""
    make.needs_world = True
    return make


@in_world
def noisy_policy(world):
    return PolicyConfig(path=world.model, disable_dropout=False)


@in_world
def other_policy(world):
    return PolicyConfig(path=world.other)


def of_world(name):
    return in_world(lambda world: getattr(world, name))


ADAM = functools.partial(torch.optim.Adam, lr=0.1)
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
RANKED = {"source": of_world("ranked"), "chat_template": CHAT}

FLIPS: dict[type, dict[str, Flip]] = {
    PolicyConfig: {
        "path": Flip(logits, of_world("other")),
        "revision": Flip(logits, "v2", refused="revision='v2' applies to the Hub"),
        "gguf_file": Flip(logits, "y.gguf", {"path": of_world("gguf"), "gguf_file": "!.gguf"}),
        "init": Flip(logits, "random"),
        "init_seed": Flip(logits, 1, {"init": "random"}),
        "dtype": Flip(dtypes, "bfloat16"),
        "added_tokens": Flip(trained_parameters, ["yes"]),
        "quantization": Flip(logits, "nf4", refused="cannot be trained"),
        "attn_implementation": Flip(kernel, "eager"),
        "lora": Flip(trained_parameters, LoraOptions(r=2)),
        "adapter": Flip(logits, of_world("adapter")),
        "activation_checkpointing": Flip(layer_calls, True),
        "compile_layers": Flip(compiled_layers, True),
        "liger": Flip(kernels, ["rope"]),
        "disable_dropout": Flip(is_noisy, False),
        "trust_remote_code": Flip(remote_class, True),
        "activation_offload": Flip(offloaded, True),
        "stochastic_rounding": Flip(widths_in_steps, True, {"dtype": "bfloat16"}),
        "save_frozen": Flip(saved_names, False, {"lora": LoraOptions(r=2)}),
    },
    LoraOptions: {
        "r": Flip(lora(trained_parameters), 4),
        "alpha": Flip(lora(logits), 8),
        "dropout": Flip(lora(is_noisy), 0.5),
        "target_modules": Flip(lora(trained_parameters), ["q_proj"]),
        "use_rslora": Flip(lora(logits), True),
        "use_dora": Flip(lora(trained_parameters), True),
        "modules_to_save": Flip(lora(trained_parameters), ["lm_head"]),
        "rank_pattern": Flip(lora(trained_parameters), {"q_proj": 3}),
        "alpha_pattern": Flip(lora(logits), {"q_proj": 3}),
    },
    HybridImportance: {
        "estimator": Flip(hybrid, UniformImportance()),
        "prior": Flip(hybrid, SoftmaxPrior()),
        "mix": Flip(hybrid, 0.2),
        "positions": Flip(hybrid, "all"),
    },
    GaussianPrior: {
        "sigma_divisor": Flip(gaussian, 8.0),
        "raw": Flip(gaussian, True),
    },
    ModelOptions: {
        "path": Flip(taught, of_world("model")),
        "revision": Flip(taught, "v2", refused="revision='v2' applies to the Hub"),
        "adapter": Flip(taught, of_world("adapter")),
        "prompt": Flip(taught, "Be kind. "),
    },
    AnchorOptions: {
        "source": Flip(anchors, "chosen_prefix"),
        "prefix_fraction": Flip(anchors, 0.2, {"source": "chosen_prefix"}),
        "max_new_tokens": Flip(anchors, 3),
        "temperature": Flip(anchors, 0.01),
        "top_k": Flip(anchors, 1),
        "top_p": Flip(anchors, 0.05),
        "reuse_steps": Flip(generations, 2),
        "compiled": Flip(compilations, True),
    },
    PreferenceModule: {
        "policy": Flip(loss, other_policy),
        "reference": Flip(reference_logps, None),
        "reference_cache": Flip(kept_folders, in_world(lambda world: str(world.tmp / "reference"))),
        "sampler": Flip(anchored, Silent()),
        "importance": Flip(weights, UniformImportance()),
        "models": Flip(
            taught_by,
            in_world(lambda world: {"teacher": ModelOptions(path=world.model)}),
            {"models": in_world(lambda world: {"teacher": ModelOptions(path=world.other)})},
        ),
        "weight_scale": Flip(weights, "sum"),
        "losses": Flip(losses, {"plain": DPOLoss()}),
        "loss_weights": Flip(loss, {"preference": 3.0}),
        "anchor": Flip(anchored, AnchorOptions(max_new_tokens=2)),
        "importance_every": Flip(estimator_calls, 2),
        "evaluation": Flip(evaluated, "rewards"),
        "layout": Flip(positions_seen("model.layers.0.mlp"), "padded"),
        "logits_at_once": Flip(positions_seen("lm_head"), 96),
        "non_finite": Flip(skipped, "raise", {"non_finite": "skip"}, refused="NaN or infinite"),
        "optimizer": Flip(preference_optimizer, ADAM),
        "lr_schedule": Flip(preference_rates, "cosine"),
        "warmup_steps": Flip(preference_rates, 2),
        "seed": Flip(anchored, 1),
    },
    SFTModule: {
        "policy": Flip(sft_loss, other_policy),
        "optimizer": Flip(sft_optimizer, ADAM),
        "lr_schedule": Flip(sft_rates, "linear"),
        "warmup_steps": Flip(sft_rates, 2),
        "seed": Flip(sft_loss, 1, {"policy": noisy_policy}),
    },
    PreferenceDataModule: {
        "source": Flip(train, of_world("file")),
        "tokenizer": Flip(train, of_world("words")),
        "tokenizer_revision": Flip(
            train, "v2", refused="tokenizer_revision='v2' applies to the Hub"
        ),
        "trust_remote_code": Flip(tokenizer_class, True, {"tokenizer": of_world("remote_words")}),
        "added_tokens": Flip(train, ["yes"]),
        "tokenizer_gguf_file": Flip(
            train, "y.gguf", {"tokenizer": of_world("gguf"), "tokenizer_gguf_file": "!.gguf"}
        ),
        "name": Flip(train, "en", {"source": of_world("file")}, refused="name='en' picks"),
        "revision": Flip(train, "v2", refused="revision='v2' applies to the Hub"),
        "columns": Flip(train, {"chosen": "rejected", "rejected": "chosen"}),
        "against": Flip(train, "worst", {**RANKED, "against": "next"}),
        "score": Flip(train, "other", {**RANKED, "against": "next"}),
        "trained_turns": Flip(
            train,
            "all",
            {"source": of_world("turns"), "chat_template": CHAT, "invalid_rows": "drop"},
        ),
        "train_split": Flip(train, "validation"),
        "validation_split": Flip(validation, "train"),
        "test_split": Flip(loaders("test"), "train", {"test_split": "validation"}),
        "predict_split": Flip(loaders("predict"), "train"),
        "validation_fraction": Flip(train, 0.25, {"source": of_world("file")}),
        "max_rows": Flip(train, 5),
        "max_length": Flip(train, 10),
        "max_prompt_length": Flip(train, 2, {"max_length": 8, "invalid_rows": "drop"}),
        "chat_template": Flip(train, CHAT, {"source": of_world("chat")}),
        "special_tokens": Flip(train, "control", {"source": of_world("special")}),
        "invalid_rows": Flip(
            train, "raise", {"source": of_world("broken"), "invalid_rows": "drop"}, "identical"
        ),
        "batch_size": Flip(train, 3),
        "eval_batch_size": Flip(validation, 2),
        "drop_last": Flip(train, True, {"batch_size": 5}),
        "group_by_length": Flip(train, True),
        "pad_to_multiple": Flip(train, 16),
        "lookahead": Flip(announced, 2),
        "num_workers": Flip(workers, 1),
        "processes": Flip(token_files, 2),
        "streaming": Flip(is_stream, True),
        "shuffle_buffer": Flip(train, 1, {"streaming": True}),
        "cache_dir": Flip(cached_files, of_world("cache")),
        "seed": Flip(train, 1),
    },
}


@pytest.fixture(scope="module")
def world(model_folder, source, batch, adapter, tmp_path_factory):
    """Models and data that the flips choose from."""
    tmp = tmp_path_factory.mktemp("world")
    rows = [{"prompt": "Q", "chosen": "yes", "rejected": answer} for answer in ("no", "yes")]
    _write(tmp / "broken.jsonl", rows)
    turns = {
        role: [{"role": "user", "content": "Q"}, {"role": "assistant", "content": text}]
        for role, text in (("chosen", "yes"), ("rejected", "no"))
    }
    _write(tmp / "chat.jsonl", [turns])
    longer = {role: [*own, own[0], own[1]] for role, own in turns.items()}
    _write(tmp / "turns.jsonl", [turns, longer])
    turns = json.loads(json.dumps(turns).replace('"Q"', '"Q</s>"'))
    _write(tmp / "special.jsonl", [turns])
    texts = [("a", 3, 1), ("b", 2, 2), ("c", 1, 3)]
    completions = [{"text": text, "score": one, "other": two} for text, one, two in texts]
    _write(tmp / "ranked.jsonl", [{"prompt": "Q", "completions": completions}])
    other_source = write_data(tmp / "data", train=8)
    for merged, epsilon in (("!!", 1e-6), ("ye", 0.5)):
        original = write_model(tmp / merged, vocabulary=260, rms_norm_eps=epsilon)
        write_gguf(original, tmp / "gguf", merged)
    return SimpleNamespace(
        tmp=tmp,
        gguf=str(tmp / "gguf"),
        model=model_folder,
        other=write_model(tmp / "other", rms_norm_eps=0.5, attention_dropout=0.0),
        adapter=adapter,
        remote=_remote(model_folder, tmp / "remote"),
        words=_words(tmp / "words"),
        remote_words=_remote_words(tmp / "remote_words"),
        file=f"{other_source}/train.jsonl",
        chat=str(tmp / "chat.jsonl"),
        turns=str(tmp / "turns.jsonl"),
        special=str(tmp / "special.jsonl"),
        ranked=str(tmp / "ranked.jsonl"),
        broken=str(tmp / "broken.jsonl"),
        cache=str(tmp / "cache"),
        batch=batch,
        policy=build_policy(PolicyConfig(path=model_folder)),
        data=lambda **options: make_data(
            **{"source": source, "model_folder": model_folder, **_renamed(options)}
        ),
    )


def _renamed(options):
    names = {"tokenizer": "model_folder"}
    return {names.get(name, name): value for name, value in options.items()}


def _write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _words(folder):
    """The byte-level tokenizer with a word."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["yes"])
    tokenizer.save_pretrained(folder)
    return str(folder)


def _remote_words(folder):
    """A tokenizer that brings its own code."""
    _words(folder)
    (folder / "own_words.py").write_text(
        "from transformers import PreTrainedTokenizerFast\n\n\n"
        "class OwnWords(PreTrainedTokenizerFast):\n    pass\n"
    )
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": [None, "own_words.OwnWords"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return str(folder)


def _remote(model_folder, folder):
    """A folder that brings its own modelling code."""
    folder.mkdir()
    (folder / "own_llama.py").write_text(
        "from transformers import LlamaForCausalLM\n\n\n"
        "class OwnLlama(LlamaForCausalLM):\n    pass\n"
    )
    build_policy(PolicyConfig(path=model_folder)).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "llama", "architectures": ["OwnLlama"]}
    config["auto_map"] = {"AutoModelForCausalLM": "own_llama.OwnLlama"}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def fields(kind):
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind)]
    return list(inspect.signature(kind).parameters)


def test_every_field_has_a_flip():
    for kind, flips in FLIPS.items():
        assert sorted(flips) == sorted(fields(kind)), kind


@pytest.mark.parametrize(
    ("name", "flip"),
    [
        pytest.param(name, flip, id=f"{kind.__name__}.{name}")
        for kind, flips in FLIPS.items()
        for name, flip in flips.items()
    ],
)
def test_a_flipped_field_shows(world, name, flip):
    def resolved(value):
        return value(world) if getattr(value, "needs_world", False) else value

    base = {key: resolved(value) for key, value in flip.base.items()}
    flipped = {**base, name: resolved(flip.value)}
    before = flip.observe(world, base)
    if flip.refused is not None:
        with pytest.raises(InputError, match=flip.refused):
            flip.observe(world, flipped)
        return
    assert flip.observe(world, base) == before  # the same options show the same
    assert flip.observe(world, flipped) != before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "options",
    [
        lambda v: {"importance": TemperedImportance(UniformImportance(), v)},
        lambda v: {"importance": HybridImportance(prior=GaussianPrior(v))},
        lambda v: {"losses": {"preference": WeightedDPOLoss(alpha=v)}},
        lambda v: {"losses": {"triplet": TripletLoss(margin=v)}},
        lambda v: {"anchor": AnchorOptions(temperature=v)},
        lambda v: {"loss_weights": {"preference": v}},
        lambda v: {"optimizer": functools.partial(torch.optim.AdamW, lr=v)},
    ],
)
def test_numbers_that_are_not_finite_are_refused(value, options):
    with pytest.raises(InputError):
        PreferenceModule(PolicyConfig("builtin:policy"), **options(value))
