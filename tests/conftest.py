import os
import shutil
import tempfile

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
# Tests measure no speed, and compile for most of their time: little is optimised, and the workers of this session and
# the commands they start share what was compiled.
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
FIRST = "PYTEST_XDIST_WORKER" not in os.environ
if FIRST:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="isles_jax_tests_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"


def pytest_unconfigure(config):
    if FIRST:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture(scope="session")
def phantom_root(tmp_path_factory):
    """A small phantom data set in the SPES layout."""
    from isles_jax.data.phantom import write_phantom

    root = tmp_path_factory.mktemp("data") / "phantom"
    write_phantom(root, cases=6, shape=(32, 32, 8), difficulty=1.0, seed=0)
    return root


@pytest.fixture(scope="session")
def small_config():
    """A function that makes a configuration for a tiny network and a few steps."""
    from isles_jax import config

    def make(residual=True, adversarial=True, overlap=True, **keys):
        made = config.baseline(residual=residual, adversarial=adversarial, overlap=overlap)
        small = {"model.width": 4, "discriminator.width": 4, "train.epochs": 1, "train.batch_size": 4}
        made.update_from_flattened_dict(small | keys)
        return config.resolve(made)

    return make


@pytest.fixture(scope="session")
def untrained_run(tmp_path_factory, small_config):
    """(workdir, config, variables of each fold): three folds of untrained networks, saved as a run saves them.

    The last fold is as if it were not finished.
    """
    from isles_jax import config
    from isles_jax.training import checkpoint, parallel
    from isles_jax.training.state import init_state

    classes, variables = ("penumbra", "core"), []
    made, workdir = small_config(adversarial=False), tmp_path_factory.mktemp("untrained") / "run"
    for fold in (0, 1, 2):
        state = parallel.replicate(init_state(made, classes, 3, 10, fold))
        variables.append(state.segmenter.variables)
        meta = {
            "config": config.to_dict(made), "fold": fold, "classes": list(classes), "label_values": [5, 9],
            "channels": ["Tmax", "TTP", "DWI"],
        }  # fmt: skip
        checkpoint.save(workdir / f"fold_{fold}" / "checkpoints", state, meta)
    for fold in (0, 1):
        (workdir / f"fold_{fold}" / "DONE").touch()
    return workdir, made, variables


@pytest.fixture
def take_form(monkeypatch):
    """A function that makes this CPU run the form that the code has for another platform, such as "tpu"."""
    import jax
    from jax import lax

    def take(platform):
        def choose(*arguments, default, **forms):
            return forms.get(platform, default)(*arguments)

        monkeypatch.setattr(lax, "platform_dependent", choose)
        jax.clear_caches()

    yield take
    jax.clear_caches()
