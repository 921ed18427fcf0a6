import importlib.util
import re

import ml_collections
import pytest
from config_page import PAGE, comments, page
from helpers import ROOT, SYSTEMS

from isles_jax.config import baseline, flatten, resolve, to_dict
from isles_jax.runtime.command import InputError
from isles_jax.training import plan


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_files_are_the_eight_cells_of_the_design():
    assert {path.stem for path in (ROOT / "configs").glob("*.py")} == SYSTEMS.keys()
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


def test_the_systems_differ_in_nothing_else():
    varied = {"name", "model.residual", "discriminator.enabled", "loss.lovasz", "loss.boundary", "loss.adversarial"}
    flat = [flatten(load(name).get_config()) for name in SYSTEMS]
    assert {key for key in flat[0] if len({str(config[key]) for config in flat}) > 1} == varied


def test_every_key_is_read_somewhere_and_has_a_comment():
    source = "".join(
        path.read_text() for path in (ROOT / "isles_jax").rglob("*.py") if path.name != "config.py"
    )  # fmt: skip
    text = (ROOT / "isles_jax" / "config.py").read_text()
    body = text[text.index("def baseline") : text.index("return config.lock()")]
    for key in flatten(baseline(residual=True, adversarial=True, overlap=True)):
        leaf = key.split(".")[-1]
        assert re.search(rf"\.{leaf}\b", source), f"{key} is read nowhere"
        assert re.search(rf"    # [^\n]+\n    (config|[\w.]+)\.{leaf} = ", body), f"{key} has no comment"


def test_the_page_of_all_settings_is_made_of_the_comments():
    assert comments().keys() == flatten(baseline(residual=True, adversarial=True, overlap=True)).keys()
    assert PAGE.read_text() == page(), "run python docs/scripts/config_page.py"


def test_keys_chosen_by_the_data():
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


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("folds", 1), ("fold", 3), ("fold", -1), ("dtype", "float16"), ("model.width", -1), ("model.batch_norm", "on"),
        ("data.phantom.shape", (32, 32)), ("data.phantom.cases", 0), ("data.phantom.difficulty", -0.5),
        ("loss.boundary_size", 4), ("loss.adversarial", -1.0), ("optimizer.learning_rate", 0.0),
        ("optimizer.warmup", 1.0), ("train.batch_size", 1), ("train.epochs", -1), ("train.parallel", "jit"),
        ("train.steps_per_call", 3), ("augment.scale", -0.1), ("discriminator.width", -2),
        ("predict.min_volume_ml", -1.0),
    ],
)  # fmt: skip
def test_values_that_make_no_sense_are_named(key, value):
    config = baseline(residual=True, adversarial=True, overlap=True)
    config.update_from_flattened_dict({key: value})
    with pytest.raises(InputError) as caught:
        resolve(config)
    assert "\n" not in str(caught.value)
    assert f"--config.{key}: found {value!r}" in str(caught.value) or key == "train.steps_per_call"
    assert "expected" in str(caught.value)


def test_a_run_without_a_supervised_loss_is_refused():
    config = baseline(residual=False, adversarial=True, overlap=False)
    config.loss.cross_entropy = 0.0
    with pytest.raises(InputError, match="a weight above 0"):
        resolve(config)


def test_config_json_holds_every_key():
    config = resolve(baseline(residual=True, adversarial=True, overlap=True))
    assert flatten(ml_collections.ConfigDict(to_dict(config))).keys() == flatten(config).keys()


def test_a_batch_that_cannot_be_trained_is_refused():
    config = baseline(residual=True, adversarial=True, overlap=True)
    config.model.width = 64
    for batch, words in ((11, "found 11, expected at most the 10"), (10, "which needs")):
        config.train.batch_size = batch
        with pytest.raises(InputError, match=words):
            plan._check_batch(config, 10, 10**10, batch)
    plan._check_batch(config, 10, 96 * 128, 10)
