"""The kinds of defects: each rule finds the places of one kind in a function."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

from lit_tidpo.assets.build.source import FunctionSource, Span


class Edit(NamedTuple):
    """Characters ``start`` to ``end`` of a source become ``text``."""

    start: int
    end: int
    text: str


Rule = Callable[[FunctionSource], Iterable[Edit]]

_OPPOSITES = {
    **{"<": ">", ">": "<", "<=": ">=", ">=": "<=", "==": "!=", "!=": "=="},
    **{"is": "is not", "is not": "is", "in": "not in", "not in": "in"},
}
_NEXT_BOUNDS = {"<": "<=", "<=": "<", ">": ">=", ">=": ">"}
_ARITHMETIC = {
    **{"+": "-", "-": "+", "*": "//", "/": "*", "//": "*", "%": "//", "**": "*"},
    **{"<<": ">>", ">>": "<<", "&": "|", "|": "&"},
}
_ARITHMETIC |= {f"{old}=": f"{new}=" for old, new in _ARITHMETIC.items()}
_LOGICAL = {"and": "or", "or": "and"}
_TRUTH = {"True": "False", "False": "True"}
_ENDS = {"break": "continue", "continue": "break"}
_PAIRS = (
    ("append", "extend"),
    ("lower", "upper"),
    ("lstrip", "rstrip"),
    ("startswith", "endswith"),
    ("min", "max"),
    ("any", "all"),
    ("find", "rfind"),
    ("index", "rindex"),
    ("split", "rsplit"),
    ("partition", "rpartition"),
    ("keys", "values"),
    ("add", "remove"),
    ("popleft", "pop"),
    ("read", "readline"),
    ("write", "writelines"),
    ("encode", "decode"),
    ("acquire", "release"),
    ("isfile", "isdir"),
    ("dirname", "basename"),
    ("isalpha", "isdigit"),
    ("ljust", "rjust"),
    ("isinstance", "issubclass"),
    ("ord", "chr"),
    ("floor", "ceil"),
)
_METHODS = {
    **{pair[place]: pair[1 - place] for pair in _PAIRS for place in (0, 1)},
    **{"strip": "rstrip", "items": "keys", "get": "pop", "setdefault": "get", "set": "list"},
    **{"sorted": "reversed", "readlines": "readline", "appendleft": "append", "hasattr": "getattr"},
}
_SYMMETRIC = {"min", "max", "gcd", "lcm", "hypot", "samefile", "isclose", "print", "isinstance"}
_SIMPLE = (ast.Name, ast.Attribute, ast.Constant, ast.Subscript, ast.Call, ast.BinOp)


def _swap(source: FunctionSource, spans: Iterable[Span], table: dict[str, str]) -> Iterator[Edit]:
    for start, end in spans:
        new = table.get(" ".join(source.text[start:end].split()))
        if new is not None:
            yield Edit(start, end, new)


def _operators(source: FunctionSource) -> Iterator[Span]:
    """Places of the operators, except those that make text or lists."""
    operands: list[ast.expr]
    for node in source.nodes:
        match node:
            case ast.Compare():
                operands = [node.left, *node.comparators]
            case ast.BoolOp():
                operands = node.values
            case ast.BinOp() if not any(map(_is_sequence, ast.walk(node))):
                operands = [node.left, node.right]
            case ast.AugAssign() if not any(map(_is_sequence, ast.walk(node.value))):
                operands = [node.target, node.value]
            case _:
                continue
        for left, right in pairwise(operands):
            yield source.between(left, right)


def _is_sequence(node: ast.AST) -> bool:
    kinds = (ast.JoinedStr, ast.List, ast.Tuple, ast.ListComp)
    is_text = isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes))
    return is_text or isinstance(node, kinds)


def _callees(source: FunctionSource) -> Iterator[Span]:
    """Places of the names of the functions and methods that are called."""
    for node in source.nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, (ast.Name, ast.Attribute)):
            end = source.span(node.func)[1]
            yield end - len(_name(node.func)), end


def _name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _places(source: FunctionSource, *kinds: type[ast.expr] | type[ast.stmt]) -> Iterator[Span]:
    return (source.span(node) for node in source.nodes if isinstance(node, kinds))


def _off_by_one(source: FunctionSource) -> Iterator[Edit]:
    """Whole numbers that are compared, added, subtracted, or in an index, slice or range."""
    numbers: list[ast.expr | None]
    for node in source.nodes:
        match node:
            case ast.Compare():
                numbers = [node.left, *node.comparators]
            case ast.Slice():
                numbers = [node.lower, node.upper]
            case ast.Subscript():
                numbers = [node.slice]
            case ast.Call(func=ast.Name(id="range")):
                numbers = [*node.args]
            case ast.BinOp(op=ast.Add() | ast.Sub()):
                numbers = [node.left, node.right]
            case _:
                continue
        for number in numbers:
            number = number.operand if isinstance(number, ast.UnaryOp) else number
            if isinstance(number, ast.Constant) and source.of(number).isdecimal():
                value = int(source.of(number))
                yield Edit(*source.span(number), str(value + 1 if value < 2 else value - 1))


def _negation(source: FunctionSource) -> Iterator[Edit]:
    for node in source.nodes:
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            start, end = source.next_token(source.span(node)[0])
            yield Edit(start, source.next_token(end)[0], "")
        for test in _conditions(node):
            if isinstance(test, (ast.Name, ast.Attribute, ast.Call, ast.Subscript)):
                start, _ = source.span(test)
                yield Edit(start, start, "not ")


def _conditions(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.comprehension):
        return node.ifs
    if not isinstance(node, (ast.If, ast.While, ast.IfExp)):
        return []
    return node.test.values if isinstance(node.test, ast.BoolOp) else [node.test]


def _wrong_variable(source: FunctionSource) -> Iterator[Edit]:
    """Each use of a variable becomes that of the next one by name that is bound before it."""
    bound = _bound_places(source)
    copies = [
        {_name(node.value), *map(_name, node.targets)}
        for node in source.own
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name)
    ]
    called = [node.func for node in source.own if isinstance(node, ast.Call)]
    for node in source.own:
        if isinstance(node, ast.Name) and node.id in bound and node not in called:
            start, end = source.span(node)
            names = {name for name, place in bound.items() if place <= start} - {node.id}
            names = names.difference(*(copy for copy in copies if node.id in copy))
            if isinstance(node.ctx, ast.Load) and names:
                yield Edit(start, end, _next_name(node.id, names))


def _bound_places(source: FunctionSource) -> dict[str, int]:
    """Where parameters and variables are first bound: places from which they can be used."""
    bound = {name: 0 for name in source.parameters if name not in {"self", "cls"}}
    for node in source.own:
        match node:
            case ast.Assign(targets=targets, value=until):
                pass
            case ast.For(target=target, iter=until) | ast.AsyncFor(target=target, iter=until):
                targets = [target]
            case ast.withitem(optional_vars=ast.Name() as target, context_expr=until):
                targets = [target]
            case _:
                continue
        for name in (part for target in targets for part in ast.walk(target)):
            if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store):
                bound.setdefault(name.id, source.span(until)[1])
    return bound


def _next_name(name: str, names: Iterable[str]) -> str:
    return min(names, key=lambda other: (other <= name, other))


def _wrong_attribute(source: FunctionSource) -> Iterator[Edit]:
    """Each use of an attribute of ``self`` becomes that of the next one in the function."""
    called = [node.func for node in source.nodes if isinstance(node, ast.Call)]
    attributes = [node for node in source.nodes if isinstance(node, ast.Attribute)]
    uses = [node for node in attributes if _name(node.value) == "self" and node not in called]
    names = {node.attr for node in uses}
    for node in uses:
        if isinstance(node.ctx, ast.Load) and len(names) > 1:
            end = source.span(node)[1]
            yield Edit(end - len(node.attr), end, _next_name(node.attr, names - {node.attr}))


def _return_value(source: FunctionSource) -> Iterator[Edit]:
    for node in source.nodes:
        if isinstance(node, ast.Return) and isinstance(node.value, (ast.Name, ast.Attribute)):
            yield Edit(*source.span(node.value), "None")


def _argument_order(source: FunctionSource) -> Iterator[Edit]:
    """Neighbouring arguments on one line, unless their order does not matter."""
    for node in source.nodes:
        if isinstance(node, ast.Call) and _name(node.func) not in _SYMMETRIC:
            for first, second in pairwise(node.args):
                (start, end), (next_start, stop) = source.span(first), source.span(second)
                gap = source.text[end:next_start]
                whole = "\n" not in source.text[start:stop] and gap.strip() == ","
                if whole and isinstance(first, _SIMPLE) and isinstance(second, _SIMPLE):
                    yield Edit(start, stop, source.of(second) + gap + source.of(first))


RULES: dict[str, Rule] = {
    "comparison": lambda source: _swap(source, _operators(source), _OPPOSITES),
    "boundary": lambda source: _swap(source, _operators(source), _NEXT_BOUNDS),
    "arithmetic": lambda source: _swap(source, _operators(source), _ARITHMETIC),
    "logical": lambda source: _swap(source, _operators(source), _LOGICAL),
    "boolean": lambda source: _swap(source, _places(source, ast.Constant), _TRUTH),
    "loop_control": lambda source: _swap(source, _places(source, ast.Break, ast.Continue), _ENDS),
    "wrong_method": lambda source: _swap(source, _callees(source), _METHODS),
    "off_by_one": _off_by_one,
    "negation": _negation,
    "wrong_variable": _wrong_variable,
    "wrong_attribute": _wrong_attribute,
    "return_value": _return_value,
    "argument_order": _argument_order,
}
