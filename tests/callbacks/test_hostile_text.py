"""The pages with text that means harm, in a real browser where there is one."""

from __future__ import annotations

import html
import re

import pytest
from markupsafe import Markup

from lit_tidpo.explaining.explain import Explanation
from lit_tidpo.explaining.page import rendered, visible
from lit_tidpo.explaining.pairs import ExplainedPair, ExplainedResponse

HOSTILE = [
    "<script>document.title='run'</script>",
    "<img src=x onerror=\"document.title='run'\">",
    "</pre></div><svg onload=\"document.title='run'\">",
    "' onmouseover='document.title=1' x='",
    "<!-- <style>body{display:none}</style> -->",
    "\u202eevil\u202c \u2066x\u2069 \u200b\ufeff",
    "\x00\x1b[31m\x08\x7f\x85",
    "a\u2028b\u2029c",
    "\ufdd0\ue000",
    "&lt;script&gt; &amp;amp;",
]


def pair():
    """Harm in the prompt, the tokens, and the names of roles, estimators and quantities."""
    count = len(HOSTILE)
    response = ExplainedResponse(
        f"{HOSTILE[0]}\"'>",
        [*range(count)],
        HOSTILE,
        [True] * count,
        {f"{HOSTILE[1]}\"'>": [1.0] * count, "other": [0.5] * count},
        {f"</option>{HOSTILE[0]}\"'>": [-1.0] * count},
    )
    return ExplainedPair(0, "".join(HOSTILE), [response])


def report(curves=""):
    return rendered("report", title="as it was", spans={}, curves=Markup(curves), pairs=[pair()])


def explanation():
    return Explanation([pair()], "as it was").html()


def title(dom):
    return re.search("<title>(.*?)</title>", dom).group(1)


@pytest.mark.slow
@pytest.mark.parametrize("page", [report, explanation])
def test_nothing_runs_and_all_is_shown_as_it_is(browse, page):
    dom = browse(page())
    assert title(dom) == "as it was"
    assert not re.search(r"<(script|img|svg|style|b)\b", dom.partition("<body>")[2])
    shown = re.findall(r'<span class="token[^>]*>(.*?)</span>', dom, re.DOTALL)
    assert [html.unescape(each) for each in shown] == [visible(text) for text in HOSTILE]
    prompt = re.search(r'<section data-role="prompt".*?<span>(.*?)</span>', dom, re.DOTALL)
    assert html.unescape(prompt.group(1)) == visible("".join(HOSTILE))


@pytest.mark.slow
def test_the_policy_of_the_page_stops_what_would_get_through(browse):
    """A script that stands in the page as it is does not run; without the policy it would."""
    raw = report(curves=f"{HOSTILE[0]}{HOSTILE[1]}")
    assert title(browse(raw)) == "as it was"
    without = re.sub('<meta http-equiv="Content-Security-Policy".*?>', "", raw, flags=re.DOTALL)
    assert title(browse(without)) == "run"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<a href='x'>", "<a href='x'>"),
        ("a\tb\nc é 漢 🙂", "a\tb\nc é 漢 🙂"),
        ("\x00\x1b\u202e\u2028\ufeff\ufdd0", "\\u0000\\u001b\\u202e\\u2028\\ufeff\\ufdd0"),
    ],
)
def test_what_a_reader_cannot_see_comes_as_its_number(text, expected):
    assert visible(text) == expected
