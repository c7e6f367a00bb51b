"""Where a model or a data set is: shipped with the package, on disk, or on the Hub."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

from lit_tidpo.errors import InputError

_ASSETS = Path(__file__).parent / "assets"
_PREFIX = "builtin:"


def locate(source: str) -> str:
    """Turn what a user typed into a path or a Hub name.

    Args:
        source: ``builtin:NAME`` for what the package ships, a path (absolute, or starting with
            ``.`` or ``~``, or existing), or ``owner/name`` on the Hub.

    Returns:
        An existing path, or the Hub name unchanged.

    Raises:
        InputError: If a shipped name or a path does not exist.

    Example:
        >>> locate("meta-llama/Llama-3.2-1B")
        'meta-llama/Llama-3.2-1B'
    """
    if source.startswith(_PREFIX):
        name = source[len(_PREFIX) :]
        shipped = sorted(
            entry.name for entry in _ASSETS.iterdir() if (entry / "README.md").exists()
        )
        if name not in shipped:
            raise InputError(
                f"{source!r} is not shipped; expected one of {shipped} after {_PREFIX!r}"
            )
        return str(_ASSETS / name)
    path = Path(source).expanduser()
    if path.exists():
        return str(path)
    looks_local = source.startswith(("/", ".", "~")) or path.suffix in {
        ".json",
        ".jsonl",
        ".parquet",
        ".csv",
        ".gz",
        ".zst",
    }
    if looks_local or source.count("/") > 1:
        raise InputError(f"no file or folder at {source!r}: check the path")
    return source


def check_revision(name: str, revision: str | None, source: str) -> None:
    """Refuse a revision of what does not come from the Hub.

    Args:
        name: Name of the setting.
        revision: What was given.
        source: Path, name on the Hub, or ``builtin:NAME``.

    Raises:
        InputError: If there is a revision and the source is local.
    """
    if revision is not None and Path(locate(source)).exists():
        raise InputError(
            f"{name}={revision!r} applies to the Hub, but {source!r} is local: drop it"
        )


def gguf_option(file: str | None) -> dict[str, str]:
    """How transformers is told of a GGUF file, which takes the place of a folder's other files.

    Args:
        file: Its name; None where there is none.

    Returns:
        Keyword arguments of ``from_pretrained``.

    Raises:
        InputError: If the package that reads such files is missing.
    """
    if file is None:
        return {}
    if find_spec("gguf") is None:
        raise InputError(f"gguf_file={file!r} needs gguf: pip install 'lit-tidpo[gguf]'")
    return {"gguf_file": file}


def file_digest(file: Path) -> str:
    """SHA-256 of a file's content, hexadecimal."""
    hashed = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            hashed.update(block)
    return hashed.hexdigest()
