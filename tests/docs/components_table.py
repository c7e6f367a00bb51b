"""Writes the tables of docs/components.md anew: ``python tests/docs/components_table.py``."""

import ast
import re
from functools import cache
from pathlib import Path

from lit_tidpo.commands.catalogue import catalogue
from lit_tidpo.plugins.registry import IMPORTANCE, LOSSES

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "components.md"
FRAME = r"(?<=<!-- {group}: begin -->\n).*?(?=<!-- {group}: end -->)"
COLUMNS = {
    IMPORTANCE: ("name", "source", "needs", "cost", "looks at", "test"),
    LOSSES: ("name", "source", "needs", "unit", "weighted", "test"),
}
PARTS = "of its parts"


@cache
def built_in():
    """What is known of each component of this distribution, its test included."""
    return [
        {**each, "test": proof(each)} for each in catalogue() if each["distribution"] == "lit-tidpo"
    ]


def proof(component):
    """The test of a component, from the root: of the files of its group that import its class, or
    that have its short name in a table, the one that is called like it, or the first; None where
    there is none. Tests that run over everything that is registered name nothing.
    """
    name = component["class"].rpartition(":")[2]
    files = sorted((ROOT / "tests" / component["group"].rpartition(".")[2]).rglob("test_*.py"))
    found = [path for path in files if {name, component["name"]} & _named(path)]
    own = [path for path in found if component["name"] in path.stem]
    return str((own or found)[0].relative_to(ROOT)) if found else None


@cache
def _named(path):
    """Names that a file imports from a component's module, and what its tables begin with."""
    nodes = [*ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    imported = {
        name.name
        for node in nodes
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lit_tidpo.")
        for name in node.names
    }
    called = [node.args for node in nodes if isinstance(node, ast.Call)]
    rows = [node.elts for node in nodes if isinstance(node, ast.Tuple)]
    listed = [each for node in nodes if isinstance(node, ast.List) for each in node.elts]
    first = [*listed, *(row[0] for row in [*called, *rows] if row)]
    return imported | {each.value for each in first if isinstance(each, ast.Constant)}


def table(group, components):
    """The table of a group; what has no test is not in it."""
    rows = [_cells(each) for each in components if each["group"] == group and each["test"]]
    head = COLUMNS[group]
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ("---",) * len(head), *rows))


def _cells(component):
    needs, weighted = component["needs"], component.get("weighted")
    values = {
        **component,
        "name": f"`{component['name']}`",
        "source": component["source"] or "",
        "needs": PARTS if needs is None else ", ".join(f"`{need}`" for need in needs),
        "cost": component.get("cost") or PARTS,
        "looks at": component.get("looks_at") or PARTS,
        "weighted": "yes" if weighted else "",
        "test": f"[{Path(component['test']).name}](../{component['test']})",
    }
    return tuple(values[column] or "" for column in COLUMNS[component["group"]])


def page(text):
    """The page with its tables written anew."""
    components = built_in()
    for group in COLUMNS:
        frame = re.compile(FRAME.format(group=group), re.DOTALL)
        text = frame.sub(lambda _, group=group: table(group, components), text)
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
