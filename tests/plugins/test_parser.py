"""Plugins on the command line: every way to name one, and what a change of class leaves behind."""

import json

import pytest
import yaml
from fake_distributions import ESTIMATOR, FakeSite
from jsonargparse import ActionConfigFile, _typehints

from lit_tidpo.errors import InputError
from lit_tidpo.modules.preference import PreferenceModule
from lit_tidpo.plugins.parser import PluginArgumentParser, load_named_plugins
from lit_tidpo.plugins.registry import IMPORTANCE, LOSSES, registered

EVERY = {
    entry.name: (group, entry.value.replace(":", "."))
    for group in (IMPORTANCE, LOSSES)
    for entry in registered(group)
    if entry.dist.name == "lit-tidpo"
}
# what the plugins need that cannot do without
REQUIRED = {
    "detector": {"path": "builtin:detector"},
    "judged_attention": {"tokenizer": "builtin:policy"},
    "maximum": {"estimators": ["uniform", "random"]},
    "mixture": {"estimators": ["uniform", "random"]},
    "per_role": {"chosen": "uniform", "rejected": "random"},
    "product": {"estimators": ["uniform", "random"]},
    "rarity": {"path": "builtin:policy"},
    "stored": {"path": "weights.jsonl"},
}
# arguments of some plugins, with values that are not their defaults
ARGUMENTS = {
    "gradient": {"norm": "l2"},
    "gradient_times_input": {"target": "response_logp"},
    "integrated_gradients": {"steps": 4},
    "gradient_log_ratio": {"norm": "l2"},
    "detector": {"path": "builtin:detector"},
    "attention": {"reduction": "max"},
    "log_ratio": {"offset": 0.25},
    "random": {"seed": 7},
    "hybrid": {"mix": 0.25},
    "tempered": {"estimator": "uniform", "power": 0.5},
    "clipped": {"estimator": "uniform", "limit": 2.5},
    "relative": {"estimator": "uniform", "radius": 3},
    "embedding_norm": {"estimator": "uniform", "model": "reference"},
    "dpo": {"beta": 0.25},
    "weighted_dpo": {"alpha": 0.25},
    "triplet": {"margin": 2.5},
    "contrast": {"slope": 2.0},
    "top_k": {"share": 0.25},
    "simpo": {"margin": 0.75},
}


# Those that are tried in every way that a name can be given.
PLUGINS = {name: EVERY[name] for name in [*ARGUMENTS, "uniform", "supplied"]}


@pytest.fixture
def site(tmp_path, monkeypatch):
    return FakeSite(tmp_path, monkeypatch)


@pytest.fixture
def parse(monkeypatch):
    """Parse options as the command does; gives what was parsed for the model, or the model."""

    def parse(*args, built=False):
        monkeypatch.setattr(PluginArgumentParser, "problems", load_named_plugins(args))
        parser = PluginArgumentParser()
        parser.add_argument("-c", "--config", action=ActionConfigFile)
        parser.add_lightning_class_args(PreferenceModule, "model")
        parsed = parser.parse_args(["--model.policy.path=some-model", *args])
        return parser.instantiate_classes(parsed).model if built else parsed.model

    return parse


@pytest.fixture
def config(tmp_path):
    """Write configurations of the model; gives the option that names the file."""
    count = iter(range(9))

    def write(folder=tmp_path, **model):
        folder.mkdir(exist_ok=True)
        path = folder / f"model{next(count)}.yaml"
        path.write_text(yaml.safe_dump({"model": model}), encoding="utf-8")
        return f"--config={path}"

    return write


def chosen(model, name):
    """What was parsed for the component of a plugin's group."""
    if EVERY[name][0] == IMPORTANCE:
        return model.importance
    return model.losses["mine"]


def option(name):
    return "--model.importance" if PLUGINS[name][0] == IMPORTANCE else "--model.losses.mine"


def as_setting(name, value):
    return {"importance": value} if EVERY[name][0] == IMPORTANCE else {"losses": {"mine": value}}


def error_of(parse, capsys, *args):
    with pytest.raises(SystemExit) as stopped:
        parse(*args)
    assert stopped.value.code == 2
    return capsys.readouterr().err.partition("error: ")[2]


