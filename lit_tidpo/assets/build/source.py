"""The source of one function, with the places of its nodes and tokens in characters."""

from __future__ import annotations

import ast
import io
import tokenize
import warnings
from collections.abc import Iterator
from itertools import accumulate

from lit_tidpo.errors import InputError

Span = tuple[int, int]

_WORDS = {tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING}
_SCOPES = (
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.Lambda,
    ast.ListComp,
    ast.SetComp,
    ast.DictComp,
    ast.GeneratorExp,
)


class FunctionSource:
    """The source of one function that starts with a docstring.

    Args:
        text: Source with its comments and decorators, at the left margin.

    Attributes:
        text: The source.
        docstring: Statement that holds the docstring.
        statements: The other statements of the body.
        nodes: All nodes of those statements, without annotations and the insides of f-strings.
        own: The nodes that are in the function's own scope.
        parameters: Names of the parameters.

    Raises:
        InputError: If the text is not one function with a docstring.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        statements = parse(text).body
        function = statements[0] if len(statements) == 1 else None
        if (
            not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
            or ast.get_docstring(function) is None
        ):
            raise InputError(
                "text must be the source of one function with a docstring at the left margin; got "
                f"{text!r:.80}: give its decorators, signature, docstring and body"
            )
        self.docstring, *self.statements = function.body
        self.nodes = [node for part in self.statements for node in _walk(part)]
        self.own = [node for part in self.statements for node in _walk(part, _SCOPES)]
        arguments = ast.walk(function.args)
        self.parameters = [node.arg for node in arguments if isinstance(node, ast.arg)]
        lines = text.split("\n")  # not splitlines(), which has more kinds of line ends than Python
        self._lines = [line.encode() for line in lines]
        self._starts = list(accumulate((len(line) + 1 for line in lines), initial=0))
        self._tokens = [
            (self._starts[token.start[0] - 1] + token.start[1], token.string)
            for token in tokenize.generate_tokens(io.StringIO(text).readline)
            if token.type in _WORDS
        ]

    def span(self, node: ast.expr | ast.stmt) -> Span:
        """Start and end of a node."""
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return (
            self._place(node.lineno, node.col_offset),
            self._place(node.end_lineno, node.end_col_offset),
        )

    def _place(self, line: int, column: int) -> int:
        # The columns of nodes count bytes of UTF-8.
        return self._starts[line - 1] + len(self._lines[line - 1][:column].decode())

    def of(self, node: ast.expr | ast.stmt) -> str:
        """Text of a node."""
        start, end = self.span(node)
        return self.text[start:end]

    def between(self, left: ast.expr, right: ast.expr) -> Span:
        """Start and end of the operator between two operands, which may be in parentheses."""
        start, end = self.span(left)[1], self.span(right)[0]
        words = [(at, word) for at, word in self._tokens if start <= at < end and word not in "()"]
        (first, _), (last, word) = words[0], words[-1]
        return first, last + len(word)

    def next_token(self, place: int) -> Span:
        """Start and end of the first token at or after a place."""
        start, word = next(token for token in self._tokens if token[0] >= place)
        return start, start + len(word)


def parse(text: str) -> ast.Module:
    """The syntax tree of a source, without warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old modules have invalid escapes in their strings
        return ast.parse(text)


def _walk(node: ast.AST, closed: tuple[type[ast.AST], ...] = ()) -> Iterator[ast.AST]:
    # Before Python 3.12 the places of nodes in f-strings are wrong.
    if isinstance(node, (ast.JoinedStr, *closed)):
        return
    yield node
    for name, value in ast.iter_fields(node):
        if name not in {"annotation", "returns"}:
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _walk(child, closed)
