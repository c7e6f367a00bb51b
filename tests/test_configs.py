"""Every shipped configuration parses and does what it says."""

import functools
import inspect
import itertools
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import strategies
from lightning.pytorch.strategies import StrategyRegistry

from lit_tidpo.cli import main
from lit_tidpo.commands.options import check_names
from lit_tidpo.data.datamodule import PreferenceDataModule
from lit_tidpo.importance.gradient_importance import GradientImportance
from lit_tidpo.importance.hybrid_importance import HybridImportance
from lit_tidpo.importance.priors import GaussianPrior, SoftmaxPrior
from lit_tidpo.losses.base import LossComponent
from lit_tidpo.modules.preference import PreferenceModule
from lit_tidpo.modules.sft import SFTModule
from lit_tidpo.plugins.parser import PluginArgumentParser, load_named_plugins
from lit_tidpo.plugins.registry import LOSSES, load, registered
from lit_tidpo.schedules import CosineSchedule
from lit_tidpo.strategies.families import FAMILIES
from lit_tidpo.strategies.family import DataParallel
from lit_tidpo.strategies.fully_sharded import FullySharded
from lit_tidpo.strategies.model_parallel import ModelParallel
from lit_tidpo.strategies.zero import Zero

CONFIGS = Path(__file__).parents[1] / "configs"
METHODS = sorted((CONFIGS / "methods").glob("*.yaml"))
BUILT_IN = {e.name for e in registered(LOSSES) if e.value.startswith("lit_tidpo.losses.")}
REAL = CONFIGS / "real"
TRAINING, DATA = ("lora", "full"), ("hh_rlhf", "ultrafeedback")
MODELS = sorted(path for path in REAL.glob("*.yaml") if path.stem not in {*TRAINING, *DATA})
ABLATIONS = sorted((CONFIGS / "ablations").glob("*.yaml"))


@functools.cache
def parser_of(module):
    parser = PluginArgumentParser()
    parser.add_lightning_class_args(module, "model")
    parser.add_lightning_class_args(PreferenceDataModule, "data")
    parser.add_argument("--config", action="config")
    parser.add_argument("--trainer", type=dict)
    parser.add_argument("--seed_everything", type=int)
    return parser


def parsed(*files, module=PreferenceModule):
    """The module that a stack of configurations builds."""
    args = [f"--config={file}" for file in files]
    load_named_plugins(args)
    parser = parser_of(module)
    config = parser.parse_args([*args, "--data.tokenizer=builtin:policy"])
    return parser.instantiate_classes(config).model


def test_the_paper_s_hyperparameters():
    """Table B13: alpha 0.5, beta 0.1, gamma 0.1, lambda 0.7."""
    objective = parsed(CONFIGS / "paper.yaml").objective
    assert objective.losses["preference"].alpha == 0.5
    assert objective.losses["preference"].beta == objective.beta == 0.1
    assert objective.factors == {"preference": 1.0, "triplet": 0.1}
    assert objective.importance.mix == 0.7


def test_equation_8_is_one_line():
    """L1 norm of the largest logit's gradient, mixed with a normalised Gaussian of sigma T / 4."""
    text = yaml.safe_load((CONFIGS / "paper.yaml").read_text(encoding="utf-8"))
    assert text["model"]["importance"] == "hybrid"
    importance = parsed(CONFIGS / "paper.yaml").objective.importance
    assert isinstance(importance, HybridImportance)
    assert (importance.mix, importance.positions) == (0.7, "response")
    assert vars(importance.estimator) == vars(GradientImportance("max_logit", "l1", "policy"))
    assert vars(importance.prior) == {"sigma_divisor": 4.0, "raw": False}


def test_each_ablation_changes_the_paper_s_configuration_as_its_name_says():
    found = {path.stem: parsed(CONFIGS / "paper.yaml", path).objective for path in ABLATIONS}
    names = {name: type(o.importance).__name__ for name, o in found.items()}
    assert names["uniform"] == "uniform"
    assert names["random"] == names["no_prior"] == names["softmax_prior"] == "hybrid"
    assert type(found["random"].importance.estimator).__name__ == "random"
    assert found["random"].importance.mix == 0.7
    assert isinstance(found["no_prior"].importance.estimator, GradientImportance)
    assert found["no_prior"].importance.mix == 1.0
    assert isinstance(found["softmax_prior"].importance.estimator, GradientImportance)
    assert isinstance(found["softmax_prior"].importance.prior, SoftmaxPrior)
    assert found["softmax_prior"].importance.mix == 0.7
    assert "anchor" not in found["no_triplet"].needs
    assert "weights" in found["no_triplet"].needs
    assert found["plain_dpo"].needs == {"reference.logps"}
    assert len(found) == 6