# Every plugin, every way to name it


def options(name, form="{}.{}={}"):
    return [
        form.format(option(name), argument, value)
        for argument, value in ARGUMENTS.get(name, {}).items()
    ]


def check(model, name, class_path=None):
    component = chosen(model, name)
    assert component.class_path == (class_path or f"{PLUGINS[name][0]}.{name}")
    for argument, value in ARGUMENTS.get(name, {}).items():
        if argument == "estimator":
            assert component.init_args.estimator.class_path == f"{IMPORTANCE}.{value}"
        else:
            assert component.init_args[argument] == value


@pytest.mark.parametrize("name", EVERY)
def test_each_plugin_is_chosen_by_its_name(parse, config, name):
    value = {"class_path": name, "init_args": REQUIRED.get(name, {})}
    component = chosen(parse(config(**as_setting(name, value))), name)
    assert component.class_path == f"{EVERY[name][0]}.{name}"


@pytest.mark.parametrize("name", PLUGINS)
def test_by_short_name_and_options(parse, name):
    check(parse(option(name), name, *options(name)), name)


@pytest.mark.parametrize("name", PLUGINS)
def test_by_class_path_with_init_args(parse, name):
    path = PLUGINS[name][1]
    args = [f"{option(name)}={path}", *options(name, "{}.init_args.{}={}")]
    check(parse(*args), name, path)


@pytest.mark.parametrize("stored", [False, True], ids=["short", "as stored"])
@pytest.mark.parametrize("name", PLUGINS)
def test_in_yaml(parse, config, name, stored):
    path = f"{PLUGINS[name][0]}.{name}" if stored else name
    if name not in ARGUMENTS:
        check(parse(config(**as_setting(name, path))), name)
    value = {"class_path": path, "init_args": ARGUMENTS.get(name, {})}
    check(parse(config(**as_setting(name, value))), name)


@pytest.mark.parametrize("name", PLUGINS)
def test_help_of_a_plugin_shows_its_options(parse, capsys, name):
    help_option = option(name).removesuffix(".mine")
    with pytest.raises(SystemExit) as stopped:
        parse(f"{help_option}.help={name}")
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert f"Help for {help_option}.help={PLUGINS[name][0]}.{name}" in text
    for argument in ARGUMENTS.get(name, {}):
        assert f"{help_option}.{argument}" in text


@pytest.mark.parametrize("name", PLUGINS)
def test_a_printed_configuration_reads_back_as_the_same(parse, capsys, tmp_path, name):
    args = [option(name), name, *options(name)]
    with pytest.raises(SystemExit):
        parse(*args, "--print_config")
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
    assert parse(f"--config={tmp_path / 'printed.yaml'}") == parse(*args)


def test_several_losses_by_name(parse):
    model = parse(
        '--model.losses={"a": "dpo"}', "--model.losses.b=triplet", "--model.losses.b.margin=2"
    )
    assert {key: loss.class_path for key, loss in model.losses.items()} == {
        "a": "lit_tidpo.losses.dpo",
        "b": "lit_tidpo.losses.triplet",
    }
    assert model.losses["b"].init_args.margin == 2.0


def test_a_third_partys_plugin_by_short_name(parse, site):
    site.add(
        "parsed",
        modules={"parsed": ESTIMATOR.format(name="Parsed")},
        importance={"parsed_one": "parsed:Parsed"},
    )
    importance = parse("--model.importance=parsed_one", "--model.importance.own=5").importance
    assert importance.class_path == "lit_tidpo.importance.parsed_one"
    assert importance.init_args.as_dict() == {"model": "mine", "own": 5}


def test_a_plugin_called_like_its_class(parse, site):
    site.add(
        "alike",
        modules={"alike": ESTIMATOR.format(name="Alike")},
        importance={"Alike": "alike:Alike"},
    )
    assert parse("--model.importance=Alike").importance.class_path == "alike.Alike"


OUTER = """\
from lit_tidpo.importance.base import ImportanceEstimator


class Outer(ImportanceEstimator):
    def __init__(self, inner: ImportanceEstimator) -> None:
        self.inner = inner

    def scores(self, results):
        return self.inner.scores(results)
"""


