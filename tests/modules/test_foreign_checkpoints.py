"""Checkpoints that another strategy, or another number of processes, cannot go on from."""

from __future__ import annotations

import pytest
import torch
import torch.distributed.checkpoint as dcp

from lit_tidpo.commands.checkpoints import check_complete
from lit_tidpo.errors import InputError
from lit_tidpo.strategies import zero
from lit_tidpo.strategies.families import family_of

from .test_refusals import STRATEGIES, _zero

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture
def folders(tmp_path):
    """A folder of each kind, with as much in it as tells what wrote it."""
    for writer, name in (("model_parallel", "state_dict.weight"), ("fsdp", "model.weight")):
        dcp.save({name: torch.ones(1)}, checkpoint_id=tmp_path / writer, no_dist=True)
        torch.save({}, tmp_path / writer / "meta.pt")
    (tmp_path / "zero" / "checkpoint").mkdir(parents=True)
    (tmp_path / "zero" / "latest").write_text("checkpoint")
    (tmp_path / "cut").mkdir()
    (tmp_path / "file").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("kind", "checkpoint", "reason"),
    [
        ("ddp", "fsdp", r"alone can go on with: set that strategy .*or export the checkpoint"),
        ("ddp", "zero", r"wrote it \(deepspeed\) alone"),
        ("split", "fsdp", r"wrote it \(fsdp\) alone"),
        ("fsdp", "model_parallel", r"wrote it \(model_parallel\) alone"),
        ("deepspeed", "fsdp", r"wrote it \(fsdp\) alone"),
        ("deepspeed", "file", "goes on from folders that it wrote itself: take .*ddp.yaml"),
        ("fsdp", "cut", "is no checkpoint: expected a file, or a folder"),
    ],
)
def test_checkpoints_that_a_strategy_cannot_go_on_from(folders, kind, checkpoint, reason):
    family = family_of(STRATEGIES[kind]())
    with pytest.raises(InputError, match=reason):
        family.check_resumed(folders / checkpoint, 2)


def test_checkpoints_that_a_strategy_goes_on_from(folders):
    for kind, own in (("split", "model_parallel"), ("fsdp", "fsdp")):
        for checkpoint in (own, "file"):
            family_of(STRATEGIES[kind]()).check_resumed(folders / checkpoint, 4)


@pytest.mark.parametrize(("stage", "processes"), [(3, 4), (2, 2)])
def test_shares_of_deepspeed_go_to_as_many_processes_alone(folders, monkeypatch, stage, processes):
    monkeypatch.setattr(zero, "zero_layout", lambda path: (stage, 2))
    with pytest.raises(
        InputError, match=rf"in 2 shares.*to {processes} processes at stage 3: set .*stage_{stage} "
    ):
        family_of(_zero()).check_resumed(folders / "zero", processes)
    monkeypatch.setattr(zero, "zero_layout", lambda path: (3, 2))
    family_of(_zero()).check_resumed(folders / "zero", 2)


def test_deepspeeds_folder_is_complete_once_latest_is_written(folders):
    check_complete(folders / "zero")
    with pytest.raises(InputError, match="cannot be read"):
        check_complete(folders / "cut")
