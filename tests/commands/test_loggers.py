"""The loggers of the page docs/logging.md, all at once: what arrives in each, and no secret."""

import csv
import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from modules.runs import pairs

from lit_tidpo.cli import main
from lit_tidpo.importance.base import ImportanceEstimator

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of their libraries
PAGE = Path(__file__).parents[2] / "docs" / "logging.md"
PACKAGES = {
    "CSVLogger": "lightning",
    "TensorBoardLogger": "tensorboard",
    "WandbLogger": "wandb",
    "MLFlowLogger": "mlflow",
    "CometLogger": None,  # these two have no form without network that keeps anything: stand-ins
    "LitLogger": None,
}
SECRET = "open-sesame"


class Keyed(ImportanceEstimator):
    """Growing weights, by a service that asks for a key."""

    def __init__(self, api_key: str = "") -> None:
        self.api_key = api_key

    def scores(self, results):
        return results.mask.cumsum(-1).float()


class StandInComet:
    """An experiment of comet_ml's, as far as Lightning's logger and ours use it."""

    project_name = "preferences"

    def __init__(self, **options):
        self.held = []

    def get_key(self):
        return "key"

    def flush(self):
        pass

    def __getattr__(self, name):
        return lambda *places, **named: self.held.append((name, places, named))


class StandIn:
    """An experiment of litlogger's, as far as Lightning's logger uses it."""

    def __init__(self, **options):
        self.held = {}

    def __getitem__(self, name):
        return SimpleNamespace(
            append=lambda value, step: self.held.setdefault(name, []).append((step, value))
        )

    def __setitem__(self, name, value):
        self.held[name] = value

    def print_url(self):
        pass

    def finalize(self, status):
        pass