def test_a_plugin_in_a_plugin(parse, capsys, site):
    site.add("outer", modules={"outer": OUTER}, importance={"outer": "outer:Outer"})
    args = ["--model.importance=outer", "--model.importance.inner=gradient"]
    importance = parse(*args, "--model.importance.inner.norm=l2").importance
    assert importance.init_args.inner.class_path == "lit_tidpo.importance.gradient"
    assert importance.init_args.inner.init_args.norm == "l2"
    error = error_of(parse, capsys, *args[:1], "--model.importance.inner=lit_tidpo.importance.no")
    assert error.count("Known lit_tidpo.importance plugins") == 1


# What can go wrong


@pytest.mark.parametrize(
    ("args", "group"),
    [
        (["--model.importance=gradiant"], IMPORTANCE),
        (["--model.losses.mine=tripled"], LOSSES),
        (["--model.importance=lit_tidpo.importance.gradiant"], IMPORTANCE),
    ],
)
def test_an_unknown_name_lists_the_known_once(parse, capsys, args, group):
    error = error_of(parse, capsys, *args)
    known = ", ".join(sorted(name for name in EVERY if EVERY[name][0] == group))
    assert error.count(f"Known {group} plugins: {known}") == 1


def break_plugin(site, **groups):
    site.add("poor-work", "0.7", {"poor_work": "raise OSError('no device')"}, **groups)


CAUSE = "'poor' (poor_work:Poor) of poor-work 0.7 could not be imported: OSError: no device"


@pytest.mark.parametrize(
    ("group", "args"),
    [
        ("importance", ["--model.importance=poor"]),
        ("importance", ["--model.importance", "poor", "--model.importance.own", "3"]),
        ("importance", ["--model.importance=lit_tidpo.importance.poor"]),
        ("losses", ["--model.losses.mine=poor"]),
        ("losses", ['--model.losses={"mine": {"class_path": "poor"}}']),
    ],
)
def test_a_broken_plugin_gives_one_error_where_it_is_used(parse, capsys, site, group, args):
    break_plugin(site, **{group: {"poor": "poor_work:Poor"}})
    error = error_of(parse, capsys, *args)
    assert error.count(CAUSE) == 1


def test_the_error_of_a_broken_plugin_in_yaml_begins_with_its_cause(parse, capsys, site, config):
    break_plugin(site, importance={"poor": "poor_work:Poor"})
    error = error_of(parse, capsys, config(importance="poor"))
    assert error.startswith(f"plugin {CAUSE}")


def test_a_broken_plugin_that_is_named_but_not_used_stops_nothing(parse, capsys, site, config):
    break_plugin(site, importance={"poor": "poor_work:Poor"})
    # the name of a loss is free to choose
    model = parse(config(losses={"poor": "dpo"}), "--model.importance=uniform")
    assert model.losses["poor"].class_path == "lit_tidpo.losses.dpo"
    assert list(PluginArgumentParser.problems) == ["poor"]
    assert "poor" not in error_of(parse, capsys, config(losses={"poor": "dpo"}), "--model.beta=x")


def test_a_name_registered_twice_gives_one_error_with_both_distributions(parse, capsys, site):
    for name in ("first", "second"):
        site.add(
            name, modules={name: ESTIMATOR.format(name="Twin")}, importance={"twin": f"{name}:Twin"}
        )
    error = error_of(parse, capsys, "--model.importance=twin")
    assert error.count("is registered by first 1.0 and second 1.0") == 1
    model = parse("--model.importance=second.Twin")  # the way out that the message names
    assert model.importance.class_path == "second.Twin"


def test_an_option_that_the_plugin_lacks_is_named(parse, capsys):
    error = error_of(parse, capsys, "--model.importance=gradient", "--model.importance.norn=l1")
    assert "norn" in error


@pytest.mark.parametrize("in_yaml", [False, True])
def test_a_file_called_like_a_plugin_is_warned_of(tmp_path, monkeypatch, in_yaml):
    # jsonargparse reads it, and an empty one would silently leave the estimator unset
    (tmp_path / "uniform").touch()
    (tmp_path / "model.yaml").write_text("model: {importance: uniform}")
    monkeypatch.chdir(tmp_path.parent if in_yaml else tmp_path)
    args = [f"--config={tmp_path / 'model.yaml'}"] if in_yaml else ["--model.importance=uniform"]
    with pytest.warns(UserWarning, match=r"uniform has .* or write lit_tidpo\.importance\.uniform"):
        load_named_plugins(args)
    load_named_plugins(["--model.importance=lit_tidpo.importance.uniform"])
    load_named_plugins(["--model.importance=gradient"])


