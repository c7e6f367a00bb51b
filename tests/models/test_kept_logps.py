"""Log-probs on disk: named by content, complete or refused."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from lit_tidpo.errors import InputError
from lit_tidpo.models.kept_logps import (
    KeptLogps,
    complete,
    describe,
    fingerprint,
    row_keys,
    rows_digest,
    write_part,
)
from lit_tidpo.models.loading import build_policy
from lit_tidpo.models.policy import LoraOptions, PolicyConfig
from lit_tidpo.testing import tiny_batch, tiny_policy

pytestmark = pytest.mark.filterwarnings(  # by peft
    "ignore:`is_gradient_checkpointing` is deprecated"
)

CONTENT = {"version": 1, "rows": "those of the tests"}


def logps_of(batch, seed=0):
    """Made-up log-probs of each row's response."""
    generator = torch.Generator().manual_seed(seed)
    values = -torch.rand(batch.input_ids.shape, generator=generator)
    return values.masked_fill(~batch.response_mask, 0.0)


def rows_of(batch, values):
    return {key: values[row][batch.response_mask[row]] for row, key in enumerate(row_keys(batch))}


def keep(root, *batches):
    """A complete folder with one part per batch."""
    partial = root / ".partial"
    partial.mkdir(parents=True)
    for number, batch in enumerate(batches):
        write_part(partial / f"part-{number}.safetensors", rows_of(batch, logps_of(batch)))
    folder = root / fingerprint(CONTENT)
    complete(partial, folder, CONTENT)
    return folder


@pytest.fixture
def batch():
    return tiny_batch(pairs=4, weights=False)


@pytest.fixture
def folder(tmp_path, batch):
    return keep(tmp_path, batch)


# Rows


def test_a_row_is_its_tokens_and_where_its_response_starts(batch):
    keys = row_keys(batch)
    assert len(set(keys)) == 8
    wider = torch.nn.functional.pad(batch.input_ids, (0, 5), value=7)
    assert row_keys(dataclasses.replace(batch, input_ids=wider)) == keys
    assert row_keys(batch.role("rejected")) == keys[4:]
    assert row_keys(dataclasses.replace(batch, index=batch.index + 9)) == keys
    other = batch.input_ids.clone()
    other[5, 1] += 1
    changed = row_keys(dataclasses.replace(batch, input_ids=other))
    assert [one == two for one, two in zip(changed, keys, strict=True)].count(False) == 1
    moved = row_keys(dataclasses.replace(batch, prompt_lengths=batch.prompt_lengths - 1))
    assert not set(moved) & set(keys)
    cut = row_keys(dataclasses.replace(batch, lengths=batch.lengths - 1))
    assert not set(cut) & set(keys)


def test_a_set_of_rows_has_one_name():
    first, second = b"a" * 16, b"b" * 16
    assert rows_digest([first, second]) == rows_digest([second, first, second])
    assert rows_digest([first]) != rows_digest([first, second])


# Models


def test_a_model_is_its_weights_and_configuration():
    known = describe(tiny_policy())
    assert describe(tiny_policy()) == known
    other = describe(tiny_policy(seed=1))
    assert other["config"] == known["config"]
    assert other["weights"] != known["weights"]
    changed = tiny_policy()
    with torch.no_grad():
        changed.get_input_embeddings().weight[3, 4] += 1e-7
    assert describe(changed)["weights"] != known["weights"]
    assert describe(tiny_policy().bfloat16())["weights"] != known["weights"]
    other_norm = tiny_policy()
    other_norm.config.rms_norm_eps = 0.5
    for model in (tiny_policy(attention="eager"), other_norm):
        assert describe(model)["weights"] == known["weights"]
        assert describe(model)["config"] != known["config"]


def test_a_model_is_the_same_wherever_it_lies(tmp_path):
    known = set()
    for name in ("one", "two"):
        tiny_policy().save_pretrained(tmp_path / name)
        known.add(tuple(describe(build_policy(PolicyConfig(str(tmp_path / name)))).items()))
    assert len(known) == 1