@pytest.mark.parametrize("ablation", ["no_prior", "softmax_prior"])
def test_an_ablation_of_the_prior_keeps_the_estimator(ablation):
    """The quick start leaves the last token out, with or without its prior."""
    stack = [CONFIGS / "quickstart.yaml", CONFIGS / "ablations" / f"{ablation}.yaml"]
    importance = parsed(*stack).objective.importance
    assert importance.estimator.exclude_target
    ablated = {"no_prior": (1.0, GaussianPrior), "softmax_prior": (0.7, SoftmaxPrior)}
    assert (importance.mix, type(importance.prior)) == ablated[ablation]


def test_the_recommendation_is_tdpo2_alone():
    objective = parsed(CONFIGS / "paper.yaml", CONFIGS / "recommended.yaml").objective
    assert type(objective.importance).__name__ == "uniform"
    (loss,) = objective.losses.values()
    assert (loss.kl_term, loss.alpha, loss.beta) == ("tdpo2", 0.5, 0.1)


@pytest.mark.parametrize("task", ["code", "arithmetic"])
@pytest.mark.parametrize(
    ("method", "estimator"),
    [("planted", "supplied"), ("log_ratio", "log_ratio"), ("detector", "detector")],
)
def test_the_laboratory_s_estimators_are_mixed_with_the_prior(task, method, estimator):
    folder = CONFIGS / "evidence"
    objective = parsed(folder / f"{task}.yaml", folder / "methods" / f"{method}.yaml").objective
    assert type(objective.importance.estimator).__name__ == estimator
    assert objective.importance.mix == 0.7
    assert set(objective.losses) == {"preference", "triplet"}


def test_the_laboratory_s_tdpo1():
    stack = [CONFIGS / "paper.yaml", CONFIGS / "evidence" / "methods" / "tdpo1.yaml"]
    objective = parsed(*stack).objective
    assert type(objective.importance).__name__ == "uniform"
    assert [loss.kl_term for loss in objective.losses.values()] == ["tdpo1"]


def test_the_sft_configuration():
    module = parsed(CONFIGS / "sft_stdlib.yaml", module=SFTModule)
    assert module.policy_config.init == "random"


def test_each_loss_has_a_configuration():
    # the balance of experts is no method: it joins the losses of one
    assert {path.stem for path in METHODS} >= BUILT_IN - {"router"}


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_it_stacks_on_the_paper_s_and_trains_its_loss_alone(path):
    module = parsed(CONFIGS / "paper.yaml", path)
    text = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]
    (name,) = module.objective.losses
    (chosen,) = text["losses"].values()
    chosen = {"class_path": chosen} if isinstance(chosen, str) else chosen
    loss = module.objective.losses[name]
    assert isinstance(loss, load(LOSSES, chosen["class_path"], LossComponent))
    plain = {k: v for k, v in chosen.get("init_args", {}).items() if k != "divergence"}
    assert {key: getattr(loss, key) for key in plain} == plain
    assert module.objective.factors == {name: 1.0}
    rate = module.optimization.specimen().defaults["lr"]
    assert rate == text["optimizer"]["init_args"]["lr"]


