from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoTokenizer

import lit_tidpo
from lit_tidpo.assets.build import stdlib_defects
from lit_tidpo.assets.build.functions import BODY_LINES, MAX_PROMPT, MAX_TOTAL, functions_in
from lit_tidpo.assets.build.rules import RULES
from lit_tidpo.assets.build.stdlib_defects import check_row, split_units, unit
from lit_tidpo.assets.build.tokenizer import main as make_policy
from lit_tidpo.data.loading import load_splits

ASSETS = Path(lit_tidpo.__file__).parent / "assets"
FOLDER, POLICY = ASSETS / "stdlib_defects", ASSETS / "policy"
MANIFEST = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def splits():
    texts = {split: (FOLDER / f"{split}.jsonl").read_text(encoding="utf-8") for split in SPLITS}
    return {split: [*map(json.loads, text[:-1].split("\n"))] for split, text in texts.items()}


@pytest.fixture(scope="module")
def rows(splits):
    return [row for split in SPLITS for row in splits[split]]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(POLICY)


@pytest.mark.parametrize("split", SPLITS)
def test_files_match_the_manifest(split, splits):
    expected = MANIFEST["files"][f"{split}.jsonl"]
    data = (FOLDER / f"{split}.jsonl").read_bytes()
    assert hashlib.sha256(data).hexdigest() == expected["sha256"]
    assert len(data) == expected["bytes"]
    assert len(splits[split]) == expected["rows"]
    kinds = Counter(row["defect"] for row in splits[split])
    assert kinds == Counter(expected["defects"])
    assert set(kinds) == set(RULES)


def test_there_are_enough_pairs_in_little_space(rows):
    assert len(rows) >= 5000
    assert len({row["id"] for row in rows}) == len(rows)
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 10e6
    assert all(count >= 100 for count in Counter(row["defect"] for row in rows).values())


def test_splits_share_no_module_and_no_body(splits):
    for split in SPLITS:
        assert {unit(row) for row in splits[split]} == set(MANIFEST["modules"][split])
        share = len(splits[split]) / sum(map(len, splits.values()))
        assert share == pytest.approx(0.8 if split == "train" else 0.1, abs=0.02)
    for key in (unit, lambda row: row["chosen"]):
        parts = [{key(row) for row in splits[split]} for split in SPLITS]
        assert sum(map(len, parts)) == len(set().union(*parts))


def test_rows_have_true_spans_and_parse(rows):
    for row in rows:
        check_row(row)


def test_rows_have_their_shape(rows):
    for row in rows:
        lines = [line for line in row["chosen"].split("\n") if line.strip()]
        assert len(lines) in BODY_LINES
        assert len(row["prompt"]) <= MAX_PROMPT
        assert len(row["prompt"] + row["chosen"]) <= MAX_TOTAL
        assert row["prompt"].startswith(f"# {row['module']}.{row['qualname']}\n")
        for side in ("chosen", "rejected"):
            assert row[side].startswith("\n")
            assert row[side] == row[side].rstrip()
            changed = row[side][slice(*row[f"{side}_span"])]
            assert changed.removesuffix("not ").strip() == changed.removesuffix("not ")


@pytest.mark.slow
@pytest.mark.skipif(
    ".".join(map(str, sys.version_info[:3])) != MANIFEST["python"],
    reason="made with the library of another Python release",
)
def test_a_rebuild_is_byte_identical(tmp_path, capsys):
    stdlib_defects.main([str(tmp_path)])
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (FOLDER / path.name).read_bytes(), path.name
    assert (
        f"train.jsonl: {MANIFEST['files']['train.jsonl']['rows']} rows" in capsys.readouterr().out
    )


MODULE = '''
class Box:
    @property
    def size(self):
        'Number of things.'  # one line
        # Count.
        count = len(self.things)

        return count

    class Inner:
        async def get(self, key):
            r"""First paragraph.

            {long}
            """

            await self.ready
            return self.things[key]

def short(x):
    """One line is too little."""
    return x

def silent(x):
    x += 1
    return x

if True:
    def shouted(x):
        \'\'\'Quotes of another kind.\'\'\'
        x += 1
        return x
'''


def test_functions_become_prompts_and_bodies():
    module = MODULE.replace("  # one line", "").replace("{long}", "word " * 200)
    found = {function.qualname: function for function in functions_in("pack.age", module)}
    assert list(found) == ["Box.size", "Box.Inner.get", "shouted"]
    assert found["Box.size"].prompt == (
        '# pack.age.Box.size\n@property\ndef size(self):\n    """Number of things."""'
    )
    assert found["Box.size"].body == (
        "\n    # Count.\n    count = len(self.things)\n\n    return count"
    )
    assert found["Box.Inner.get"].prompt.endswith('r"""First paragraph.\n    """')
    assert found["Box.Inner.get"].body.startswith("\n\n    await")
    assert found["shouted"].prompt.endswith('"""Quotes of another kind."""')


