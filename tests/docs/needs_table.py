"""Writes the table of needs in CONTRIBUTING.md anew: ``python tests/docs/needs_table.py``."""

import re
from pathlib import Path

from lit_tidpo.models.needs import describe_needs

PAGE = Path(__file__).parents[2] / "CONTRIBUTING.md"
TABLE = re.compile(r"(?<=<!-- needs: begin -->\n).*?(?=<!-- needs: end -->)", re.DOTALL)


def table():
    rows = [(f"`{name}`", f"`{shape}`", words) for name, shape, words in describe_needs()]
    cells = [("need", "shape", "what it is"), ("---",) * 3, *rows]
    return "".join(
        f"| {' | '.join(c.replace('|', chr(92) + '|') for c in row)} |\n" for row in cells
    )


if __name__ == "__main__":
    PAGE.write_text(TABLE.sub(lambda _: table(), PAGE.read_text("utf-8")), encoding="utf-8")
