"""Every shipped configuration parses and does what it says."""

from pathlib import Path

import pytest
import yaml

from lit_tidpo.cli import main
from lit_tidpo.data.datamodule import PreferenceDataModule
from lit_tidpo.modules.preference import PreferenceModule
from lit_tidpo.modules.sft import SFTModule
from lit_tidpo.plugins.parser import PluginArgumentParser, load_named_plugins

CONFIGS = Path(__file__).parents[1] / "configs"
ABLATIONS = sorted((CONFIGS / "ablations").glob("*.yaml"))


def parsed(*files, module=PreferenceModule):
    """The module that a stack of configurations builds."""
    args = [f"--config={file}" for file in files]
    load_named_plugins(args)
    parser = PluginArgumentParser()
    parser.add_lightning_class_args(module, "model")
    parser.add_lightning_class_args(PreferenceDataModule, "data")
    parser.add_argument("--config", action="config")
    parser.add_argument("--trainer", type=dict)
    parser.add_argument("--seed_everything", type=int)
    config = parser.parse_args([*args, "--data.tokenizer=builtin:policy"])
    return parser.instantiate_classes(config).model


def test_the_paper_s_hyperparameters():
    """Table B13: alpha 0.5, beta 0.1, gamma 0.1, lambda 0.7."""
    objective = parsed(CONFIGS / "paper.yaml").objective
    assert objective.losses["preference"].alpha == 0.5
    assert objective.beta == 0.1
    assert objective.factors == {"preference": 1.0, "triplet": 0.1}
    assert objective.weighting.mix == 0.7


def test_each_ablation_changes_the_paper_s_configuration_as_its_name_says():
    found = {path.stem: parsed(CONFIGS / "paper.yaml", path).objective for path in ABLATIONS}
    names = {name: type(o.importance).__name__ for name, o in found.items()}
    assert names["uniform"] == "uniform"
    assert found["uniform"].weighting.mix == 1.0
    assert names["random"] == "random"
    assert found["no_prior"].weighting.mix == 1.0
    assert names["no_prior"] == "gradient"
    assert found["softmax_prior"].weighting.prior == "softmax"
    assert "anchor" not in found["no_triplet"].needs
    assert "weights" in found["no_triplet"].needs
    assert found["plain_dpo"].needs == {"reference.logps"}
    assert len(found) == 6


def test_the_sft_configuration():
    module = parsed(CONFIGS / "sft_stdlib.yaml", module=SFTModule)
    assert module.policy_config.init == "random"


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
    assert yaml.safe_load((logs / "config.yaml").read_text())["model"]["beta"] == 0.1
    header = (logs / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train/loss/total", "val/rewards/accuracies", "train/importance/chosen_max_share"} <= {
        *header
    }
    page = (logs / "report.html").read_text()
    assert page.count("<section>") == 4
    assert "<svg" in page
    assert "<td>val/rewards/accuracies</td><td>0.500</td>" in page
    assert list(tmp_path.glob("runs/quickstart/tensorboard/*/events*"))
