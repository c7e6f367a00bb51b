"""Plugins are found by their entry points, imported at first use, and named when they fail."""

import pickle
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from fake_distributions import ESTIMATOR, FakeSite

import lit_tidpo.importance
import lit_tidpo.losses
from lit_tidpo.errors import InputError, PluginError
from lit_tidpo.importance.base import ImportanceEstimator
from lit_tidpo.losses.base import LossComponent
from lit_tidpo.plugins.registry import IMPORTANCE, LOSSES, examined, is_built_in, load, registered

LOSS_FILES = Path(lit_tidpo.losses.__file__).parent.glob("*_loss.py")
BUILT_IN = {
    IMPORTANCE: {
        "attention",
        "attention_rollout",
        "clipped",
        "confidence",
        "contrast",
        "detector",
        "difference",
        "embedding_norm",
        "entropy",
        "gradient",
        "gradient_log_ratio",
        "gradient_times_attention",
        "gradient_times_input",
        "hybrid",
        "integrated_gradients",
        "judged_attention",
        "log_ratio",
        "maximum",
        "mixture",
        "optimal_transport",
        "per_role",
        "position_decay",
        "product",
        "random",
        "rarity",
        "relative",
        "stored",
        "supplied",
        "surprisal",
        "tempered",
        "top_k",
        "uniform",
    },
    LOSSES: {path.stem.removesuffix("_loss") for path in LOSS_FILES},
}


@pytest.fixture
def site(tmp_path, monkeypatch):
    return FakeSite(tmp_path, monkeypatch)


def load_estimator(name):
    return load(IMPORTANCE, name, ImportanceEstimator)


# What is found


@pytest.mark.parametrize(
    ("group", "base"), [(IMPORTANCE, ImportanceEstimator), (LOSSES, LossComponent)]
)
def test_the_built_in_plugins_are_found_and_load(group, base):
    own = {entry.name for entry in registered(group) if entry.dist.name == "lit-tidpo"}
    assert own == BUILT_IN[group]
    for name in own:
        assert issubclass(load(group, name, base), base)


def test_a_third_partys_plugin_is_found_and_loads(site):
    site.add(
        "thirds",
        modules={"thirds": ESTIMATOR.format(name="Third")},
        importance={"third": "thirds:Third"},
    )
    assert load_estimator("third").__name__ == "Third"


def test_entries_are_sorted_by_name_and_distribution(site):
    for name in ("zebra", "ant"):
        site.add(name, importance={"sorted_b": "m:A", "sorted_a": "m:A"})
    entries = [(e.name, e.dist.name) for e in registered(IMPORTANCE) if e.name.startswith("sorted")]
    assert entries == [
        ("sorted_a", "ant"),
        ("sorted_a", "zebra"),
        ("sorted_b", "ant"),
        ("sorted_b", "zebra"),
    ]


# What is wrong


def test_an_unknown_name_lists_the_known(site):
    site.add("thirds", importance={"third": "nowhere:Nothing"})
    with pytest.raises(PluginError) as caught:
        load_estimator("gradiant")
    assert "no plugin 'gradiant' in lit_tidpo.importance" in str(caught.value)
    for name in (*BUILT_IN[IMPORTANCE], "third"):
        assert name in str(caught.value)
    assert "triplet" not in str(caught.value)
    assert isinstance(caught.value, InputError)  # one line on the command line


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("import surely_not_installed", ModuleNotFoundError),
        ("raise RuntimeError('no licence')", RuntimeError),
        ("Bad: = 1", SyntaxError),
        ("Other = 1", AttributeError),
    ],
)
def test_a_broken_plugin_is_named_with_its_distribution_and_cause(site, text, kind):
    site.add("poor-work", "0.7", {"poor_work": text}, importance={"poor": "poor_work:Poor"})
    with pytest.raises(PluginError) as caught:
        load_estimator("poor")
    assert "'poor' (poor_work:Poor) of poor-work 0.7" in str(caught.value)
    assert f"{kind.__name__}: {caught.value.__cause__}" in str(caught.value)
    assert type(caught.value.__cause__) is kind


