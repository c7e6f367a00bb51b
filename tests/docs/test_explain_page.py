"""Runs the documented lines, as they are printed."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/explain.md"


def test_less_than_ten_lines_make_a_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names = {}
    exec(block, names)
    assert (tmp_path / "explanation.html").read_text().count("<article") == 1
    assert len(eval(capsys.readouterr().out)) == len(names["page"].pairs[0].responses[1].tokens)
