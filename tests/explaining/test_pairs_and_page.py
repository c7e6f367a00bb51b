"""What a page shows of given numbers, and how it behaves in a browser."""

import html
import json
import re
from importlib.resources import files

import pytest
from modules.runs import byte_tokenizer
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from lit_tidpo.explaining.explain import Explanation
from lit_tidpo.explaining.page import columns, shown_tokens
from lit_tidpo.explaining.pairs import ExplainedPair, ExplainedResponse, token_texts


def response(role, weights, other, ratios=(0.0, -0.5, 0.25), edited=(False, True, False)):
    return ExplainedResponse(
        role,
        [1, 2, 3],
        ["a ", "long" * 40, "\n"],
        list(edited),
        {"first": weights, "second": other},
        {"log-ratio": list(ratios)},
    )


EVEN = [1.0, 1.0, 1.0]
PAIRS = [
    ExplainedPair(
        4,
        "agree",
        [response("chosen", EVEN, [2.0, 2.0, 2.0]), response("rejected", EVEN, [0.0, 0.0, 0.0])],
    ),
    ExplainedPair(
        7,
        "differ",
        [response("chosen", [2.0, 0.0, -1.0], [0.0, 3.0, 0.0]), response("rejected", EVEN, EVEN)],
    ),
]


def test_disagreement_is_the_weight_that_is_put_elsewhere():
    """By hand: all of it in one response of the second pair, none in the other; 0 is uniform."""
    assert [pair.disagreement for pair in PAIRS] == pytest.approx([0.0, 0.5])
    assert ExplainedPair(0, "", [ExplainedResponse("", [], [], [], {}, {})]).disagreement is None


def test_ranks_go_by_size_and_ties_share_the_better_one():
    assert PAIRS[1].responses[0].ranks("first") == [1, 3, 2]
    assert PAIRS[0].responses[0].ranks("first") == [1, 1, 1]


def test_a_part_of_a_letter_can_be_pointed_at_and_hides_the_letter_from_no_search():
    split = ExplainedResponse("", [1, 2], ["", "漢"], [False] * 2, {"one": [1.0, 0.5]}, {})
    page = Explanation([ExplainedPair(0, "", [split])], "").html()
    part, whole = re.findall(r'<span class="token([ a-z]*)" [^>]*>(.*?)</span>', page)
    assert (part, whole) == ((" part", ""), ("", "漢"))


def test_a_token_tells_its_numbers_and_is_shaded_by_its_part_of_the_largest():
    token = shown_tokens(PAIRS[1].responses[0], PAIRS[1])[2]
    assert token.levels == [-50, 0, 50]
    assert token.text == "↵\n"
    assert token.note == "first -1 (rank 2 of 3), second 0 (rank 2 of 3), log-ratio +0.250"
    assert columns(PAIRS) == {"weights": ["first", "second"], "other quantities": ["log-ratio"]}
    assert columns([]) == {}


def test_texts_of_tokens_join_to_the_text():
    """Where each token alone would lose its space (as in Llama 2), or be a part of a letter."""
    words = Tokenizer(models.WordLevel({"▁a": 0, "▁b": 1, "<unk>": 2}, unk_token="<unk>"))
    words.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    spaced = PreTrainedTokenizerFast(tokenizer_object=words)
    assert spaced.decode([1]) == "b"
    assert token_texts([0, 1, 1], [], spaced) == ["a", " b", " b"]
    assert token_texts([1, 1], [0], spaced) == [" b", " b"]
    of_bytes = byte_tokenizer()
    text = "a漢é 🙂b"
    ids = of_bytes(text, add_special_tokens=False)["input_ids"]
    found = token_texts(ids[1:], ids[:1], of_bytes)
    assert len(ids) == len(text.encode())
    assert found == ["", "", "漢", "", "é", " ", "", "", "", "🙂", "b"]


def test_a_notebook_gets_the_page_in_a_frame():
    page = Explanation(PAIRS, "a title")
    pattern = r'<iframe sandbox="allow-scripts" srcdoc="(.*?)".*'
    frame = re.fullmatch(pattern, page._repr_html_(), re.DOTALL)
    assert html.unescape(frame.group(1)) == page.html()
    assert "http" not in page.html().replace("http-equiv", "")


