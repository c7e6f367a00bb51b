"""Writes the tables of docs/from_trl.md anew: ``python tests/docs/from_trl_page.py``."""

import re
from pathlib import Path

from lit_tidpo.converting import llama_factory_options, trl_options
from lit_tidpo.converting.options import FATES

PAGE = Path(__file__).parents[2] / "docs" / "from_trl.md"
FRAME = r"(?<=<!-- {name}: begin -->\n).*?(?=<!-- {name}: end -->)"
GROUPS = {"trl": trl_options.GROUPS, "llama-factory": llama_factory_options.GROUPS}


def tables(groups):
    return "\n".join(f"### {title}\n\n{table(options)}" for title, options in groups.items())


def table(options):
    """A row for each option, those of one fate, place and reason together."""
    rows = {}
    for each in options:
        default = "" if each.default is None or each.fate == "idle" else f"`{each.default}`"
        key = (FATES[each.fate], f"`{each.to}`" if each.to else "", each.why)
        names = f"`{each.name}`" + (f" ({default})" if default else "")
        rows.setdefault(key, []).append(names)
    cells = [(", ".join(names), *key) for key, names in rows.items()]
    head = [("option (default)", "", "here", "what differs, why, or what to do"), ("---",) * 4]
    return "".join(f"| {' | '.join(row)} |\n" for row in [*head, *cells])


def page(text):
    for name, groups in GROUPS.items():
        frame = re.compile(FRAME.format(name=name), re.DOTALL)
        text = frame.sub(lambda _, groups=groups: tables(groups), text)
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
