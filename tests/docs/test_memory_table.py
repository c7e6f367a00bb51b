"""The table of measured memory in the documentation is the results' file's."""

import json
from pathlib import Path

from benchmarks import memory

ROOT = Path(__file__).parents[2]


def test_the_page_has_the_measured_memory():
    """``python -m benchmarks.memory`` prints it."""
    rows = json.loads((ROOT / memory.RESULTS).read_text(encoding="utf-8"))
    page = (ROOT / "docs/costs.md").read_text(encoding="utf-8")
    begin, end = (f"<!-- memory: {word} -->\n" for word in ("begin", "end"))
    assert page.partition(begin)[2].partition(end)[0] == memory.table(rows)
    assert [row["run"] for row in rows] == [name for name in memory.RUNS if name in page]
