"""The report page with text that means harm, in a real browser where there is one."""

from __future__ import annotations

import html
import re
import shutil
import subprocess

import pytest

from lit_tidpo.callbacks.report_page import _PAGE, _pair, visible

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


def page(pairs=None):
    row = {"index": 0, "role": "<b>chosen", "tokens": HOSTILE, "weights": [1.0] * len(HOSTILE)}
    pairs = _pair([row]) if pairs is None else pairs
    return _PAGE.format(title="as it was", table="", curves="", pairs=pairs)


@pytest.fixture
def browse(tmp_path):
    """What a browser makes of a page, as HTML."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium or google-chrome on this machine")

    def run(text):
        (tmp_path / "page.html").write_text(text, encoding="utf-8")
        quiet = ["--disable-gpu", "--disable-background-networking", "--disable-sync"]
        command = [browser, "--headless", "--no-sandbox", "--no-first-run", *quiet]
        command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000"]
        command += ["--dump-dom", (tmp_path / "page.html").as_uri()]
        done = subprocess.run(command, capture_output=True, check=True, timeout=600)
        return done.stdout.decode()

    return run


def title(dom):
    return re.search("<title>(.*?)</title>", dom).group(1)


@pytest.mark.slow
def test_nothing_runs_and_all_is_shown_as_it_is(browse):
    dom = browse(page())
    assert title(dom) == "as it was"
    assert not re.search(r"<(script|img|svg|style|b)\b", dom.partition("<body>")[2])
    shown = re.findall(r"<span [^>]*>(.*?)</span>", dom, re.DOTALL)
    assert [html.unescape(each) for each in shown] == [html.unescape(visible(t)) for t in HOSTILE]


@pytest.mark.slow
def test_the_policy_of_the_page_stops_what_would_get_through(browse):
    """A script that stands in the page as it is does not run; without the policy it would."""
    raw = page(pairs=f"{HOSTILE[0]}{HOSTILE[1]}")
    assert title(browse(raw)) == "as it was"
    assert title(browse(re.sub("<meta http-equiv.*?>", "", raw, flags=re.DOTALL))) == "run"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<a href='x'>", "&lt;a href=&#x27;x&#x27;&gt;"),
        ("a\tb\nc é 漢 🙂", "a\tb\nc é 漢 🙂"),
        ("\x00\x1b\u202e\u2028\ufeff\ufdd0", "\\u0000\\u001b\\u202e\\u2028\\ufeff\\ufdd0"),
    ],
)
def test_what_a_reader_cannot_see_comes_as_its_number(text, expected):
    assert visible(text) == expected