# What is imported


def lazy(site, module):
    site.add(
        module,
        modules={module: ESTIMATOR.format(name="Lazy")},
        importance={module: f"{module}:Lazy"},
    )


@pytest.mark.parametrize(
    "arg",
    [
        "--model.importance=gradient",
        "--model.x=not_lazy",
        "--a=lazy_too",
        "--a=other.lazy",
        "lazyness",
    ],
)
def test_a_plugin_that_is_not_named_is_not_imported(site, arg):
    lazy(site, "lazy")
    assert load_named_plugins([arg]) == {}
    assert not site.imported("lazy")


@pytest.mark.parametrize(
    "args",
    [
        ["--model.importance=lazy"],
        ["--model.importance", "lazy"],
        ['--model.losses={"a":"lazy"}'],
        ["--model.importance=lit_tidpo.importance.lazy"],
        ["--model.importance.help=lazy"],
    ],
)
def test_a_plugin_that_is_named_is_imported(site, args):
    lazy(site, "lazy")
    assert load_named_plugins(args) == {}
    assert site.imported("lazy")


@pytest.mark.parametrize("form", ["{}", "--config={}", "-c={}", "fit --config={}"])
@pytest.mark.parametrize("folder", ["plain", "with a blank", "a=b"])
def test_a_plugin_that_a_configuration_names_is_imported(site, tmp_path, folder, form):
    lazy(site, "lazy")
    (tmp_path / folder).mkdir()
    path = tmp_path / folder / "my.config.yml"
    path.write_text("model:\n  importance: lazy\n", encoding="utf-8")
    assert load_named_plugins([form.format(path)]) == {}
    assert site.imported("lazy")


def test_a_configuration_in_a_configuration_is_read_from_its_folder(parse, site, tmp_path):
    lazy(site, "lazy")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "model.yaml").write_text("importance: lazy\npolicy: {path: some-model}\n")
    (tmp_path / "inner" / "outer.yaml").write_text("model: model.yaml\n", encoding="utf-8")
    model = parse(f"--config={tmp_path / 'inner' / 'outer.yaml'}")
    assert model.importance.class_path == "lit_tidpo.importance.lazy"


# A change of class leaves nothing behind

OLD = {"class_path": "gradient", "init_args": {"model": "reference", "norm": "l2"}}
DEFAULTS = {
    "layers": None,
    "heads": None,
    "reduction": "mean",
    "per_query": False,
    "model": "policy",
}
ATTENTION = PLUGINS["attention"][1]


@pytest.mark.parametrize(
    "change",
    [
        ["--model.importance=attention"],
        ["--model.importance", "attention"],
        [f"--model.importance={ATTENTION}"],
    ],
    ids=["short name", "two words", "class path"],
)
def test_another_estimator_on_the_command_line_starts_afresh(parse, config, change):
    importance = parse(config(importance=OLD), *change).importance
    assert importance.class_path.rpartition(".")[2] in ("attention", "AttentionImportance")
    assert importance.init_args.as_dict() == DEFAULTS


@pytest.mark.parametrize(
    "value", ["attention", {"class_path": "attention", "init_args": {"layers": [1]}}]
)
def test_another_estimator_in_a_later_configuration_starts_afresh(parse, config, value):
    importance = parse(config(importance=OLD), config(importance=value)).importance
    given = {} if isinstance(value, str) else value["init_args"]
    assert importance.init_args.as_dict() == DEFAULTS | given


def test_options_after_the_change_hold_and_those_before_it_do_not(parse, config):
    args = [
        "--model.importance.model=reference",
        "--model.importance=attention",
        "--model.importance.layers=[0]",
    ]
    importance = parse(config(importance="gradient"), *args).importance
    assert importance.init_args.as_dict() == DEFAULTS | {"layers": [0]}


