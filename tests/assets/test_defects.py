from __future__ import annotations

import ast

import pytest

from lit_tidpo.assets.build.defects import Defect, plant_defects, spans_hold
from lit_tidpo.assets.build.rules import RULES
from lit_tidpo.assets.build.source import FunctionSource
from lit_tidpo.errors import InputError

PROMPT = '@cached\ndef f(self, a, b=0):\n    """Do it."""'

# Kind, body, and each defect of that kind: rejected body, chosen span, rejected span.
# In "\n    return a < b" the newline is character 0, "return" 5 to 11, "a" 12, "<" 14 and "b" 16.
CASES = [
    ("comparison", "\n    return a < b", [("\n    return a > b", (14, 15), (14, 15))]),
    ("comparison", "\n    return a == b", [("\n    return a != b", (14, 16), (14, 16))]),
    ("comparison", "\n    return a is b", [("\n    return a is not b", (14, 16), (14, 20))]),
    ("comparison", "\n    return a not  in b", [("\n    return a in b", (14, 21), (14, 16))]),
    (
        "comparison",
        "\n    return (a) <= (b) > 0",
        [
            ("\n    return (a) >= (b) > 0", (16, 18), (16, 18)),
            ("\n    return (a) <= (b) < 0", (23, 24), (23, 24)),
        ],
    ),
    ("boundary", "\n    return a < b", [("\n    return a <= b", (14, 15), (14, 16))]),
    ("boundary", "\n    return a >= b", [("\n    return a > b", (14, 16), (14, 15))]),
    ("boundary", "\n    return a == b", []),
    (
        "off_by_one",
        "\n    return a[1:5] + a[-1], 7",
        [
            ("\n    return a[2:5] + a[-1], 7", (14, 15), (14, 15)),
            ("\n    return a[1:4] + a[-1], 7", (16, 17), (16, 17)),
            ("\n    return a[1:5] + a[-2], 7", (24, 25), (24, 25)),
        ],
    ),
    (
        "off_by_one",
        "\n    return range(10, b - 1) if a > 0 else 0x1F + b",
        [
            ("\n    return range(9, b - 1) if a > 0 else 0x1F + b", (18, 20), (18, 19)),
            ("\n    return range(10, b - 2) if a > 0 else 0x1F + b", (26, 27), (26, 27)),
            ("\n    return range(10, b - 1) if a > 1 else 0x1F + b", (36, 37), (36, 37)),
        ],
    ),
    ("arithmetic", "\n    return a * b", [("\n    return a // b", (14, 15), (14, 16))]),
    ("arithmetic", "\n    a -= b", [("\n    a += b", (7, 9), (7, 9))]),
    ("arithmetic", '\n    return a + "b" + b, [a] + b, "%s" % b', []),
    (
        "logical",
        "\n    return (a and\n            b and self)",
        [
            ("\n    return (a or\n            b and self)", (15, 18), (15, 17)),
            ("\n    return (a and\n            b or self)", (33, 36), (33, 35)),
        ],
    ),
    ("boolean", "\n    return g(a, b=True)", [("\n    return g(a, b=False)", (19, 23), (19, 24))]),
    ("boolean", "\n    return 1 or None", []),
    # The rejected span of a dropped not covers the token that moves to its place.
    ("negation", "\n    return not ready", [("\n    return ready", (12, 16), (12, 17))]),
    ("negation", "\n    return not (a)", [("\n    return (a)", (12, 16), (12, 13))]),
    (
        "negation",
        "\n    while ready and a > b:\n        g()",
        [("\n    while not ready and a > b:\n        g()", (11, 16), (11, 15))],
    ),
    (
        "negation",
        "\n    return [c for c in a if c.x]",
        [("\n    return [c for c in a if not c.x]", (29, 30), (29, 33))],
    ),
    (
        "loop_control",
        "\n    for c in a:\n        if c: break\n        continue",
        [
            ("\n    for c in a:\n        if c: continue\n        continue", (31, 36), (31, 39)),
            ("\n    for c in a:\n        if c: break\n        break", (45, 53), (45, 50)),
        ],
    ),
    (
        "wrong_method",
        "\n    a.append(min(b))",
        [
            ("\n    a.extend(min(b))", (7, 13), (7, 13)),
            ("\n    a.append(max(b))", (14, 17), (14, 17)),
        ],
    ),
    ("wrong_method", "\n    return min, a.append", []),
    # The next name that is bound before: c does not exist yet in its own assignment.
    (
        "wrong_variable",
        "\n    c = a\n    return g(b, d)",
        [
            ("\n    c = b\n    return g(b, d)", (9, 10), (9, 10)),
            ("\n    c = a\n    return g(c, d)", (24, 25), (24, 25)),
        ],
    ),
    # A copy has the same value as the original.
    ("wrong_variable", "\n    b = a\n    return b", []),
    (
        "wrong_variable",
        "\n    for c in b:\n        self.g(c)",
        [
            ("\n    for c in a:\n        self.g(c)", (14, 15), (14, 15)),
            ("\n    for c in b:\n        self.g(a)", (32, 33), (32, 33)),
        ],
    ),
    ("wrong_variable", "\n    return [b for b in self], lambda a: a, a(), f'{a}'", []),
    (
        "wrong_attribute",
        "\n    self.x = self.y\n    self.z()",
        [("\n    self.x = self.x\n    self.z()", (19, 20), (19, 20))],
    ),
    ("argument_order", "\n    g(a, b.c)", [("\n    g(b.c, a)", (7, 13), (7, 13))]),
    ("argument_order", "\n    g(a, *b), max(a, b), g(a,\n      b), g(a, a)", []),
    (
        "return_value",
        "\n    if a:\n        return self.x\n    return 1",
        [("\n    if a:\n        return None\n    return 1", (26, 32), (26, 30))],
    ),
]


