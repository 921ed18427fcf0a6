"""One device against eight virtual ones, in processes of their own."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from helpers import ROOT, environment, run_main

from isles_jax.models import SUMNet
from isles_jax.training import networks, parallel

# Rounding grows with every step. After 20, with the rate of 1e-3 of three critics, 4 of 365 arrays are apart by up to
# 2.3e-5: Adam's first moments of three kernels of one critic, and a variance of 3.5 in its batch norm.
STEPS = 10
GPU = Path("/dev/nvidia0").exists()
PROGRAM = """
import sys
import jax, numpy as np
from isles_jax import config
from isles_jax.training import parallel
from isles_jax.training.state import init_state
from isles_jax.training.step import make_step
from isles_jax.training.task import Task

output, kind, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
made = config.baseline(residual=True, adversarial=True, overlap=True)
keys = {"model.width": 4, "discriminator.width": 4, "loss.lovasz_per_image": True}
made.update_from_flattened_dict(keys)
made = config.resolve(made)
rng = np.random.default_rng(0)
labels = np.zeros((16, 32, 32), np.int8)
labels[:, 8:20, 6:20] = 1
labels[::2, :3] = -1
images = rng.normal(size=(16, 32, 32, 3)).astype(np.float32) + (labels > 0)[..., None]
# One class has one critic, which compiles in a third of the time of three.
task = Task(made, ("Tmax", "TTP", "DWI"), ("lesion",))
step = parallel.parallelize(make_step(task, steps, parallel.AXIS), kind)
state = parallel.replicate(init_state(task, steps, 0))
data = parallel.replicate((images, labels))
for number in range(steps):
    batch = np.random.default_rng(number).permutation(16)[:8].astype(np.int32)
    state, metrics = step(state, data, batch.reshape(jax.device_count(), 1, -1))
leaves = jax.tree.leaves((state.segmenter, state.critics))
for leaf in leaves:
    copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
    assert len(copies) == jax.device_count() and all(np.array_equal(copies[0], copy) for copy in copies)