def test_back_and_forth_leaves_nothing_either(parse, config):
    args = ["--model.importance=attention", "--model.importance=gradient"]
    importance = parse(config(importance=OLD), *args).importance
    assert importance.init_args.norm == "l1"
    assert importance.init_args.model == "policy"


def test_a_third_partys_estimator_inherits_nothing(parse, config, site):
    lazy(site, "lazy")
    importance = parse(config(importance=OLD), "--model.importance=lazy").importance
    assert importance.init_args.as_dict() == {"model": "mine", "own": 1}


def test_another_loss_of_the_same_name_starts_afresh(parse, config, site):
    text = ESTIMATOR.format(name="Bend").replace("ImportanceEstimator", "LossComponent")
    text = text.replace("importance.base", "losses.base").replace("own", "margin")
    text = text.replace("scores(self, results)", "loss(self, context)")
    site.add("bends", modules={"bends": text}, losses={"bend": "bends:Bend"})
    old = config(losses={"mine": {"class_path": "triplet", "init_args": {"margin": 9.0}}})
    assert parse(old, "--model.losses.mine=bend").losses["mine"].init_args.margin == 1
    assert parse(old, config(losses={"mine": "bend"})).losses["mine"].init_args.margin == 1


def test_another_optimizer_starts_afresh(parse, config):
    old = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.5, "weight_decay": 0.25}}
    optimizer = parse(config(optimizer=old), "--model.optimizer=torch.optim.SGD").optimizer
    assert (optimizer.init_args.lr, optimizer.init_args.weight_decay) == (0.001, 0)


def test_the_same_class_keeps_its_arguments(parse, config):
    same = {"class_path": "gradient", "init_args": {"target": "response_logp"}}
    for change in (
        ["--model.importance=gradient", "--model.importance.target=response_logp"],
        [config(importance=same)],
    ):
        arguments = parse(config(importance=OLD), *change).importance.init_args
        assert (arguments.norm, arguments.model, arguments.target) == (
            "l2",
            "reference",
            "response_logp",
        )


def test_options_alone_change_no_other_argument(parse, config):
    arguments = parse(
        config(importance=OLD), "--model.importance.exclude_target=true"
    ).importance.init_args
    assert (arguments.norm, arguments.model, arguments.exclude_target) == ("l2", "reference", True)


def test_jsonargparse_has_the_rule_that_is_replaced_and_gets_it_back(parse, config, capsys):
    parse(config(importance=OLD), "--model.importance=attention")
    error_of(parse, capsys, "--model.importance=nothing")
    rule = _typehints.discard_init_args_on_class_path_change
    assert rule.__module__ == _typehints.__name__


# Estimators in estimators

GRADIENT = {"class_path": "gradient", "init_args": {"model": "reference", "norm": "l2"}}
MIXED = {"class_path": "hybrid", "init_args": {"estimator": GRADIENT, "mix": 0.25}}


def hybrid(**arguments):
    return {"class_path": "hybrid", "init_args": arguments}


@pytest.mark.parametrize("form", ["{}={}", "{} {}"])
def test_short_names_all_the_way_down_on_the_command_line(parse, form):
    choices = {
        "importance": "hybrid",
        "importance.mix": "0.5",
        "importance.prior": "GaussianPrior",
        "importance.prior.sigma_divisor": "8",
        "importance.estimator": "tempered",
        "importance.estimator.power": "0.25",
        "importance.estimator.estimator": "gradient",
        "importance.estimator.estimator.target": "response_logp",
    }
    args = [form.format(f"--model.{name}", value) for name, value in choices.items()]
    importance = parse(*" ".join(args).split()).importance
    assert importance.class_path == "lit_tidpo.importance.hybrid"
    assert importance.init_args.mix == 0.5
    assert importance.init_args.prior.class_path == "lit_tidpo.importance.priors.GaussianPrior"
    assert importance.init_args.prior.init_args.sigma_divisor == 8.0
    tempered = importance.init_args.estimator
    assert tempered.class_path == "lit_tidpo.importance.tempered"
    assert tempered.init_args.power == 0.25
    gradient = tempered.init_args.estimator
    assert gradient.class_path == "lit_tidpo.importance.gradient"
    assert (gradient.init_args.target, gradient.init_args.norm) == ("response_logp", "l1")


