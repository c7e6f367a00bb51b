"""Options read from the syntax of the sources: nothing is imported to tell them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True)
class Option:
    """An option of a command.

    Attributes:
        name: As it is typed, without the dashes.
        kind: What is expected, for people.
        default: Its default as Python text; None where one has to be given.
        text: What it is.
        linked: Whether it follows another option and cannot be typed.
    """

    name: str
    kind: str = ""
    default: str | None = None
    text: str = ""
    linked: bool = False


@lru_cache
def _tree(module: str) -> ast.Module:
    """Syntax tree of a module, which is found without importing it."""
    package, *rest = module.split(".")
    spec = find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    base = Path(spec.submodule_search_locations[0]).joinpath(*rest)
    file = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))


def _find(module: str, name: str) -> tuple[str, ast.stmt] | None:
    """Where a name of a module is defined; None if it is not in the package of the module."""
    for node in _tree(module).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
            return module, node
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return module, node
        if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}:
            home = node.module or ""
            same = home.split(".")[0] == module.split(".")[0]
            return _find(home, name) if same else None
    return None


def read_options(path: str, prefix: str) -> Iterator[Option]:
    """Options of a function, a method, a class or a dataclass, those of inner dataclasses too.

    Args:
        path: Its full name.
        prefix: What stands before the names of the options, without the dot.

    Yields:
        The options in their order.
    """
    module, _, name = path.rpartition(".")
    if not name[:1].isupper() and module.rpartition(".")[2][:1].isupper():  # a method
        module, _, owner = module.rpartition(".")
        yield from _options(module, _method(_definition(module, owner), name), prefix)
    else:
        yield from _options(module, _definition(module, name), prefix)


def _definition(module: str, name: str) -> ast.stmt:
    found = _find(module, name)
    assert found is not None, f"{module} has no {name}"
    return found[1]


def _method(owner: ast.stmt, name: str) -> ast.FunctionDef:
    assert isinstance(owner, ast.ClassDef)
    return next(n for n in owner.body if isinstance(n, ast.FunctionDef) and n.name == name)


def _options(module: str, node: ast.stmt, prefix: str) -> Iterator[Option]:
    assert isinstance(node, (ast.ClassDef, ast.FunctionDef))
    texts = _texts(ast.get_docstring(node) or "", _is_dataclass(node))
    if isinstance(node, ast.ClassDef) and not _is_dataclass(node):
        node = _method(node, "__init__")
        texts |= _texts(ast.get_docstring(node) or "", False)
    for name, annotation, default in _parameters(node):
        inner = _find(module, annotation.id) if isinstance(annotation, ast.Name) else None
        full = f"{prefix}.{name}" if prefix else name
        if inner is not None and _is_dataclass(inner[1]):
            yield from _options(*inner, full)
        else:
            shown = None if default is None else ast.unparse(default).strip("'")
            yield Option(full, _kind(module, annotation), shown, texts.get(name, ""))


def _is_dataclass(node: ast.stmt) -> bool:
    return isinstance(node, ast.ClassDef) and any(
        "dataclass" in ast.unparse(each) for each in node.decorator_list
    )


def _parameters(node: ast.stmt) -> Iterator[tuple[str, ast.expr, ast.expr | None]]:
    """Name, annotation and default of each field or argument."""
    if isinstance(node, ast.ClassDef):
        for field in node.body:
            if isinstance(field, ast.AnnAssign):
                yield ast.unparse(field.target), field.annotation, field.value
        return
    assert isinstance(node, ast.FunctionDef)
    given = node.args
    places = [arg for arg in given.args if arg.arg != "self"]
    lacking = len(places) - len(given.defaults)
    defaults = [*[None] * lacking, *given.defaults, *given.kw_defaults]
    for arg, default in zip([*places, *given.kwonlyargs], defaults, strict=True):
        assert arg.annotation is not None
        yield arg.arg, arg.annotation, default


def _kind(module: str, annotation: ast.expr) -> str:
    """What an annotation admits, for people: choices, or names of types."""
    if isinstance(annotation, ast.Name):
        found = _find(module, annotation.id)
        if found is not None and isinstance(found[1], ast.Assign):
            return _kind(found[0], found[1].value)
    parts = _admitted(annotation)
    if parts[0].startswith("Literal["):
        return "{" + parts[0][8:-1].replace("'", "").replace(", ", ",") + "}"
    return " | ".join(part for part in parts if part != "None" and not part.startswith("_"))


def _admitted(annotation: ast.expr) -> list[str]:
    """The members of a union, or what is there alone."""
    if isinstance(annotation, ast.BinOp):
        return [*_admitted(annotation.left), *_admitted(annotation.right)]
    if isinstance(annotation, ast.Subscript):
        of, inside = ast.unparse(annotation.value), annotation.slice
        if of == "Optional":
            return _admitted(inside)
        if of == "Union" and isinstance(inside, ast.Tuple):
            return [part for each in inside.elts for part in _admitted(each)]
    return [ast.unparse(annotation)]


def _texts(docstring: str, fields: bool) -> dict[str, str]:
    """What a docstring says of each argument or field."""
    _, _, section = docstring.partition("Attributes:\n" if fields else "Args:\n")
    texts: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        if line and not line.startswith("    "):
            break
        entry = re.match(r"    (\w+)(?: \([^)]*\))?: ?(.*)", line)
        if entry:
            name, texts[entry[1]] = entry[1], entry[2]
        elif name:
            texts[name] = f"{texts[name]} {line.strip()}".strip()
    return texts