@pytest.mark.parametrize("value", ["wrong_kind:NUMBER", "wrong_kind:Loss", "wrong_kind:instance"])
def test_what_is_no_class_of_the_right_kind_is_refused(site, value):
    text = "\n".join(
        [
            "from lit_tidpo.importance.uniform_importance import UniformImportance",
            "from lit_tidpo.losses.dpo_loss import DPOLoss as Loss",
            "NUMBER, instance = 3, UniformImportance()",
        ]
    )
    site.add("wrong-kind", "2.1", {"wrong_kind": text}, importance={"wrong": value})
    with pytest.raises(PluginError, match=r"'wrong'.*wrong-kind 2\.1.*ImportanceEstimator"):
        load_estimator("wrong")


@pytest.mark.parametrize("name", ["base", "priors", "kept_weights", "gradient_importance"])
def test_a_plugin_that_a_module_of_the_group_would_hide_is_refused(site, name):
    """``lit_tidpo.importance.base`` is a module already."""
    text = ESTIMATOR.format(name="Third")
    site.add("thirds", modules={"thirds": text}, importance={name: "thirds:Third"})
    with pytest.raises(PluginError, match=rf"'{name}'.*thirds 1\.0.*module {IMPORTANCE}\.{name}"):
        load_estimator(name)


def test_a_name_registered_twice_names_both_distributions(site):
    for name, version in (("first", "1.0"), ("second", "2.0")):
        site.add(
            name,
            version,
            {name: ESTIMATOR.format(name="Twin")},
            importance={"twin": f"{name}:Twin"},
        )
    with pytest.raises(PluginError, match=r"'twin'.*first 1\.0 and second 2\.0"):
        load_estimator("twin")
    assert not site.imported("first")


def test_a_built_in_name_cannot_be_taken_over(site):
    site.add(
        "taker",
        "3.0",
        {"taker": ESTIMATOR.format(name="Mine")},
        importance={"gradient": "taker:Mine"},
    )
    with pytest.raises(PluginError, match=r"'gradient'.*lit-tidpo .* and taker 3\.0"):
        load_estimator("gradient")


# What is imported


def test_nothing_is_imported_until_it_is_used(site):
    site.add(
        "lazy",
        modules={"lazy": ESTIMATOR.format(name="Lazy")},
        importance={"lazy_one": "lazy:Lazy"},
    )
    script = "\n".join(
        [
            "import sys",
            "import lit_tidpo.importance, lit_tidpo.losses",
            "from lit_tidpo.plugins.registry import IMPORTANCE, registered",
            "names = [entry.name for entry in registered(IMPORTANCE)]",
            "lit_tidpo.importance.uniform",
            "print('lazy_one' in names, 'lazy' in sys.modules)",
            "print('lit_tidpo.importance.uniform_importance' in sys.modules)",
            "print('lit_tidpo.importance.gradient_importance' in sys.modules)",
            "lit_tidpo.importance.lazy_one",
            "print('lazy' in sys.modules)",
        ]
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(site.folder)!r})\n{script}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["True", "False", "True", "False", "True"]


# The states that `lit-tidpo plugins` shows


def test_the_state_of_every_plugin(site):
    site.add(
        "mixed",
        modules={"mixed": ESTIMATOR.format(name="Mixed"), "mixed_broken": "import surely_not_here"},
        importance={
            "mixed": "mixed:Mixed",
            "mixed_broken": "mixed_broken:X",
            "mixed_kind": "os:path",
        },
    )
    site.add("mixed-too", importance={"mixed": "mixed:Mixed"})
    states = [
        (entry.name, component and component.__name__, state)
        for entry, component, state in examined(IMPORTANCE, ImportanceEstimator)
    ]
    assert [row for row in states if row[0] == "gradient"] == [
        ("gradient", "GradientImportance", "ok")
    ]
    mixed = [(name, found, state) for name, found, state in states if name.startswith("mixed")]
    assert [(name, found) for name, found, _ in mixed] == [
        ("mixed", None),
        ("mixed", None),
        ("mixed_broken", None),
        ("mixed_kind", None),
    ]
    for (_, _, state), part in zip(
        mixed,
        ["registered by", "registered by", "No module named", "expected a subclass"],
        strict=True,
    ):
        assert part in state