np.savez(output, *map(np.asarray, leaves))
print(jax.device_count(), float(metrics["loss"][0]))
"""


def train(output, devices, kind="pmap", steps=STEPS):
    command = [sys.executable, "-c", PROGRAM, str(output), kind, str(steps)]
    done = subprocess.run(command, cwd=ROOT, env=environment(devices), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith(f"{devices} ")
    with np.load(output) as arrays:
        return [arrays[name] for name in arrays.files]


@pytest.fixture(scope="module")
def on_eight(tmp_path_factory):
    return train(tmp_path_factory.mktemp("eight") / "pmap.npz", 8)


@pytest.mark.slow
def test_eight_devices_learn_what_one_does(on_eight, tmp_path):
    on_one = train(tmp_path / "one.npz", 1)
    assert len(on_one) == len(on_eight)
    for one, eight in zip(on_one, on_eight, strict=True):
        np.testing.assert_allclose(eight, one, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_pmap_and_shard_map_are_identical(on_eight, tmp_path):
    for mapped, other in zip(train(tmp_path / "mapped.npz", 8, "shard_map"), on_eight, strict=True):
        np.testing.assert_array_equal(mapped, other)


def test_unknown_parallel_kind_is_refused():
    with pytest.raises(ValueError, match="pmap"):
        parallel.parallelize(lambda *_: None, "vmap")


@pytest.mark.parametrize(("platform", "given"), [("cpu", None), ("gpu", None), ("gpu", "/elsewhere")])
def test_the_compilation_cache_is_kept_on_accelerators_only(monkeypatch, tmp_path, platform, given):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", given)
        parallel.keep_compiled()
        found = jax.config.jax_compilation_cache_dir
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    expected = given if given or platform == "cpu" else f"{tmp_path}/isles_jax/gpu-jaxlib-{version('jaxlib')}"
    assert found == expected


@pytest.mark.parametrize(
    ("platform", "problem"),
    [
        pytest.param("cuda", "found no NVIDIA GPU", marks=pytest.mark.skipif(GPU, reason="there is an NVIDIA GPU")),
        ("nothing", "Unable to initialize backend 'nothing'"),
    ],
)
def test_a_platform_that_jax_cannot_use_is_one_line(monkeypatch, platform, problem):
    monkeypatch.setenv("JAX_PLATFORMS", platform)
    done = run_main("from isles_jax.training import parallel\nparallel.keep_compiled()")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: JAX_PLATFORMS={platform}: {problem}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("count", "graphs"), [(1, True), (4, False)])
def test_a_step_for_an_nvidia_gpu_is_compiled_with_options_of_its_own(monkeypatch, count, graphs):
    assert parallel.step_options() == {}, "a CPU needs none"
    pretend_cuda(monkeypatch, count)
    options = parallel.step_options()
    assert options["xla_gpu_experimental_enable_conv_fusion"] is True
    assert options["xla_gpu_exclude_nondeterministic_ops"] is True
    assert ("xla_gpu_enable_command_buffer" in options) == graphs


def test_the_forward_pass_for_an_nvidia_gpu_has_the_option_for_repeatable_results_alone(monkeypatch):
    assert parallel.repeatable_options() == {}, "a CPU needs none"
    pretend_cuda(monkeypatch, 1)
    assert parallel.repeatable_options() == {"xla_gpu_exclude_nondeterministic_ops": True}


def test_options_of_the_compiler_reach_the_forward_pass(monkeypatch):
    segmenter, variables, images = small_network()
    expected = networks.make_forward.__wrapped__(segmenter)(variables, images)
    pretend_cuda(monkeypatch, 1)
    np.testing.assert_array_equal(networks.make_forward.__wrapped__(segmenter)(variables, images), expected)
    monkeypatch.setattr(parallel, "repeatable_options", lambda: {"xla_no_such_option": True})
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
        networks.make_forward.__wrapped__(segmenter)(variables, images)


def test_the_forward_pass_is_a_part_of_another_program_where_there_is_an_nvidia_gpu(monkeypatch):
    segmenter, variables, images = small_network()
    expected = networks.make_forward.__wrapped__(segmenter)(variables, images)
    pretend_cuda(monkeypatch, 1)
    with pytest.raises(ValueError, match="top-level"):
        jax.jit(networks.make_forward.__wrapped__(segmenter))(variables, images)
    np.testing.assert_array_equal(jax.jit(networks.forward_in(segmenter))(variables, images), expected)


def small_network():
    segmenter = SUMNet(residual=False, width=2, num_classes=2)
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    return segmenter, segmenter.init(jax.random.key(0), images), images


@pytest.mark.parametrize(
    ("constant", "others"),
    [("CUDA_OPTIONS_OF_ONE_DEVICE", parallel.REPEATABLE), ("REPEATABLE", parallel.CUDA_OPTIONS_OF_ONE_DEVICE)],
)
def test_options_that_xla_does_not_know_are_named_and_left_out_and_the_others_stay(
    monkeypatch, capsys, constant, others
):
    pretend_cuda(monkeypatch, 1)
    monkeypatch.setattr(parallel, constant, {"xla_gpu_no_such_option": True})
    assert parallel.step_options() == others
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("note: this version of XLA refuses options that make ")
    assert "xla_gpu_no_such_option" in line


def test_options_that_leave_no_program_for_a_convolution_are_left_out(monkeypatch, capsys):
    compile_it = jax.stages.Lowered.compile

    def compile_or_refuse(lowered, compiler_options):
        both = {"xla_gpu_experimental_enable_conv_fusion", "xla_gpu_exclude_nondeterministic_ops"}
        if both <= set(compiler_options) and "convolution" in lowered.as_text():
            raise jax.errors.JaxRuntimeError("INTERNAL: Failed to get configs for: 1 out of 1 instructions.\nmore")
        return compile_it(lowered, compiler_options)

    pretend_cuda(monkeypatch, 1)
    monkeypatch.setattr(jax.stages.Lowered, "compile", compile_or_refuse)
    assert parallel.step_options() == parallel.CUDA_OPTIONS_OF_ONE_DEVICE
    refused = "options that make results repeatable (INTERNAL: Failed to get configs for: 1 out of 1 instructions.)"
    assert capsys.readouterr().out == f"note: this version of XLA refuses {refused}\n"
    assert parallel.repeatable_options() == parallel.REPEATABLE


def pretend_cuda(monkeypatch, count):
    """JAX says that its devices are NVIDIA's. The compiler is that of the CPU, which knows the same options."""
    client = SimpleNamespace(platform_version="cuda 13000")
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(client=client)] * count)
    monkeypatch.setattr(jax, "device_count", lambda: count)


@pytest.mark.parametrize("kind", ["pmap", "shard_map"])
def test_options_of_the_compiler_reach_the_program_and_each_shape_is_compiled_once(monkeypatch, kind):
    compiled = []

    def listen(event, duration, **words):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(words["fun_name"])

    def step(state, data, indices):
        return state + indices.sum(), {"loss": data[0].sum() + indices}

    monkeypatch.setattr(parallel, "step_options", lambda: {"xla_cpu_enable_fast_math": False})
    run = parallel.parallelize(step, kind)
    state, data = parallel.replicate(np.int32(0)), parallel.replicate((np.ones(3, np.float32),))
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for length in (2, 2, 1, 2):
            state, metrics = run(state, data, np.ones((1, length, 4), np.int32))
            assert metrics["loss"].shape == (length, 4)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert int(state) == 4 * (2 + 2 + 1 + 2)
    assert len(compiled) == 2
    monkeypatch.setattr(parallel, "step_options", lambda: {"xla_no_such_option": True})
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
        parallel.parallelize(step, kind)(state, data, np.ones((1, 2, 4), np.int32))
