"""The data of a LLaMA-Factory run: its data sets, by ``dataset_info.json``, and their lengths."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_tidpo.converting.options import Conversion
from lit_tidpo.errors import InputError

_SHAREGPT = {"messages": "conversations"}
_ALPACA = {"prompt": "instruction", "query": "input", "history": "history"}
_COMMON = {name: name for name in ("chosen", "rejected", "system", "tools")}
_TURNS = {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"}
_MESSAGES = {"role_tag": "role", "content_tag": "content", "user_tag": "user"}
_TEMPLATE = (
    "the tokenizer's own chat template is used, up to the end of each turn; what LLaMA-Factory's "
    "puts behind that (a line feed) is trained there: compare, or set `data.chat_template`"
)
_FILE = "name the file and its shape in `data.source` and `data.columns`"


def convert_data(run: Conversion, folder: Path) -> None:
    """Set the options of the data.

    Args:
        run: The conversion.
        folder: Folder that a relative ``dataset_dir`` is in.
    """
    names = run["dataset"] or []
    if not names:
        run.tell("dataset", "none", "not given: set data.source")
    sources = [_source(run, name, folder) for name in names]
    if len(sources) == 1:
        for option, value in sources[0].items():
            path = {"split": "train_split", "rows": "max_rows"}.get(option, option)
            run.set(f"data.{path}", value)
    else:
        if any("rows" in each for each in sources):
            run.tell("dataset", "none", "num_samples of several: cut the files themselves")
        kept = [{k: v for k, v in each.items() if k != "rows"} for each in sources]
        run.set("data.source", kept or None)
    if run["max_samples"]:
        run.set("data.max_rows", run["max_samples"])
    if run["mix_strategy"] != "concat":
        run.tell("mix_strategy", "none", "weights in `data.source` draw rows in their shares")
    _splits(run)
    _lengths(run)


def _splits(run: Conversion) -> None:
    held, evaluated = run["val_size"], run["eval_dataset"]
    if evaluated and evaluated == run["dataset"]:
        run.set("data.validation_split", run.tree["data"].get("train_split", "train"))
    elif evaluated:
        why = "put both into one folder as train and validation files, and name that"
        run.tell("eval_dataset", "none", why)
    elif held and (held < 1 or run.rows):
        run.set("data.validation_fraction", held if held < 1 else held / run.rows)
    elif held:
        run.tell("val_size", "none", "a number of rows: give their share, or all of them as --rows")


def _lengths(run: Conversion) -> None:
    run.set("data.max_length", run["cutoff_len"])
    run.set("data.max_prompt_length", run["cutoff_len"] // 2)
    run.set("data.invalid_rows", "drop")
    run.set("data.special_tokens", "text" if run["split_special_tokens"] else "control")
    if run["streaming"]:
        run.set("data.shuffle_buffer", run["buffer_size"])
    if run["cache_dir"]:
        run.set("data.cache_dir", run["cache_dir"])
    run.tell("template", "near", _TEMPLATE)


def _source(run: Conversion, name: str, folder: Path) -> dict[str, Any]:
    """A data set as an entry of ``data.source``."""
    place = str(run["dataset_dir"])
    if place == "ONLINE":
        return {"source": name}
    directory = folder / place
    if place.startswith("REMOTE:") or not (directory / "dataset_info.json").is_file():
        why = f"{str(directory / 'dataset_info.json')!r} is not here: {_FILE}"
        run.tell("dataset_dir", "none", why)
        return {"source": name}
    try:
        infos = json.loads((directory / "dataset_info.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{directory / 'dataset_info.json'} is no JSON: {error}") from error
    if not isinstance(infos, dict) or not all(isinstance(each, dict) for each in infos.values()):
        raise InputError(f"{directory / 'dataset_info.json'}: expected a mapping for each data set")
    if name not in infos:
        raise InputError(f"dataset={name!r}: dataset_info.json has {sorted(infos)[:20]}, ...")
    return _described(run, name, infos[name], directory)


def _described(
    run: Conversion, name: str, info: Mapping[str, Any], directory: Path
) -> dict[str, Any]:
    if "hf_hub_url" in info:
        entry: dict[str, Any] = {"source": info["hf_hub_url"]}
    elif "file_name" in info:
        entry = {"source": str(directory / info["file_name"])}
    else:
        run.tell("dataset", "none", f"{name}: it is neither on the Hub nor a file here: {_FILE}")
        entry = {"source": name}
    entry |= {"name": info["subset"]} if info.get("subset") else {}
    entry |= {"split": info["split"]} if info.get("split", "train") != "train" else {}
    entry |= {"rows": info["num_samples"]} if info.get("num_samples") else {}
    if info.get("folder"):
        run.tell("dataset", "none", f"{name}: folder {info['folder']!r} of a Hub data set: {_FILE}")
    if run["stage"] == "dpo" and not info.get("ranking"):
        raise InputError(f"dataset={name!r}: `ranking` is not true in dataset_info.json: no pairs")
    columns = _columns(run, name, info)
    return entry | ({"columns": columns} if columns else {})


def _columns(run: Conversion, name: str, info: Mapping[str, Any]) -> dict[str, str]:
    """Our names of columns that are called otherwise in the data."""
    formatting, tags = info.get("formatting", "alpaca"), info.get("tags", {})
    given = info.get("columns") or {**(_ALPACA if formatting == "alpaca" else _SHAREGPT), **_COMMON}
    ours = {**_COMMON, **(_ALPACA if formatting == "alpaca" else _SHAREGPT)}
    if formatting == "openai" or (
        tags and all(tags.get(k, _TURNS[k]) == v for k, v in _MESSAGES.items())
    ):
        ours["messages"] = "prompt" if run["stage"] == "dpo" else "messages"  # of chats
    elif any(tags.get(key, value) != value for key, value in _TURNS.items()):
        run.tell("dataset", "none", f"{name}: tags {tags}: rename them to {_TURNS} in the data")
    if run["stage"] == "kto":
        ours["kto_tag"] = "label"
    for key in given:
        if key not in ours and key != "response":
            run.tell("dataset", "none", f"{name}: column {key!r} has no counterpart")
    return {
        ours[key]: column for key, column in given.items() if key in ours and column != ours[key]
    }