def test_new_adapters_do_not_count_where_the_base_is_meant(tmp_path):
    tiny_policy().save_pretrained(tmp_path / "model")
    config = PolicyConfig(str(tmp_path / "model"), lora=LoraOptions(r=2))
    first, second = (build_policy(dataclasses.replace(config, init_seed=seed)) for seed in (0, 1))
    assert describe(first, base_only=True) == describe(second, base_only=True)
    assert describe(first)["weights"] != describe(second)["weights"]  # random adapters
    with torch.no_grad():
        next(p for p in second.parameters() if not p.requires_grad).add_(1)
    assert describe(first, base_only=True) != describe(second, base_only=True)


def test_an_adapters_scale_counts(tmp_path):
    """It is in none of the weights."""
    tiny_policy().save_pretrained(tmp_path / "model")
    known = {}
    for alpha in (2, 4):
        config = PolicyConfig(str(tmp_path / "model"), lora=LoraOptions(r=2, alpha=alpha))
        known[alpha] = describe(build_policy(config))
    assert known[2]["weights"] == known[4]["weights"]
    assert known[2]["config"] != known[4]["config"]


# Folders


def test_what_is_found_is_what_was_written(folder, batch):
    store = KeptLogps()
    store.open(folder)
    assert torch.equal(store.lookup(batch), logps_of(batch))
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name]


def test_rows_are_found_in_all_parts_and_folders_in_any_order_and_width(tmp_path, batch):
    others = [tiny_batch(pairs=3, seed=seed, weights=False) for seed in (1, 2)]
    store = KeptLogps()
    store.open(keep(tmp_path / "one", batch, others[0]))
    store.open(keep(tmp_path / "two", others[1]))
    for known in (batch, *others):
        rejected = known.role("rejected")
        width = rejected.input_ids.shape[1]
        expected = logps_of(known)[known.rows("rejected"), :width]
        assert torch.equal(store.lookup(rejected), expected)


def test_a_row_that_is_not_there_is_named(folder, batch):
    store = KeptLogps()
    store.open(folder)
    batch.index = torch.tensor([30, 10, 40, 20])
    batch.input_ids[6, 0] += 1  # the rejected response of the third pair
    with pytest.raises(InputError, match="no log-probs of pair 40"):
        store.lookup(batch)


def test_the_manifest_says_what_went_in(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["content"] == CONTENT
    assert list(manifest["parts"]) == ["part-0.safetensors"]


def _flip(folder):
    part = folder / "part-0.safetensors"
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)


def _truncate(folder):
    part = folder / "part-0.safetensors"
    part.write_bytes(part.read_bytes()[:-10])


def _claim(folder):
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace("those of the tests", "other rows"))


DAMAGES = {
    "flipped bit": _flip,
    "truncated": _truncate,
    "no part": lambda folder: (folder / "part-0.safetensors").unlink(),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "no json": lambda folder: (folder / "manifest.json").write_text("{"),
    "other content": _claim,
    "other json": lambda folder: (folder / "manifest.json").write_text("[1]"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_folder_is_refused_and_no_row_of_it_used(folder, batch, damage):
    damage(folder)
    store = KeptLogps()
    with pytest.raises(InputError, match=f"{folder.name}' is damaged.*delete that folder"):
        store.open(folder)
    assert store.lookup(batch) is None


def test_the_faster_of_two_runs_stays(tmp_path, folder, batch):
    partial = tmp_path / ".partial"
    partial.mkdir()
    write_part(partial / "part-0.safetensors", rows_of(batch, logps_of(batch, seed=1)))
    complete(partial, folder, CONTENT)
    assert not partial.exists()
    store = KeptLogps()
    store.open(folder)
    assert torch.equal(store.lookup(batch), logps_of(batch))
