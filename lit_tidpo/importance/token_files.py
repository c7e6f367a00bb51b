"""Files with a value for each token, such as ``predict`` writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lit_tidpo.errors import InputError, explained


def read_columns(what: str, path: str, names: tuple[str, ...]) -> list[Any]:
    """Columns of a file.

    Args:
        what: Whose path it is, for messages.
        path: A ``.jsonl`` or ``.parquet`` file.
        names: The columns.

    Returns:
        Arrays of PyArrow, in the order of the names.

    Raises:
        InputError: If the file cannot be read or has not all of them.
    """
    import pyarrow.json
    import pyarrow.parquet

    file = Path(path).expanduser()
    readers = {".jsonl": pyarrow.json.read_json, ".parquet": pyarrow.parquet.read_table}
    if file.suffix not in readers or not file.is_file():
        raise InputError(f"{what}={path!r}: expected a .jsonl or .parquet file that predict wrote")
    with explained(f"{what}={path!r} cannot be read"):
        table = readers[file.suffix](file)
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise InputError(
            f"{what}={path!r} has the columns {table.column_names}: expected {missing}, too, as "
            "predict writes them"
        )
    return [table[name].combine_chunks() for name in names]
