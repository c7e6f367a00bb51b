"""The audit, against numbers by hand and scipy's bootstrap."""

import json

import numpy as np
import pytest
from modules.runs import write_model

from lit_tidpo.cli import main
from lit_tidpo.errors import InputError
from lit_tidpo.explaining.audit import check_lexicon, class_weights, heaviest_tokens
from lit_tidpo.explaining.pairs import ExplainedPair, ExplainedResponse


def pair(chosen, rejected):
    """A pair of responses as tokens with their weights."""
    responses = [
        ExplainedResponse(
            role, [0] * len(own), [*own], [False] * len(own), {"one": [*own.values()]}, {}
        )
        for role, own in (("chosen", chosen), ("rejected", rejected))
    ]
    return ExplainedPair(0, "", responses)


# "maybe" is of two tokens, "May" alone is none, and "é" is of two tokens
PAIRS = [
    pair({"May": 0.5, " may": 2.0, "be": -1.0, " yes": 0.5}, {" no": 1.5, " maybe": 0.5}),
    pair({"": 1.0, "é": 1.0, " x": 1.0}, {" maybe": 2.0, " no": 1.0, "!": 0.0}),
]
LEXICON = {"hedging": ["maybe"], "accents": ["É"], "none": ["zebra"]}


def test_shares_are_those_by_hand():
    hedging, accents, none = class_weights(PAIRS, LEXICON, resamples=50)
    assert (hedging.name, hedging.estimator, hedging.tokens) == ("hedging", "one", (2, 2))
    # 3 of the weight 7 in 2 of 7 tokens; 2.5 of 5 in 2 of 5
    assert hedging.chosen.value == pytest.approx((3 / 7) / (2 / 7))
    assert hedging.rejected.value == pytest.approx((2.5 / 5) / (2 / 5))
    assert hedging.difference.value == pytest.approx(1.5 - 1.25)
    assert accents.tokens == (2, 0)
    assert accents.chosen.value == pytest.approx(1.0)
    assert accents.rejected.value is accents.difference.value is None
    assert none.tokens == (0, 0)


def test_intervals_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(0)
    weights = generator.gamma(2.0, size=(60, 2, 2))
    pairs = [
        pair({" maybe": a, " x": b}, {" maybe": c, " x": d}) for (a, b), (c, d) in weights.tolist()
    ]
    (found,) = class_weights(pairs, {"hedging": ["maybe"]}, resamples=4000)

    def relative(inside, outside):
        return 2 * inside.sum(-1) / (inside.sum(-1) + outside.sum(-1))

    def difference(*own):
        return relative(*own[:2]) - relative(*own[2:])

    samples = tuple(weights.reshape(60, 4).T)
    expected = stats.bootstrap(
        samples, difference, paired=True, vectorized=False, method="percentile", n_resamples=4000,
        rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert found.difference.value == pytest.approx(difference(*samples))
    assert found.difference.low == pytest.approx(expected.low, abs=0.02)
    assert found.difference.high == pytest.approx(expected.high, abs=0.02)


def test_the_heaviest_tokens_are_those_of_the_largest_mean():
    (found,) = heaviest_tokens(PAIRS, least=2, most=5).values()
    assert found == [("may", 2, 1.25), ("no", 2, 1.25), ("maybe", 2, 1.25)]
    assert heaviest_tokens(PAIRS, least=3) == {"one": []}


@pytest.mark.parametrize("lexicon", [[], {}, {"a": "word"}, {"a": []}, {"a": [1]}, {"a": [""]}])
def test_what_is_no_lexicon_is_refused(lexicon):
    with pytest.raises(InputError, match="lexicon: expected an object of classes"):
        check_lexicon(lexicon)


def test_the_command_writes_a_page_and_its_numbers(tmp_path, capsys):
    folder = write_model(tmp_path / "model")
    rows = [{"prompt": f"q{n}", "chosen": f" yes {n}", "rejected": f" maybe {n}"} for n in range(4)]
    (tmp_path / "pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "words.json").write_text('{"<b>hedging": ["maybe"]}')
    words = [
        "audit",
        folder,
        str(tmp_path / "words.json"),
        "--source",
        str(tmp_path / "pairs.jsonl"),
    ]
    words += ["--split", "train", "--pairs", "3", "--importance.even", "uniform"]
    main([*words, "--output", str(tmp_path / "audit.html")])
    numbers = json.loads((tmp_path / "audit.json").read_text())
    assert numbers["pairs"] == 3
    (found,) = numbers["classes"]
    assert found["tokens"] == [0, 15]  # a token for each letter
    assert found["rejected"]["value"] == pytest.approx(1.0)
    page = (tmp_path / "audit.html").read_text()
    assert (
        "<td>&lt;b&gt;hedging</td><td>0, 15</td><td>none</td><td>1.00 (1.00 to 1.00)</td>" in page
    )
    assert "3 pairs" in capsys.readouterr().out