def test_short_names_all_the_way_down_in_yaml(parse, config):
    tempered = {"class_path": "tempered", "init_args": {"estimator": "gradient", "power": 0.25}}
    arguments = parse(
        config(importance=hybrid(estimator=tempered, prior="SoftmaxPrior"))
    ).importance.init_args
    assert arguments.prior.class_path == "lit_tidpo.importance.priors.SoftmaxPrior"
    assert arguments.estimator.class_path == "lit_tidpo.importance.tempered"
    inner = arguments.estimator.init_args.estimator
    assert inner.class_path == "lit_tidpo.importance.gradient"


def test_a_third_partys_plugin_in_a_built_in_one(parse, config, site):
    lazy(site, "lazy")
    importance = parse(config(importance=hybrid(estimator="lazy"))).importance
    assert importance.init_args.estimator.class_path == "lit_tidpo.importance.lazy"
    assert importance.init_args.estimator.init_args.as_dict() == {"model": "mine", "own": 1}


@pytest.mark.parametrize(
    "change",
    [hybrid(mix=1.0), hybrid(prior="SoftmaxPrior"), {"init_args": {"positions": "all"}}],
    ids=["mix", "prior", "no class path"],
)
def test_a_later_configuration_of_the_outer_keeps_the_inner(parse, config, change):
    arguments = parse(config(importance=MIXED), config(importance=change)).importance.init_args
    inner = arguments.estimator.init_args
    assert (inner.model, inner.norm) == ("reference", "l2")
    assert arguments.mix == change["init_args"].get("mix", 0.25)


@pytest.mark.parametrize(
    "args", [["--model.importance.mix=0.5"], ["--model.importance=hybrid"]], ids=["option", "name"]
)
def test_options_of_the_outer_keep_the_inner(parse, config, args):
    inner = parse(config(importance=MIXED), *args).importance.init_args.estimator.init_args
    assert (inner.model, inner.norm) == ("reference", "l2")


@pytest.mark.parametrize(
    "args",
    [
        ["--model.importance.estimator.exclude_target=true"],
        ["--model.importance.init_args.estimator.init_args.exclude_target=true"],
        [
            "--model.importance.estimator=gradient",
            "--model.importance.estimator.exclude_target=true",
        ],
    ],
    ids=["option", "init_args", "name"],
)
def test_options_of_the_inner_change_no_other_argument(parse, config, args):
    arguments = parse(config(importance=MIXED), *args).importance.init_args
    inner = arguments.estimator.init_args
    assert (inner.model, inner.norm, inner.exclude_target) == ("reference", "l2", True)
    assert arguments.mix == 0.25


def test_another_inner_estimator_on_the_command_line_starts_afresh(parse, config):
    arguments = parse(
        config(importance=MIXED), "--model.importance.estimator=attention"
    ).importance.init_args
    assert arguments.estimator.init_args.as_dict() == DEFAULTS
    assert arguments.mix == 0.25


@pytest.mark.parametrize(
    "value", ["attention", {"class_path": "attention", "init_args": {"layers": [1]}}]
)
def test_another_inner_estimator_in_a_later_configuration_starts_afresh(parse, config, value):
    arguments = parse(
        config(importance=MIXED), config(importance=hybrid(estimator=value))
    ).importance.init_args
    given = {} if isinstance(value, str) else value["init_args"]
    assert arguments.estimator.init_args.as_dict() == DEFAULTS | given
    assert arguments.mix == 0.25


def test_another_outer_estimator_starts_afresh_with_its_inner_one(parse, config):
    args = ["--model.importance=relative", "--model.importance.estimator=gradient"]
    inner = parse(config(importance=MIXED), *args).importance.init_args.estimator
    assert (inner.init_args.model, inner.init_args.norm) == ("policy", "l1")


@pytest.mark.parametrize("in_yaml", [False, True])
def test_another_prior_and_back_leaves_nothing(parse, config, in_yaml):
    narrow = {"class_path": "GaussianPrior", "init_args": {"sigma_divisor": 8.0}}
    names = ["SoftmaxPrior", "GaussianPrior"]
    changes = [f"--model.importance.prior={name}" for name in names]
    if in_yaml:
        changes = [config(importance=hybrid(prior=name)) for name in names]
    prior = parse(config(importance=hybrid(prior=narrow)), *changes).importance.init_args.prior
    assert prior.init_args.sigma_divisor == 4.0


