"""Imports walk one way: what is low never imports what is high, and there is no cycle."""

import ast
from pathlib import Path

import lit_tidpo

ROOT = Path(lit_tidpo.__file__).parent
# A module may import modules of its own and of lower layers. The longest matching prefix counts.
LAYERS = {
    "errors": 0,
    "edits": 0,
    "functional": 0,
    "devices": 0,
    "structures": 0,
    "plugins": 0,
    "plugins.hparams": 0,
    "locations": 0,
    "assets": 0,
    "schedules": 0,
    "seeding": 0,
    "pair_cache": 0,
    "models": 1,
    "strategies": 1,
    "sampling": 1,
    "data": 1,
    "importance": 1,
    "importance.base": 1,
    "importance.priors": 1,
    "importance.kept_weights": 1,
    "losses": 1,
    "losses.base": 1,
    "losses.pair": 1,
    "losses.divergences": 1,
    "importance.combining": 1,
    "importance.token_files": 1,
    "importance.": 2,
    "losses.": 2,
    "objective": 2,
    "metrics": 2,
    "testing": 2,
    "assets.build": 2,
    "modules": 3,
    "callbacks": 3,
    "explaining": 3,
    "memory": 3,
    "": 3,
    "converting": 1,
    "plugins.parser": 4,
    "commands": 4,
    "cli": 4,
    "__main__": 4,
}


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield tuple(part for part in parts if part != "__init__"), path


def imports(path):
    """Modules of the package that a file imports, those for type checks alone left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name.split(".")[1:] for name in names if name.split(".")[0] == "lit_tidpo")


def layer(parts):
    name = ".".join(parts)
    prefixes = [p for p in LAYERS if name == p or name.startswith(f"{p.rstrip('.')}.")]
    assert prefixes or not name, f"{name} has no layer"
    return LAYERS[max(prefixes, key=len, default="")]


def test_no_module_imports_a_higher_one():
    wrong = [
        f"{'.'.join(parts)} imports {'.'.join(name)}"
        for parts, path in modules()
        for name in imports(path)
        if layer(name) > layer(parts)
    ]
    assert wrong == []


def test_modules_name_no_concrete_estimator_or_loss():
    for parts, path in modules():
        if layer(parts) >= 3:
            assert not [n for n in imports(path) if ".".join(n).endswith(("_importance", "_loss"))]


def test_the_mathematics_imports_torch_alone():
    for path in (ROOT / "functional").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] in {"torch", "typing", "__future__"} or name.startswith(
                    "lit_tidpo.functional"
                )


def test_there_is_no_cycle():
    graph = {".".join(parts): {".".join(n) for n in imports(path)} for parts, path in modules()}
    done, open_ = set(), []

    def visit(name):
        assert name not in open_, f"cycle: {[*open_, name]}"
        if name in done or name not in graph:
            return
        open_.append(name)
        for target in sorted(graph[name]):
            visit(target)
        open_.pop()
        done.add(name)

    for name in graph:
        visit(name)
