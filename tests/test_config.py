import ast
import importlib.util
import json

import ml_collections
import pytest
from config_page import PAGE, page
from helpers import ROOT, SYSTEMS

from isles_jax import config as config_module
from isles_jax.config import baseline, begun, comments, complete, flatten, resolve, to_dict
from isles_jax.runtime.command import InputError
from isles_jax.training import plan
from isles_jax.training.networks import NETWORKS
from isles_jax.training.optimizers import OPTIMIZERS


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_files_are_the_eight_cells_of_the_design():
    assert {path.stem for path in (ROOT / "configs").glob("*.py")} == {*SYSTEMS, "best"}
    for name, (residual, adversarial, overlap) in SYSTEMS.items():
        module = load(name)
        config = module.get_config()
        assert config.name == name
        assert f"--config=configs/{name}.py" in module.__doc__
        assert module.__doc__.startswith("Proposed:" if name == "proposed" else f"{name.upper()}:")
        cell = (config.model.residual, config.discriminator.enabled, config.loss.lovasz > 0)
        assert cell == (residual, adversarial, overlap)
        assert (config.loss.boundary > 0) == overlap
        assert (config.loss.adversarial > 0) == adversarial
        assert config.loss.cross_entropy == 1.0


def test_best_is_a_u_net_and_bl6_with_more_augmentation():
    ours, base = flatten(load("best").get_config()), flatten(load("bl6").get_config())
    assert {key: ours[key] for key in base if ours[key] != base[key]} == {
        "name": "best",
        "model.network": "unet",
        "model.batch_norm": "all",
        "augment.flips": "both",
        "augment.rotation_degrees": 30.0,
        "augment.scale": 0.25,
        "augment.intensity": 0.3,
        "predict.flips": True,
    }


def test_the_systems_differ_in_nothing_else():
    varied = {"name", "model.residual", "discriminator.enabled", "loss.lovasz", "loss.boundary", "loss.adversarial"}
    flat = [flatten(load(name).get_config()) for name in SYSTEMS]
    assert {key for key in flat[0] if len({str(config[key]) for config in flat}) > 1} == varied


KEYS = flatten(baseline(residual=True, adversarial=True, overlap=True)).keys()


def key_of(node, names):
    """The key that an expression reads from a configuration ("" is the whole of it), or None.

    `names` maps a function's variables to keys, as {"model": "model"} after `model = config.model`.
    """
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        if node.attr == "config":
            return ""  # as in plan.config
        above = key_of(node.value, names)
        return None if above is None else f"{above}.{node.attr}".lstrip(".")
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return key_of(node.func.value, names)  # a method, as in config.predict.copy_and_resolve_references()
    return None


def keys_read(tree):
    """Every key that the functions of a module read from a configuration."""
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        names = {"config": ""}
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and len(node.targets) == 1:
                pairs = [(node.targets[0], node.value)]
                if isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs = zip(node.targets[0].elts, node.value.elts, strict=True)
                for target, value in pairs:
                    if isinstance(target, ast.Name) and (key := key_of(value, names)):
                        names[target.id] = key
        yield from filter(None, (key_of(node, names) for node in ast.walk(function) if isinstance(node, ast.Attribute)))
        # Every key below, as in write_phantom(**config.data.phantom): the callee has a parameter for each.
        for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
            for keyword in call.keywords:
                if keyword.arg is None and (key := key_of(keyword.value, names)):
                    yield from (other for other in KEYS if other.startswith(f"{key}."))


def test_every_key_is_read():
    read = set()
    for path in (ROOT / "isles_jax").rglob("*.py"):
        if path.name != "config.py":
            read.update(keys_read(ast.parse(path.read_text())))
    assert read >= KEYS, sorted(KEYS - read)


def test_the_step_reads_only_keys_for_which_it_is_compiled():
    """`plan` drops the others: runs that differ in them share one compilation."""
    read = set()
    for name in ("augment", "critics", "networks", "optimizers", "step", "task"):
        read.update(keys_read(ast.parse((ROOT / "isles_jax" / "training" / f"{name}.py").read_text())))
    assert {key for key in read & KEYS if key.split(".")[0] not in plan.STEP_KEYS} == {"data.missing"}


def test_the_page_of_all_settings_is_made_of_the_comments():
    assert comments().keys() == flatten(baseline(residual=True, adversarial=True, overlap=True)).keys()
    assert PAGE.read_text() == page(), "run python docs/scripts/config_page.py"


def test_keys_that_are_not_set_are_chosen_by_the_data():
    phantom = resolve(baseline(residual=True, adversarial=True, overlap=True))
    config = baseline(residual=True, adversarial=True, overlap=True)
    config.data.root = "/data/SPES"
    config.train.epochs = 7
    real = resolve(config)
    assert (real.model.width, real.discriminator.width, real.train.epochs) == (64, 64, 7)
    assert 0 < phantom.model.width < 64
    assert phantom.train.epochs > 0
    assert config.model.width is None, "the original is left as it was"
    assert resolve(real) == real


def test_unknown_keys_and_other_types_are_refused():
    config = baseline(residual=True, adversarial=True, overlap=True)
    with pytest.raises(AttributeError):
        config.modle = 1
    with pytest.raises(TypeError):
        config.train.epochs = "many"