def defects(body: str, kind: str) -> list[Defect]:
    return [defect for defect in plant_defects(PROMPT, body) if defect.kind == kind]


@pytest.mark.parametrize(("kind", "body", "expected"), CASES)
def test_texts_and_spans(kind, body, expected):
    planted = [(d.rejected, d.chosen_span, d.rejected_span) for d in defects(body, kind)]
    assert planted == expected


def test_each_kind_has_a_case():
    assert {kind for kind, _, expected in CASES if expected} == set(RULES)


@pytest.mark.parametrize("body", [body for _, body, _ in CASES])
def test_all_defects_parse_differ_and_have_true_spans(body):
    for defect in plant_defects(PROMPT, body):
        changed, true = (ast.dump(ast.parse(PROMPT + text)) for text in (defect.rejected, body))
        assert changed != true
        assert spans_hold(body, defect.rejected, defect.chosen_span, defect.rejected_span)


def test_spans_count_characters_where_columns_count_bytes():
    # "é" and "ß" are two bytes each, "€" three: "<" is character 21 of the body, byte 25.
    [defect] = defects('\n    return g("éß€") < b', "comparison")
    assert defect.rejected == '\n    return g("éß€") > b'
    assert defect.chosen_span == defect.rejected_span == (21, 22)
    [defect] = defects('\n    return g("éß€", b)', "argument_order")
    assert defect.rejected == '\n    return g(b, "éß€")'
    assert defect.chosen_span == (14, 22)


def test_comments_and_line_breaks_stay():
    [defect] = defects("\n    return (a  # a < b\n            <  b)  # done", "comparison")
    assert defect.rejected == "\n    return (a  # a < b\n            >  b)  # done"


def test_annotations_are_left_alone():
    assert defects("\n    c: g[1] = a\n    def h(x: y[0]) -> z[2]: ...", "off_by_one") == []


def test_the_prompt_is_left_alone():
    prompt = '@cached(True)\ndef f(a=True, b=1 < 2):\n    """Do it."""'
    assert plant_defects(prompt, "\n    pass") == []


@pytest.mark.parametrize(
    "text", ["x = 1", "def f():\n    pass", 'def f():\n    """A."""\ndef g():\n    """B."""']
)
def test_a_source_is_one_function_with_a_docstring(text):
    with pytest.raises(InputError, match="one function with a docstring"):
        FunctionSource(text)


@pytest.mark.parametrize(
    ("rejected", "chosen_span", "rejected_span"),
    [
        ("\n    return a < b", (14, 15), (14, 15)),  # equal
        ("\n    return a > c", (14, 15), (14, 15)),  # differs elsewhere
        ("\n    return a > b", (14, 15), (15, 15)),  # another start
        ("\n    return a > b", (14, 14), (14, 14)),  # empty
        ("\n    return a > b", (14, 15), (14, 40)),  # beyond the end
    ],
)
def test_false_spans_are_found(rejected, chosen_span, rejected_span):
    assert not spans_hold("\n    return a < b", rejected, chosen_span, rejected_span)