def luminance(colour):
    """Relative luminance (WCAG 2.2) of #rgb or #rrggbb."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * each for each in colour[1:])
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return sum(share * part for share, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_text_can_be_read_on_every_shade():
    """The contrast of WCAG's level AA; shades lie between the ground and the full colour."""
    style = (files("lit_tidpo.explaining") / "templates/page.css").read_text()
    for theme in style.split("@media")[:2]:
        colours = dict(re.findall(r"--(\w+): (#\w+)", theme))
        lights = {name: luminance(colours[name]) for name in ("ink", "ground", "plus", "minus")}
        for name in ("ground", "plus", "minus"):
            low, high = sorted((lights[name], lights["ink"]))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (theme[:20], name)


_PROBE = """
<title>?</title><iframe id="frame" style="width:320px;height:600px" srcdoc="{page}"></iframe>
<script>
document.getElementById("frame").addEventListener("load", () => {{
  const inner = document.getElementById("frame").contentDocument, found = {{}};
  const view = inner.defaultView, form = inner.getElementById("view"), fields = form.elements;
  const all = (what) => [...inner.querySelectorAll(what)];
  const set = (name, value) => {{
    fields[name].value = value;
    form.dispatchEvent(new view.Event("input", {{ bubbles: true }}));
  }};
  const shown = () =>
    all("article").filter((each) => !each.hidden).map((each) => each.dataset.index);
  const press = (key) => inner.activeElement.dispatchEvent(
    new view.KeyboardEvent("keydown", {{ key, bubbles: true }}));
  const root = inner.documentElement;
  found.overflow = root.scrollWidth - root.clientWidth;
  found.cut = all("pre").filter((each) => each.scrollWidth > each.clientWidth).length;
  found.ground = view.getComputedStyle(inner.body).backgroundColor;
  const first = all(".token")[0], note = inner.getElementById("note");
  first.focus(); press("ArrowRight"); press("End"); press("ArrowLeft");
  found.focused = inner.activeElement.textContent;
  found.note = note.textContent;
  first.dispatchEvent(new view.MouseEvent("mouseover", {{ bubbles: true }}));
  found.hovered = note.textContent;
  set("order", "disagreement"); found.sorted = shown();
  set("search", "AGREE"); found.searched = shown(); set("search", "");
  set("least", "0.3"); found.filtered = shown(); set("least", "0");
  set("shade", "2"); const second = all("[data-index='7'] .token")[1];
  found.shade = [second.style.getPropertyValue("--level"), second.classList.contains("minus")];
  all("[name=role][value=rejected]")[0].click();
  const seen = (each) => each.getClientRects().length > 0;
  found.roles = all("section").filter(seen).map((each) => each.dataset.role);
  document.title = JSON.stringify(found);
}});
</script>
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "ground"),
    [
        pytest.param(["--blink-settings=preferredColorScheme=1"], "rgb(255, 255, 255)", id="light"),
        pytest.param(["--blink-settings=preferredColorScheme=0"], "rgb(22, 24, 28)", id="dark"),
    ],
)
def test_a_browser_shows_it_on_a_phone_and_by_the_keyboard(browse, options, ground):
    page = Explanation(PAIRS, "a title").html()
    dom = browse(_PROBE.format(page=html.escape(page)), *options)
    found = json.loads(html.unescape(re.search("<title>(.*?)</title>", dom).group(1)))
    note = "first 1 (rank 1 of 3), second 2 (rank 1 of 3), log-ratio"
    assert found == {
        "overflow": 0,
        "cut": 0,
        "ground": ground,
        "focused": "long" * 40,
        "note": f"{'long' * 40}: {note} -0.500",
        "hovered": f"a: {note} +0.000",
        "sorted": ["7", "4"],
        "searched": ["4"],
        "filtered": ["7"],
        "shade": ["100%", True],
        "roles": ["prompt", "chosen"] * 2,
    }
