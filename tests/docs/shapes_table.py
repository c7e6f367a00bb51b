"""Writes the shapes of rows in docs/data.md anew: ``python tests/docs/shapes_table.py``."""

import re
from pathlib import Path

from lit_tidpo.data.shapes import describe_shapes

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
TABLE = re.compile(r"(?<=<!-- shapes: begin -->\n).*?(?=<!-- shapes: end -->)", re.DOTALL)

if __name__ == "__main__":
    PAGE.write_text(TABLE.sub(lambda _: describe_shapes(), PAGE.read_text("utf-8")), "utf-8")