def test_a_printed_configuration_of_nested_estimators_reads_back_as_the_same(
    parse, capsys, config, tmp_path
):
    args = [config(importance=MIXED), "--model.importance.prior=SoftmaxPrior"]
    with pytest.raises(SystemExit):
        parse(*args, "--print_config")
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
    assert parse(f"--config={tmp_path / 'printed.yaml'}") == parse(*args)


def test_help_of_an_inner_estimator_shows_its_options(parse, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse("--model.importance=hybrid", "--model.importance.estimator.help=gradient")
    assert stopped.value.code == 0
    assert "estimator.exclude_target" in capsys.readouterr().out


def test_an_unknown_inner_name_lists_the_known_once(parse, capsys):
    error = error_of(parse, capsys, "--model.importance=hybrid", "--model.importance.prior=Normal")
    assert "Normal" in error
    args = ["--model.importance=hybrid", "--model.importance.estimator=gradiant"]
    error = error_of(parse, capsys, *args)
    assert "gradiant" in error
    assert error.count("Known lit_tidpo.importance plugins") == 1


def test_arguments_of_an_estimator_that_is_not_named_say_how_to_name_it(parse, capsys, config):
    error = error_of(parse, capsys, "--model.importance.mix=0.5")
    assert "Name the estimator before its arguments: --model.importance hybrid" in error
    importance = parse(config(importance="hybrid"), "--model.importance.mix=0.5").importance
    assert importance.init_args.mix == 0.5


def test_further_models_by_name(parse, config):
    options = {"path": "some/teacher", "revision": None, "adapter": None, "prompt": "Be brief."}
    given = {name: value for name, value in options.items() if value is not None}
    assert parse(config(models={"teacher": given})).models["teacher"].as_dict() == options
    option = f"--model.models={json.dumps({'teacher': given})}"
    assert parse(option).models["teacher"].as_dict() == options


def test_an_option_that_the_inner_estimator_lacks_is_named(parse, capsys):
    args = ["--model.importance=hybrid", "--model.importance.estimator=gradient"]
    assert "'norn'" in error_of(parse, capsys, *args, "--model.importance.estimator.norn=l1")


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["--model.importance=hybrid", "--model.importance.mix=2"], r"^mix=2\.0: expected"),
        (
            ["--model.importance.prior=GaussianPrior", "--model.importance.prior.sigma_divisor=0"],
            r"^sigma_divisor=0\.0: expected",
        ),
        (["--model.losses.mine=dpo", "--model.losses.mine.beta=0"], r"^beta=0\.0: expected"),
        (["--model.importance_every=-1"], "^importance_every=-1: expected"),
    ],
    ids=["estimator", "part of an estimator", "loss", "module"],
)
def test_what_a_component_refuses_is_told_in_its_own_words(parse, config, args, named):
    with pytest.raises(InputError, match=named):
        parse(config(importance="hybrid"), *args, built=True)


def test_a_plugin_that_breaks_when_it_is_built_keeps_its_error(parse, site):
    text = ESTIMATOR.format(name="Broken").replace("self.own = own", "raise ValueError('oh')")
    site.add("broken", modules={"broken": text}, importance={"broken": "broken:Broken"})
    with pytest.raises(ValueError, match="oh") as caught:
        parse("--model.importance=broken", built=True)
    assert not isinstance(caught.value, InputError)


def test_a_plugin_that_a_module_hides_gives_one_error_where_it_is_used(parse, capsys, site):
    """``lit_tidpo.importance.base`` is imported already: the attribute is the module."""
    text = ESTIMATOR.format(name="Third")
    site.add("thirds", modules={"thirds": text}, importance={"base": "thirds:Third"})
    error = error_of(parse, capsys, "--model.importance=base")
    assert error.count("has the name of the module lit_tidpo.importance.base") == 1
    model = parse("--model.importance=thirds.Third")  # the way out that the message names
    assert model.importance.class_path == "thirds.Third"
