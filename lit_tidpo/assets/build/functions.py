"""Functions of the standard library, each as a prompt and a body."""

from __future__ import annotations

import ast
import re
import sysconfig
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lit_tidpo.assets.build.source import FunctionSource, parse

MAX_PROMPT, MAX_TOTAL = 600, 1000  # characters
BODY_LINES = range(2, 41)

_LEFT_OUT = {"test", "tests", "idlelib", "turtledemo", "pydoc_data", "encodings", "site-packages"}
# Modules under terms of their own, unless they were contributed to the PSF.
_OWN_TERMS = re.compile(
    r"Permission\s+(to\s+use|is\s+hereby)|granted\s+to\s+anyone|Redistribution|Apache License"
)
_LITERAL = re.compile(r"""([rRuU]?)(\"{3}|'{3}|"|')((?:(?!\2).)*)\2""", re.DOTALL)


@dataclass(frozen=True)
class StdlibFunction:
    """A function or method of the standard library.

    Attributes:
        module: Full name of its module.
        qualname: Name with those of the classes around it.
        prompt: A comment with the name, the decorators, the signature and the docstring.
        body: The rest, from the newline after the docstring.
    """

    module: str
    qualname: str
    prompt: str
    body: str


def stdlib_functions() -> list[StdlibFunction]:
    """Functions of the running interpreter's library that suit the set, without duplicates."""
    root = Path(sysconfig.get_path("stdlib"))
    found: dict[tuple[str, ...], StdlibFunction] = {}
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).parts):
        parts = path.relative_to(root).with_suffix("").parts
        if _LEFT_OUT.isdisjoint(parts) and all(part.isidentifier() for part in parts):
            with tokenize.open(path) as file:
                text = file.read()
            if not _OWN_TERMS.search(text) or "Licensed to PSF" in text:
                module = ".".join(part for part in parts if part != "__init__")
                for function in functions_in(module, text):
                    statements = FunctionSource(function.prompt + function.body).statements
                    found.setdefault(tuple(map(ast.dump, statements)), function)
    return list(found.values())


def functions_in(module: str, text: str) -> Iterator[StdlibFunction]:
    """The functions and methods of a module that suit the set.

    Args:
        module: Its full name.
        text: Its source.

    Yields:
        Those with a docstring, a body of 2 to 40 lines and not too much text.
    """
    lines = text.split("\n")
    for qualname, node in _definitions(parse(text), ""):
        first = min(part.lineno for part in (node, *node.decorator_list))
        margin = " " * node.col_offset
        own = [line if line.strip() else margin for line in lines[first - 1 : node.end_lineno]]
        plain = all(line.startswith(margin) and not {*"\t\f"} & {*line} for line in own)
        if plain and ast.get_docstring(node):
            source = FunctionSource("\n".join(line[len(margin) :] for line in own))
            parts = _split(source, f"# {module}.{qualname}\n")
            if parts is not None:
                yield StdlibFunction(module, qualname, *parts)


_Definition = ast.FunctionDef | ast.AsyncFunctionDef


def _definitions(node: ast.AST, prefix: str) -> Iterator[tuple[str, _Definition]]:
    """Functions with their qualified names, except those inside other functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield prefix + child.name, child
        elif isinstance(child, (ast.stmt, ast.ExceptHandler)):
            inner = f"{child.name}." if isinstance(child, ast.ClassDef) else ""
            yield from _definitions(child, prefix + inner)


def _split(source: FunctionSource, title: str) -> tuple[str, str] | None:
    """Prompt and body, or None if they do not suit the set."""
    start, end = source.span(source.docstring)
    head, body = title + source.text[:start], source.text[end:].rstrip()
    literal = _LITERAL.fullmatch(source.text[start:end])
    lines = sum(1 for line in body.split("\n") if line.strip())
    indented = all(node.col_offset == 4 for node in source.statements)
    if literal is None or not indented or not body.startswith("\n") or lines not in BODY_LINES:
        return None
    opening = f'{head}{literal[1]}"""'
    words = _first_paragraphs(literal[3], MAX_PROMPT - len(opening) - len('"""'))
    prompt = f'{opening}{words}"""'
    if words is None or len(prompt + body) > MAX_TOTAL or not _is_whole(prompt, body, source):
        return None
    return prompt, body


def _first_paragraphs(words: str, room: int) -> str | None:
    """As many paragraphs of a docstring as there is room for; None if there is none for one."""
    if len(words) <= room:
        return words
    ends = [match.start() for match in re.finditer(r"\n *\n", words)]
    closing = "\n    "
    fitting = [end for end in ends if end + len(closing) <= room and words[:end].strip()]
    return words[: fitting[-1]] + closing if fitting else None


def _is_whole(prompt: str, body: str, source: FunctionSource) -> bool:
    """Whether the new quotes and the cut left the statements as they were."""
    try:
        statements = FunctionSource(prompt + body).statements
    except (SyntaxError, ValueError):
        return False
    return [*map(ast.dump, statements)] == [*map(ast.dump, source.statements)]
