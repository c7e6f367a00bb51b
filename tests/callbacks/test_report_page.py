"""The page of curves and token weights."""

import sys

import pytest
from lightning.pytorch import Trainer
from modules.runs import quiet_trainer
from torch.utils.data import DataLoader

from lit_tidpo import PreferenceModule
from lit_tidpo.callbacks.report_page import ReportPage
from lit_tidpo.errors import InputError
from lit_tidpo.losses.dpo_loss import DPOLoss
from lit_tidpo.losses.hinge_loss import HingeLoss
from lit_tidpo.models.policy import PolicyConfig
from lit_tidpo.modules.sft import SFTModule
from lit_tidpo.testing import tiny_batch, tiny_policy


def test_without_matplotlib_the_page_says_what_to_install_before_the_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"lit-tidpo\[report\]"):
        ReportPage().setup(None, PreferenceModule(PolicyConfig()), "fit")


def test_a_module_without_weights_is_refused_before_the_work():
    with pytest.raises(InputError, match="SFTModule has none"):
        ReportPage().setup(None, SFTModule(PolicyConfig()), "fit")


def test_no_pairs_are_refused():
    with pytest.raises(InputError, match="pairs=0"):
        ReportPage(pairs=0)


@pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")
@pytest.mark.parametrize(
    ("validation", "pages"),
    [
        pytest.param(lambda loader: loader, 1, id="one loader"),
        pytest.param(lambda loader: [loader], 1, id="a list of one"),
        pytest.param(lambda loader: [], 0, id="none"),
    ],
)
def test_plain_loaders_show_ids_and_no_validation_no_pairs(tmp_path, validation, pages):
    """The module embedded in a project of one's own, without our data module."""
    pytest.importorskip("matplotlib")
    module = PreferenceModule(PolicyConfig(), losses={"preference": DPOLoss()})
    module.attach(tiny_policy(), tiny_policy(seed=1))
    batch = tiny_batch()
    loader = DataLoader([batch], batch_size=None)
    trainer = Trainer(
        default_root_dir=tmp_path,
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ReportPage(pairs=1, metrics=["train/loss/total"])],
    )
    trainer.fit(module, loader, validation(loader))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<article") == pages
    token = batch.input_ids[0, batch.prompt_lengths[0]].item()
    assert page.count(f"> {token}</span>") >= pages
    prompt = " ".join(map(str, batch.input_ids[0, : batch.prompt_lengths[0]].tolist()))
    assert page.count(f"<span> {prompt}</span>") == pages


def test_a_validation_is_a_point_of_its_curve_and_each_of_several_losses_has_one(tmp_path):
    """Between validations the last one's values are still there."""
    pytest.importorskip("matplotlib")
    page = ReportPage()
    losses = {"one": DPOLoss(), "two": HingeLoss()}
    module = PreferenceModule(PolicyConfig(), losses=losses)
    module.attach(tiny_policy(), tiny_policy(seed=1))
    loader = DataLoader([tiny_batch()] * 4, batch_size=None)
    quiet_trainer(
        default_root_dir=tmp_path,
        max_steps=4,
        limit_val_batches=1,
        val_check_interval=2,
        callbacks=[page],
    ).fit(module, loader, loader)
    steps = {name: [step for step, _ in points] for name, points in page._curves.items()}
    assert steps["val/rewards/accuracies"] == [2, 4]
    assert steps["train/loss/one"] == steps["train/loss/two"] == [1, 2, 3, 4]