@pytest.fixture(scope="module")
def experiments():
    return {"lit": StandIn(), "comet": StandInComet()}


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory, experiments):
    """The folder in which a run with every logger that is installed was started."""
    if find_spec("matplotlib") is None:
        pytest.skip("the pictures need matplotlib")
    folder = tmp_path_factory.mktemp("run")
    blocks = map(
        yaml.safe_load, re.findall(r"```yaml\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    )
    options = [block["trainer"] for block in blocks]
    loggers = [each for block in options for each in block.get("logger", [])]
    names = [each["class_path"].rpartition(".")[2] for each in loggers]
    assert {*names} == PACKAGES.keys()
    usable = [
        logger
        for name, logger in zip(names, loggers, strict=True)
        if PACKAGES[name] is None or find_spec(PACKAGES[name])
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs(4)))
    trainer = {
        "logger": usable,
        "callbacks": [each for block in options for each in block.get("callbacks", [])],
        "accelerator": "cpu",
        "max_steps": 2,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
    }
    loss = {"class_path": "dpo", "init_args": {"weighted": True}}
    importance = {"class_path": f"{__name__}.Keyed", "init_args": {"api_key": SECRET}}
    data = {"source": "data.jsonl", "batch_size": 2, "max_length": 48, "cache_dir": "cache"}
    config = {
        "trainer": trainer,
        "model": {
            "policy": {"path": model},
            "losses": {"preference": loss},
            "importance": importance,
        },
        "data": {**data, "validation_split": "train"},
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(config))
    made = SimpleNamespace(
        Experiment=lambda **options: experiments["lit"],
        File=lambda path: Path(path).name,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setitem(sys.modules, "litlogger", made)
        patch.setattr("lightning.pytorch.loggers.comet._COMET_AVAILABLE", True)
        comet = SimpleNamespace(ExperimentConfig=dict, start=lambda **options: experiments["comet"])
        patch.setitem(sys.modules, "comet_ml", comet)
        patch.setenv("WANDB_SILENT", "true")
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        main(["fit", "--config=mine.yaml"])
        if find_spec("wandb"):
            import wandb

            wandb.finish()
    return folder


def test_csv_and_the_files_beside_it(folder):
    (file,) = folder.rglob("metrics.csv")
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert any(row["val/loss/total"] for row in rows)
    beside = {each.relative_to(file.parent).as_posix() for each in file.parent.rglob("*.*")}
    pictures = {f"weights/pair-{index}-step-2.png" for index in (0, 1)}
    assert {"generations.jsonl", "report.html", "config.yaml", *pictures} <= beside


def test_tensorboard(folder):
    """By its reader: the picture in the event file is the one beside the logs."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from matplotlib.image import imread
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = folder.rglob("events.out.tfevents*")
    found = EventAccumulator(str(file))
    found.Reload()
    tags = found.Tags()
    assert {"train/loss/total", "val/rewards/accuracies"} <= {*tags["scalars"]}
    assert {"generations/0/text_summary", "generations/1/text_summary"} <= {*tags["tensors"]}
    (held,) = found.Images("weights/1")
    assert held.step == 2
    (folder / "held.png").write_bytes(held.encoded_image_string)
    (beside,) = (folder / "runs").rglob("pair-1-step-2.png")
    pixels, expected = imread(folder / "held.png"), imread(beside)
    assert (pixels[..., :3] == expected[..., :3]).all()
    assert pixels.std() > 0


def test_weights_and_biases(folder):
    pytest.importorskip("wandb", reason="wandb is not installed")
    (files,) = folder.glob("wandb/offline-run-*/files")
    (table,) = files.rglob("generations*.json")
    content = json.loads(table.read_text())
    assert content["columns"] == ["index", "prompt", "response"]
    assert [row[0] for row in content["data"]] == [0, 1]
    assert len([*files.rglob("weights/*.png")]) == 2
    (page,) = files.rglob("report*.html")
    assert "Token weights" in page.read_text()
    (record,) = folder.glob("wandb/offline-run-*/*.wandb")
    assert b"train/loss/total" in record.read_bytes()
    assert b"weight_scale" in record.read_bytes()


def test_mlflow(folder):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("preferences").experiment_id])
    assert run.data.params["importance/init_args/api_key"] == "***"
    steps = [each.step for each in client.get_metric_history(run.info.run_id, "train/loss/total")]
    assert steps[-1] == 1
    held = {each.relative_to(folder / "mlflow").as_posix() for each in folder.rglob("mlflow/**/*")}
    for name in ("generations/step-2.json", "weights/0/pair-0-step-2.png", "report.html"):
        assert any(each.endswith(name) for each in held), name


def test_comet(folder, experiments):
    found = experiments["comet"].held
    metrics = [(named["step"], {*places[0]}) for name, places, named in found if "metrics" in name]
    assert any(step == 1 and "train/loss/total" in names for step, names in metrics)
    texts = [named for name, _, named in found if name == "log_text"]
    assert [(each["step"], each["metadata"]["index"]) for each in texts] == [(2, 0), (2, 1)]
    pictures = [(named["name"], named["step"]) for name, _, named in found if name == "log_image"]
    assert pictures == [("weights/0", 2), ("weights/1", 2)]
    assert [named["file_name"] for name, _, named in found if name == "log_asset"] == [
        "report.html"
    ]
    assert "weight_scale" in str(found)
    assert SECRET not in str(found)


def test_litlogger(folder, experiments):
    found = experiments["lit"]
    assert [step for step, _ in found.held["train/loss/total"]][-1] == 1
    assert found.held["weight_scale"] == "mean"
    files = {value for value in found.held.values() if isinstance(value, str)}
    assert {"generations.jsonl", "pair-0-step-2.png", "report.html"} <= files
    assert SECRET not in str(found.held)


def test_no_secret_is_written(folder):
    holding = [
        file.name
        for file in folder.rglob("*")
        if file.is_file() and SECRET.encode() in file.read_bytes()
    ]
    assert holding == ["mine.yaml"]