# Values of keys that make no sense.
WRONG = {
    "folds": [1],
    "fold": [3, -1],
    "folds_by": ["scanner"],
    "dtype": ["float16"],
    "data.channels": [("DWI", "DWI"), ("DWI", 3)],
    "data.dtype": ["int8"],
    "data.phantom.cases": [0],
    "data.phantom.difficulty": [-0.5],
    "data.phantom.layout": ["bids"],
    "data.phantom.shape": [(32, 32)],
    "data.spacing_mm": ["fine", "2,2", "-1", "1,0,2", "inf", "1e-9", "0.05", "31", "1e9"],
    "name": [""],
    "model.batch_norm": ["on"],
    "model.network": ["vnet"],
    "model.width": [-1],
    "discriminator.width": [-2],
    "loss.adversarial": [-1.0],
    "loss.boundary_size": [4],
    "optimizer.learning_rate": [0.0],
    "optimizer.momentum": [1.0],
    "optimizer.name": ["lion"],
    "optimizer.warmup": [1.0],
    "train.batch_size": [1],
    "train.epochs": [-1],
    "train.init_sha256": ["ab"],
    "train.parallel": ["jit"],
    "augment.scale": [-0.1],
    "predict.min_volume_ml": [-1.0],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_values_that_make_no_sense_are_named(key, value):
    config = baseline(residual=True, adversarial=True, overlap=True)
    config.update_from_flattened_dict({key: value})
    with pytest.raises(InputError) as caught:
        resolve(config)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"--config.{key}: found {value!r}, expected ")


@pytest.mark.parametrize("key", ["train.log_every_steps", "train.checkpoint_every_steps"])
def test_intervals_are_multiples_of_the_steps_in_a_call(key):
    config = baseline(residual=True, adversarial=True, overlap=True)
    intervals = {"train.log_every_steps": 8, "train.checkpoint_every_steps": 8} | {key: 10}
    config.update_from_flattened_dict({"train.steps_per_call": 4} | intervals)
    with pytest.raises(InputError, match=f"--config.{key}: found 10, expected a multiple of train.steps_per_call=4"):
        resolve(config)


def test_a_run_without_a_supervised_loss_is_refused():
    config = baseline(residual=False, adversarial=True, overlap=False)
    config.loss.cross_entropy = 0.0
    with pytest.raises(InputError, match="a weight above 0"):
        resolve(config)
    config.loss.dice = 1.0
    assert resolve(config).loss.dice == 1.0


def test_config_json_holds_every_key():
    config = resolve(baseline(residual=True, adversarial=True, overlap=True))
    assert flatten(ml_collections.ConfigDict(to_dict(config))).keys() == flatten(config).keys()


def test_a_run_of_another_version_is_completed():
    new = to_dict(resolve(baseline(residual=True, adversarial=True, overlap=True)))
    assert flatten(complete(new)) == flatten(new)
    assert complete(new | {"later": {"key": 3}}).later.key == 3, "what a later version added is kept"
    old = json.loads(json.dumps(new))
    for key in ("model.network", "optimizer.name", "data.spacing_mm", "discriminator.hard", "loss.focal"):
        section, name = key.split(".")
        del old[section][name]
    del old["augment"]
    found = complete(old)
    assert (found.model.network, found.optimizer.name, found.loss.focal) == ("sumnet", "adam", 0.0)
    assert (found.data.spacing_mm, found.discriminator.hard) == ("0", False), "as version 0.1 did"
    assert found.augment.flips == "left-right"
    assert flatten(found).keys() == flatten(new).keys()


def test_a_run_goes_on_with_its_own_settings_but_not_with_the_folds_of_its_first_call():
    config = baseline(residual=False, adversarial=False, overlap=True)
    config.update_from_flattened_dict({"data.channels": ("DWI", "ADC"), "fold": 1, "train.steps_per_call": 2})
    stored = json.loads(json.dumps(to_dict(resolve(config))))
    found = begun(stored, "config.json")
    config.fold = None
    assert resolve(found) == resolve(config)
    assert found.data.channels == ("DWI", "ADC")
    found.train.steps_per_call = 4
    del stored["data"]["spacing_mm"]
    assert begun(stored, "config.json").data.spacing_mm == "0", "as a version without the key did"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"later": {"key": 3}}, "config.json: found the setting 'later.key', which this version does not know"),
        ({"seed": "one"}, "config.json: found 'one' for seed, expected the file as it was written"),
        ({"seed": None}, "config.json: found None for seed, expected the file as it was written"),
        ({"train": {"epochs": [1]}}, r"config.json: found \[1\] for train.epochs, expected the file as it was written"),
        ({"data": 3}, "config.json: found the key 'data', expected the settings of a run"),
    ],
)
def test_a_run_whose_settings_this_version_cannot_take_does_not_go_on(change, words):
    stored = to_dict(resolve(baseline(residual=True, adversarial=True, overlap=True)))
    with pytest.raises(InputError, match=words):
        begun(stored | change, "config.json")


def test_the_choices_of_the_settings_are_the_rows_of_the_tables():
    assert set(config_module._CHOICES["model.network"]) == NETWORKS.keys()
    assert set(config_module._CHOICES["optimizer.name"]) == OPTIMIZERS.keys()
