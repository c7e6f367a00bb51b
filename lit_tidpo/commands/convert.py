"""``lit-tidpo convert``: a configuration of TRL or LLaMA-Factory as one of ``lit-tidpo fit``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

import yaml

from lit_tidpo.converting.llama_factory import convert_llama_factory
from lit_tidpo.converting.options import FATES, Conversion
from lit_tidpo.converting.reading import read_assignments, read_file, read_options
from lit_tidpo.converting.sharding import check_trains
from lit_tidpo.converting.trl import convert_trl
from lit_tidpo.converting.trl_options import OPTIONS as TRL
from lit_tidpo.errors import InputError

_FACTORY = ("llamafactory-cli", "lmf")
_LAUNCHERS = ("trl", "python", "python3", "accelerate", "torchrun")
_OF_LAUNCHERS = {
    "__num_processes": "--num_processes",
    "__nproc_per_node": "--num_processes",
    "__config_file": "--accelerate_config",
}
_TYPICAL = (
    "expected a .yaml file, or a line that begins with trl, python, accelerate, torchrun, or "
)


def run(args: list[str]) -> None:
    """Convert, write and tell.

    Raises:
        SystemExit: With status 1 if an option has no counterpart.
    """
    own, words = _own_options(args[1:])
    rows = own.get("--rows")
    if rows is not None and not (rows.isdecimal() and int(rows) > 0):
        raise InputError(f"--rows {rows}: expected a number of rows, 1 or more")
    conversion = _convert(words, None if rows is None else int(rows))
    output = own.get("--output")
    text = _header(words, conversion) + yaml.safe_dump(
        conversion.tree, sort_keys=False, allow_unicode=True
    )
    if output is None:
        sys.stdout.write(text)
    else:
        Path(output).expanduser().write_text(text, encoding="utf-8")
    stream = sys.stderr if output is None else sys.stdout
    stream.write(_table(conversion))
    if output is not None:
        stream.write(f"\nwritten: lit-tidpo fit --config {output}\n")
    if conversion.lacks:
        raise SystemExit(1)


def _own_options(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Our options, and the words that are left; behind a command line all are its own."""
    own: dict[str, str] = {}
    left: list[str] = []
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if name in ("--output", "--rows") and not (left and left[0] in (*_LAUNCHERS, *_FACTORY)):
            own[name] = value if equals else next(rest, "")
            if not own[name]:
                raise InputError(f"{name} needs a value")
        else:
            left.append(word)
    return own, left


def _convert(words: Sequence[str], rows: int | None) -> Conversion:
    if not words:
        raise InputError(f"nothing to convert: {_TYPICAL}{_FACTORY[0]}")
    if words[0] in _FACTORY:
        given = read_assignments([word for word in words[1:] if word != "train"])
        return convert_llama_factory(given, rows)
    if words[0] in _LAUNCHERS:
        return convert_trl(read_options(_behind_script(words), TRL), rows)
    if len(words) > 1 or words[0].startswith("-"):
        raise InputError(f"convert {' '.join(words)}: {_TYPICAL}{_FACTORY[0]}")
    given = read_file(words[0])
    check_trains(given, words[0])
    if "stage" in given:
        return convert_llama_factory(given, rows, _folder(Path(words[0]), given))
    return convert_trl(given, rows)


def _folder(file: Path, given: dict[str, object]) -> Path:
    """Where ``dataset_dir`` is: in this folder, or in one above the file."""
    place = str(given.get("dataset_dir", "data"))
    return next((each for each in (Path(), *file.parents) if (each / place).is_dir()), Path())


def _behind_script(words: Sequence[str]) -> list[str]:
    """Options behind ``trl dpo`` or a script; processes and file of a launcher among them."""
    ends = [
        place
        for place, word in enumerate(words)
        if place and (word == "dpo" or word.endswith("dpo.py"))
    ]
    if not ends:
        raise InputError(
            f"{' '.join(words[:2])}: expected `trl dpo` or a script that is called ...dpo.py"
        )
    kept: list[str] = []
    launched = [part for word in words[1 : ends[0]] for part in word.split("=", 1)]
    for place, word in enumerate(launched[:-1]):
        if word.replace("-", "_") in _OF_LAUNCHERS:
            kept += [_OF_LAUNCHERS[word.replace("-", "_")], launched[place + 1]]
    return [*kept, *words[ends[0] + 1 :]]


def _header(words: Sequence[str], conversion: Conversion) -> str:
    """Where it comes from and what it lacks, as a comment."""
    source = words[0] if len(words) == 1 else "a command line"  # which may hold keys
    lines = [f"# Converted by lit-tidpo from {source}".replace("\n", " ")]
    for name, why in conversion.lacks.items():
        lines.append(
            fill(
                f"{name}: no counterpart: {why}",
                100,
                initial_indent="# - ",
                subsequent_indent="#   ",
            )
        )
    return "\n".join([*lines, ""])


def _table(conversion: Conversion) -> str:
    """What became of each option, those without a counterpart last."""
    lines = conversion.report()
    lines.sort(key=lambda line: list(FATES.values()).index(line[2]))
    widths = [max(len(line[place]) for line in lines) for place in range(3)] if lines else []
    text = ""
    for *cells, words in lines:
        short = [cell if len(cell) <= 40 else f"{cell[:37]}..." for cell in cells]
        cells = [cell.ljust(min(width, 40)) for cell, width in zip(short, widths, strict=True)]
        text += "  ".join([*cells, words]).rstrip() + "\n"
    lacking = f"no counterpart: {', '.join(conversion.lacks)}"
    return f"{text}\n{lacking if conversion.lacks else 'no option lacks a counterpart'}\n"
