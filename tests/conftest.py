"""Settings of JAX for all tests and their processes, and the data, networks and runs that several test files use."""

import gc
import os
import shutil
import sys
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

# Its fixtures are finished runs, for the tests of reports.
pytest_plugins = ["report_runs"]
PLATFORM = os.environ.get("ISLES_JAX_TEST_PLATFORM", "cpu")
os.environ["JAX_PLATFORMS"] = PLATFORM
if PLATFORM == "cpu":
    # Tests measure no speed, and most of their time is compilation: XLA optimises little. The workers of this session
    # and the commands that they start share one compilation cache.
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    if not find_spec("libtpu"):  # libtpu ends a process at a flag that it does not know
        # The tests keep all cores busy. To compile a program's parts on several threads takes a quarter longer in all.
        os.environ["XLA_FLAGS"] += " --xla_cpu_parallel_codegen_split_count=1"
        if version("jaxlib").startswith("0.10."):
            # XLA's older code generator compiles in two thirds of the time. Later versions have the newer one alone.
            os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
else:
    # The tolerances are those of float32, and the processes of a test share the device.
    os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
# JAX makes many objects while it traces. At Python's own threshold of 700 new ones, an eighth of a test's time would be
# the search for garbage.
gc.set_threshold(50_000)
MAIN_PROCESS = "PYTEST_XDIST_WORKER" not in os.environ
if MAIN_PROCESS:
    CACHES = tempfile.mkdtemp(prefix="isles_jax_tests_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{CACHES}/jax"
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
    if sys.dont_write_bytecode:
        # Each of more than a hundred commands would translate the whole source of JAX and of SciPy, which takes twice
        # as long as to import it. What Python translates is kept here, and not beside the source.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = f"{CACHES}/python"


def pytest_unconfigure(config):
    if MAIN_PROCESS:
        shutil.rmtree(CACHES, ignore_errors=True)


def pytest_ignore_collect(collection_path, config):
    """With -m device, the other test files are not imported: they may need packages that a machine with a GPU lacks."""
    chosen = config.option.markexpr.split()
    if "device" in chosen and "not device" not in config.option.markexpr and collection_path.suffix == ".py":
        return True if "pytest.mark.device" not in collection_path.read_text() else None
    return None


@pytest.fixture(scope="session")
def phantom_root(tmp_path_factory):
    """A small phantom data set in the SPES layout."""
    from isles_jax.phantoms.phantom import write_phantom

    root = tmp_path_factory.mktemp("data") / "phantom"
    write_phantom(root, cases=6, shape=(32, 32, 8), difficulty=1.0, seed=0)
    return root


@pytest.fixture(scope="session")
def real_set():
    """Four cases of ISLES-2022; a test skips where they are not there."""
    from isles_jax.data import layouts

    beside = Path(__file__).parents[2] / "shared" / "data" / "isles2022"
    root = Path(os.environ.get("ISLES_JAX_ISLES2022", beside))
    if not root.is_dir():
        pytest.skip("the cases of ISLES-2022 are not there; the variable ISLES_JAX_ISLES2022 names their folder")
    return layouts.load(root)


@pytest.fixture(scope="session")
def small_config():
    """A function that makes a complete configuration for a tiny network and a few steps."""
    from isles_jax import config

    def make(residual=True, adversarial=True, overlap=True, **keys):
        made = config.baseline(residual=residual, adversarial=adversarial, overlap=overlap)
        small = {"model.width": 4, "discriminator.width": 4, "train.epochs": 1, "train.batch_size": 4}
        made.update_from_flattened_dict(small | keys)
        return config.resolve(made)

    return make


@pytest.fixture(scope="session")
def untrained_run(tmp_path_factory, small_config):
    """(workdir, task, variables of each fold): three folds of untrained networks, saved as a run saves them.

    Folds 0 and 1 are marked as finished, fold 2 is not.
    """
    from helpers import task_of

    from isles_jax.training import checkpoint, parallel
    from isles_jax.training.state import init_state

    task = task_of(small_config(adversarial=False), label_values=(5, 9))
    workdir = tmp_path_factory.mktemp("untrained") / "run"
    variables = []
    for fold in (0, 1, 2):
        state = parallel.replicate(init_state(task, 10, fold))
        variables.append(state.segmenter.variables)
        checkpoint.save(workdir / f"fold_{fold}" / "checkpoints", state, task.record() | {"fold": fold})
    for fold in (0, 1):
        (workdir / f"fold_{fold}" / "DONE").touch()
    return workdir, task, variables


@pytest.fixture
def take_form(monkeypatch):
    """A function that makes this device run the form that the code has for another platform, such as "tpu"."""
    import jax
    from jax import lax

    def take(platform):
        def choose(*arguments, default, **forms):
            return forms.get({"gpu": "cuda"}.get(platform, platform), default)(*arguments)

        monkeypatch.setattr(lax, "platform_dependent", choose)
        jax.clear_caches()

    yield take
    jax.clear_caches()


@pytest.fixture(scope="session")
def forward(untrained_run):
    """The compiled forward pass of `untrained_run`'s networks."""
    from isles_jax.training.networks import make_forward

    return make_forward(untrained_run[1].predictor())


@pytest.fixture(scope="session")
def weights_file(untrained_run, tmp_path_factory):
    """The finished folds of `untrained_run` in one safetensors file."""
    from isles_jax import export

    path = tmp_path_factory.mktemp("export") / "folds.safetensors"
    export.main([f"--workdir={untrained_run[0]}", f"--output={path}"])
    return path


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """The folder behind gs://bucket. Orbax alone uses the folder itself: it reaches buckets through TensorStore."""
    import importlib.util

    import fsspec
    from etils import epath
    from fsspec.implementations.dirfs import DirFileSystem
    from fsspec.implementations.local import LocalFileSystem

    from isles_jax.training import checkpoint

    class Bucket(DirFileSystem):
        protocol = ("gs", "gcs")
        cachable = False

        def __init__(self, **options):
            assert options.pop("use_listings_cache") is False, "listings would not show what other processes write"
            super().__init__(path=str(tmp_path), fs=LocalFileSystem(auto_mkdir=True))

        @classmethod
        def _strip_protocol(cls, path):
            return os.fspath(path).removeprefix("gs://")

        def _join(self, path):
            return super()._join(self._strip_protocol(path) if isinstance(path, str) else path)

    find, manager = importlib.util.find_spec, checkpoint._manager
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: name == "gcsfs" or find(name, *more))
    fsspec.register_implementation("gcs", Bucket, clobber=True)
    epath.backend.fsspec_backend._get_filesystem.cache_clear()
    monkeypatch.setattr(checkpoint, "_manager", lambda path: manager(str(path).replace("gs://", f"{tmp_path}/")))
    (tmp_path / "bucket").mkdir()
    yield tmp_path / "bucket"
    epath.backend.fsspec_backend._get_filesystem.cache_clear()