def test_functions_with_text_beside_the_docstring_are_left_out():
    assert "Box.size" not in {function.qualname for function in functions_in("m", MODULE)}


def test_units_go_to_one_split_and_large_ones_to_train():
    sizes = {"large": 500, **{f"small{number}": 10 for number in range(50)}}
    rows = [{"module": f"{name}.part"} for name, size in sizes.items() for _ in range(size)]
    units = split_units(rows)
    assert sorted(name for names in units.values() for name in names) == sorted(sizes)
    assert "large" in units["train"]
    assert [len(units[split]) for split in SPLITS] == [31, 10, 10]  # 800, 100 and 100 rows


def test_broken_rows_are_found(rows):
    row = rows[0]
    for change in ({"rejected": row["chosen"]}, {"prompt": row["prompt"] + "\n"}):
        with pytest.raises(ValueError, match=f"row {row['id']}"):
            check_row(row | change)
    with pytest.raises(SyntaxError):
        check_row(row | {"prompt": f'def "{row["prompt"]}'})


def test_the_data_module_reads_the_set(rows, tmp_path):
    loaded = load_splits("builtin:stdlib_defects", cache_dir=str(tmp_path))
    assert {split: len(loaded[split]) for split in loaded} == {
        split: MANIFEST["files"][f"{split}.jsonl"]["rows"] for split in SPLITS
    }
    assert loaded["train"][0] == rows[0]


def test_the_boundary_is_between_tokens(rows, tokenizer):
    rows = rows[::3]  # for speed

    def ids(texts):
        return tokenizer(texts, add_special_tokens=False)["input_ids"]

    prompts = ids([row["prompt"] for row in rows])
    for side in ("chosen", "rejected"):
        responses = ids([row[side] for row in rows])
        whole = ids([row["prompt"] + row[side] for row in rows])
        assert all(p + r == w for p, r, w in zip(prompts, responses, whole, strict=True))
        assert max(map(len, whole)) + 2 <= tokenizer.model_max_length


def test_tokens_are_those_of_code(tokenizer):
    text = "\n        if not x[10] <= yé  and z==1:"
    tokens = tokenizer(text)["input_ids"]
    assert tokens.count(tokenizer.bos_token_id) == 1
    assert tokens[0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id not in tokens
    assert [tokenizer.decode([token]) for token in tokens[1:9]] == [
        *("\n        ", "if", " not", " x", "[", "1", "0", "]")
    ]
    assert tokenizer.decode(tokens[1:]) == text
    for word in ("<", "<=", "==", "!=", "not", "and", "or", "is", "in", "+=", "continue", "None"):
        for form in (word, f" {word}"):
            assert len(tokenizer(form)["input_ids"]) == 2, form


def test_offsets_leave_out_the_space_before_a_word(tokenizer):
    encoded = tokenizer("not ready", return_offsets_mapping=True)
    assert encoded["offset_mapping"][:2] == [(0, 0), (0, 3)]
    assert encoded["offset_mapping"][2][0] == 4


def test_chats_have_one_bos_and_end_their_turns(tokenizer):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "\n    x"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    assert text == "<s><|user|>Hi</s><|assistant|>\n    x</s>"
    opened = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    assert opened == "<s><|user|>Hi</s><|assistant|>"
    prompt, whole = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in (opened, text))
    assert whole[: len(prompt)] == prompt
    assert whole[-1] == tokenizer.eos_token_id


def test_the_configuration_fits_the_tokenizer(tokenizer):
    config = AutoConfig.from_pretrained(POLICY)
    assert config.vocab_size == len(tokenizer) == 4096
    assert config.max_position_embeddings == tokenizer.model_max_length == 1024
    special = (config.bos_token_id, config.eos_token_id, config.pad_token_id)
    assert special == (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert config.tie_word_embeddings


@pytest.mark.slow
def test_a_retrained_tokenizer_has_the_same_tokens(tmp_path, tokenizer, capsys):
    make_policy(["--vocab-size", "4096", "--output", str(tmp_path), "--layers", "1"])
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == tokenizer.get_vocab()
    assert AutoConfig.from_pretrained(tmp_path).num_hidden_layers == 1
    assert "4096 tokens" in capsys.readouterr().out