# The classes that stand for short names


@pytest.mark.parametrize(
    ("namespace", "name"),
    [(lit_tidpo.importance, "gradient"), (lit_tidpo.losses, "triplet")],
    ids=["importance", "losses"],
)
def test_a_short_name_is_a_class_that_configurations_and_pickles_find_again(namespace, name):
    component = getattr(namespace, name)
    assert component is getattr(namespace, name)
    assert (component.__module__, component.__qualname__) == (namespace.__name__, name)
    real = component.__mro__[1]
    assert component.__doc__ == real.__doc__
    copy = pickle.loads(pickle.dumps(component()))
    assert type(copy) is component
    assert vars(copy) == vars(component())


def test_a_short_name_unpickles_in_a_fresh_process():
    data = pickle.dumps(lit_tidpo.importance.gradient(norm="l2"))
    script = f"import pickle; print(pickle.loads({data!r}).norm)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "l2"


def test_a_class_called_like_its_plugin_stands_for_itself(site):
    site.add(
        "same",
        modules={"same_name": ESTIMATOR.format(name="Same")},
        importance={"Same": "same_name:Same"},
    )
    assert lit_tidpo.importance.Same.__module__ == "same_name"


@pytest.mark.parametrize("namespace", [lit_tidpo.importance, lit_tidpo.losses])
def test_an_unknown_attribute_is_an_ordinary_attribute_error(namespace):
    assert not hasattr(namespace, "nothing_of_the_kind")
    with pytest.raises(AttributeError, match="has no plugin 'nothing_of_the_kind'"):
        namespace.nothing_of_the_kind  # noqa: B018


def test_the_attribute_of_a_broken_plugin_says_why(site):
    site.add("poor-work", modules={"poor": "raise OSError('gone')"}, losses={"poor": "poor:Poor"})
    with pytest.raises(PluginError, match="OSError: gone"):
        lit_tidpo.losses.poor  # noqa: B018


def test_a_plugin_that_ends_the_program_is_named_and_the_program_goes_on(site):
    quitters = {"quitters": "raise SystemExit(1)"}
    site.add("quitters", modules=quitters, importance={"quit": "quitters:A"})
    with pytest.raises(PluginError, match=r"plugin 'quit' .* could not be imported: SystemExit"):
        load_estimator("quit")


def test_a_plugin_that_could_not_be_chosen_is_not_ok(site):
    unfinished = (
        "from lit_tidpo.importance.base import ImportanceEstimator\n\n\n"
        "class Unfinished(ImportanceEstimator):\n    pass\n"
    )
    modules = {"halves": unfinished, "hyphens": ESTIMATOR.format(name="A")}
    site.add("odd", modules=modules, importance={"half": "halves:Unfinished", "a-b": "hyphens:A"})
    with pytest.raises(PluginError, match=r"lacks \['scores'\]"):
        load_estimator("half")
    with pytest.raises(PluginError, match=r"letters, digits and underscores; .* hyphens\.A"):
        load_estimator("a-b")


def test_a_plugin_of_the_package_is_known_without_an_import(site):
    site.add(
        "other", modules={"other": ESTIMATOR.format(name="Other")}, importance={"o": "other:O"}
    )
    entries = {entry.name: entry for entry in registered(IMPORTANCE)}
    assert is_built_in(IMPORTANCE, entries["gradient"])
    assert not is_built_in(IMPORTANCE, entries["o"])
    for value in ("gradient_importance:Gone", "gone_importance:GradientImportance"):
        gone = EntryPoint("gradient", f"lit_tidpo.importance.{value}", IMPORTANCE)
        assert not is_built_in(IMPORTANCE, gone)


def test_the_listing_of_the_package_alone_imports_no_torch():
    code = (
        "import sys; from lit_tidpo.cli import main; main(['plugins']); "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "GradientImportance" in done.stdout
