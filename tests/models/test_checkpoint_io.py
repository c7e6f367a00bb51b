"""A checkpoint file is whole or not there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch.testing._internal.two_tensor import TwoTensor

from lit_tidpo.errors import InputError
from lit_tidpo.models.checkpoint_io import WholeCheckpointIO

CONTENT = {"state_dict": {"w": torch.arange(1000.0)}, "epoch": 3}


def test_what_was_written_is_read(tmp_path):
    WholeCheckpointIO().save_checkpoint(CONTENT, tmp_path / "a" / "c.ckpt")
    for reader in (WholeCheckpointIO(), TorchCheckpointIO()):
        found = reader.load_checkpoint(tmp_path / "a" / "c.ckpt")
        assert found["epoch"] == 3
        assert torch.equal(found["state_dict"]["w"], CONTENT["state_dict"]["w"])
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["c.ckpt"]


def test_states_that_wrap_tensors_are_read(tmp_path):
    """As those of torchao's optimizers of 8 bits, which Lightning's own way to read is refused."""
    state = TwoTensor(torch.arange(4.0), torch.arange(4.0) + 1)
    WholeCheckpointIO().save_checkpoint({"optimizer_states": [state]}, tmp_path / "c.ckpt")
    with torch.serialization.safe_globals([TwoTensor]):
        found = WholeCheckpointIO().load_checkpoint(tmp_path / "c.ckpt", weights_only=True)
        with pytest.raises(RuntimeError, match="Callable map_location not supported"):
            TorchCheckpointIO().load_checkpoint(tmp_path / "c.ckpt", weights_only=True)
    assert torch.equal(found["optimizer_states"][0].b, state.b)


@pytest.mark.parametrize("where", [0.1, 0.5, 0.9])
def test_a_flipped_bit_is_refused(tmp_path, where):
    file = tmp_path / "c.ckpt"
    WholeCheckpointIO().save_checkpoint(CONTENT, file)
    values = CONTENT["state_dict"]["w"].numpy().tobytes()
    content = bytearray(file.read_bytes())
    content[content.index(values) + int(where * len(values))] ^= 4
    file.write_bytes(content)
    assert TorchCheckpointIO().load_checkpoint(file)["epoch"] == 3  # torch does not notice
    with pytest.raises(InputError, match=r"c.ckpt' is corrupt: .*data/0"):
        WholeCheckpointIO().load_checkpoint(file)


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99])
def test_a_file_that_is_cut_off_is_refused(tmp_path, kept):
    file = tmp_path / "c.ckpt"
    WholeCheckpointIO().save_checkpoint(CONTENT, file)
    size = int(kept * file.stat().st_size) if isinstance(kept, float) else kept
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(InputError, match="cannot be read"):
        WholeCheckpointIO().load_checkpoint(file)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("failed")])
def test_what_cannot_be_written_leaves_the_earlier_one(tmp_path, monkeypatch, error):
    file = tmp_path / "c.ckpt"
    WholeCheckpointIO().save_checkpoint(CONTENT, file)
    before = file.read_bytes()

    def fail(content, target):
        target.write(b"half of it")
        raise error

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(InputError, match=r"cannot be written .* earlier ones are as they were"):
        WholeCheckpointIO().save_checkpoint(CONTENT, file)
    assert file.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.ckpt"]


def test_a_kill_in_the_middle_of_writing_leaves_the_earlier_one(tmp_path):
    file = tmp_path / "c.ckpt"
    WholeCheckpointIO().save_checkpoint(CONTENT, file)
    before = file.read_bytes()
    code = (
        "import os, signal, sys, torch\n"
        "from lit_tidpo.models.checkpoint_io import WholeCheckpointIO\n"
        "def half(content, target):\n"
        "    target.write(b'half of it'); target.flush()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "torch.save = half\n"
        "WholeCheckpointIO().save_checkpoint({}, sys.argv[1])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], env=os.environ, timeout=850)
    assert done.returncode == -signal.SIGKILL
    assert file.read_bytes() == before
    assert list(tmp_path.glob("*.ckpt")) == [file]