@pytest.mark.parametrize("training", TRAINING)
@pytest.mark.parametrize("data", DATA)
def test_real_data_and_training_stack_on_a_method(data, training):
    own = REAL / f"{training}.yaml"
    stack = [MODELS[0], REAL / f"{data}.yaml", CONFIGS / "methods" / "dpo.yaml", own]
    module = parsed(*stack)
    assert list(module.objective.losses) == ["dpo"]
    assert (module.policy_config.lora is not None) == (training == "lora")
    expected = yaml.safe_load(own.read_text(encoding="utf-8"))["model"]["optimizer"]["init_args"]
    made = module.optimization.specimen()
    assert (type(made), made.defaults["lr"]) == (torch.optim.AdamW, expected["lr"])


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_a_real_model_s_head_has_its_command_and_its_memory(path, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    head = "".join(re.findall(r"^# ?(.*\n)", path.read_text(encoding="utf-8"), re.M))
    words = shlex.split(re.search(r"lit-tidpo (fit .*)", head.replace("\\\n", " ")).group(1))
    check_names(words)
    files = [Path(name) for option, name in itertools.pairwise(words) if option == "--config"]
    assert files[0] == path.relative_to(CONFIGS.parent)
    module = parsed(*files)
    assert path.stem == module.policy_config.path.partition("/")[2].lower()
    assert re.search(r"[\d.]+ GB with adapters, [\d.]+ GB with all parameters", head)


def test_a_configuration_names_a_schedule_by_its_class(tmp_path):
    path = tmp_path / "annealed.yaml"
    path.write_text(
        """
        model:
          importance: null
          losses:
            dpo:
              class_path: dpo
              init_args:
                beta: {class_path: LinearSchedule, init_args: {start: 0.1, end: 0.5}}
            simpo:
              class_path: simpo
              init_args: {margin: {class_path: PiecewiseSchedule, init_args: {points: [[0, 1]]}}}
          loss_weights: {simpo: {class_path: CosineSchedule, init_args: {start: 1.0, end: 0.0}}}
        """
    )
    objective = parsed(CONFIGS / "paper.yaml", path).objective
    assert vars(objective.losses["dpo"].beta) == {"start": 0.1, "end": 0.5, "until": 1.0}
    assert objective.losses["simpo"].margin.points == [[0, 1]]
    assert isinstance(objective.factors["simpo"], CosineSchedule)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("ddp", DataParallel),
        ("fsdp2", ModelParallel),
        ("tensor_parallel", ModelParallel),
        ("fsdp2_tensor_parallel", ModelParallel),
        ("fsdp", FullySharded),
        ("deepspeed_stage_1", Zero),
        ("deepspeed_stage_2", Zero),
        ("deepspeed_stage_3", Zero),
    ],
)
def test_each_strategy_is_of_a_family_that_is_known(name, family):
    text = (CONFIGS / "strategies" / f"{name}.yaml").read_text(encoding="utf-8")
    devices = 4 if name == "fsdp2_tensor_parallel" else 2
    assert f"configs/strategies/{name}.yaml --trainer.devices {devices}" in text
    strategy = yaml.safe_load(text)["trainer"]["strategy"]
    if isinstance(strategy, str):
        entry = StrategyRegistry[strategy]
        kind, options = entry["strategy"], entry["init_params"]
    else:
        kind, options = (
            getattr(strategies, strategy["class_path"].rpartition(".")[2]),
            strategy["init_args"],
        )
    assert next(each for each in FAMILIES if issubclass(kind, each.strategies)) is family
    assert options.keys() <= inspect.signature(kind).parameters.keys()


@pytest.mark.slow
def test_the_quick_start_writes_checkpoint_curves_configuration_and_page(tmp_path, monkeypatch):
    for package in ("matplotlib", "tensorboard"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    main(
        [
            "fit",
            f"--config={CONFIGS / 'quickstart.yaml'}",
            "--trainer.enable_progress_bar=false",
            "--trainer.max_steps=2",
            "--trainer.val_check_interval=2",
            "--trainer.limit_val_batches=2",
            "--trainer.log_every_n_steps=1",
            "--data.batch_size=2",
        ]
    )
    logs = tmp_path / "runs/quickstart/lightning_logs/version_0"
    assert list(logs.glob("checkpoints/*.ckpt"))
    losses = yaml.safe_load((logs / "config.yaml").read_text())["model"]["losses"]
    assert losses["preference"]["init_args"]["beta"] == 0.1
    header = (logs / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train/loss/total", "val/rewards/accuracies", "train/importance/chosen_max_share"} <= {
        *header
    }
    page = (logs / "report.html").read_text()
    assert page.count("<article ") == 4
    assert "<svg" in page
    assert "<td>val/rewards/accuracies</td><td>0.500</td>" in page
    main(["explain", str(next(logs.glob("checkpoints/*.ckpt"))), "--pairs", "1"])
    assert '<option value="0">of the run</option>' in (tmp_path / "explanation.html").read_text()
    assert list(tmp_path.glob("runs/quickstart/tensorboard/*/events*"))
