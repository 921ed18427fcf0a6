import os

import pytest

# Compiled steps are shared by the tests and the commands they start; tests measure no speed, so little is optimised.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"


@pytest.fixture(scope="session", autouse=True)
def compile_cache(tmp_path_factory):
    """One persistent compile cache for this session, also for the commands it starts."""
    import jax

    folder = str(tmp_path_factory.mktemp("compile_cache"))
    options = {
        "jax_compilation_cache_dir": folder,
        "jax_persistent_cache_min_compile_time_secs": 0.5,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in options.items():
        os.environ[name.upper()] = str(value)
        jax.config.update(name, value)
    return folder


@pytest.fixture(scope="session")
def phantom_root(tmp_path_factory):
    """A small phantom data set in the SPES layout."""
    from isles_jax.data.phantom import write_phantom

    root = tmp_path_factory.mktemp("data") / "phantom"
    write_phantom(root, cases=6, shape=(32, 32, 8), difficulty=1.0, seed=0)
    return root


@pytest.fixture
def small_config():
    """A function that makes a configuration for a tiny network and a few steps."""
    from isles_jax import config

    def make(residual=True, adversarial=True, overlap=True, **keys):
        made = config.baseline(residual=residual, adversarial=adversarial, overlap=overlap)
        small = {"model.width": 4, "discriminator.width": 4, "train.epochs": 1, "train.batch_size": 4}
        made.update_from_flattened_dict(small | keys)
        return config.resolve(made)

    return make
