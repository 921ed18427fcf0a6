"""The benchmark: what fails is a row, shares follow from differences, and the command runs on a tiny network."""

import argparse
import json
import math
import os
import subprocess
import sys
import time

import pytest
from helpers import ROOT

from experiments import benchmark
from experiments.benchmarks import network, pipeline, timing
from isles_jax.runtime.command import InputError

TINY = ["--no-torch", "--width=4", "--size", "32", "32", "--shape", "32", "32", "8", "--conv=lax"]
TINY += ["--runs=3", "--sizes=1", "--steps=9", "--batch", "4"]


def raising(error):
    def function(*arguments):
        raise error

    return function


def failing_after(runs):
    """Makes a function that fails once it has run so often."""

    def make():
        left = iter(range(runs))
        return lambda: next(left)

    return make


def test_what_fails_is_a_row_with_its_reason_and_the_others_are_timed(capsys):
    def noted():
        function = lambda: None  # noqa: E731
        function.note = "losses eager"
        return function

    makers = {
        "cannot be made": raising(TypeError("no code for\n  this")),
        "cannot run": lambda: raising(ValueError("x" * 400)),
        "fails later": failing_after(timing.WARM_UP + 2),
        "works": lambda: lambda: None,
        "noted": noted,
    }
    rows = timing.interleave(makers, 3)
    assert list(rows) == list(makers)
    assert rows["cannot be made"] == {"failed": "TypeError: no code for this"}
    assert rows["cannot run"] == {"failed": f"ValueError: {'x' * 400}"[:300]}
    assert rows["fails later"] == {"failed": "StopIteration:"}
    assert rows["works"]["runs"] == rows["noted"]["runs"] == 3
    assert "note" not in rows["works"]
    assert rows["noted"]["note"] == "losses eager"
    printed = [line for line in capsys.readouterr().out.splitlines() if "failed" in line]
    assert len(printed) == 3


def test_after_the_deadline_nothing_is_made(capsys):
    makers = {"late": raising(AssertionError("was made"))}
    assert timing.interleave(makers, 3, deadline=time.monotonic() - 1) == {"late": {"skipped": "no time was left"}}
    assert "skipped" in capsys.readouterr().out


@pytest.mark.parametrize(("seconds", "runs"), [(0.0, 3), (math.inf, 5)])
def test_once_the_time_is_over_three_runs_are_enough(monkeypatch, seconds, runs):
    monkeypatch.setattr(timing, "_cpu_seconds", lambda: (0.0, 0.0))  # no other process disturbs a run
    assert timing.interleave({"works": lambda: lambda: None}, 5, seconds)["works"]["runs"] == runs


def test_ratios_are_those_to_the_fastest_eager_and_the_fastest_pytorch():
    times = {
        "ours": (2, 6),
        "PyTorch, eager": (8, 3),
        "PyTorch, eager, channels last": (5, 4),
        "PyTorch, compiled": (4, 1),
    }
    rows = {name: {"median_ms": wall, "cpu_ms": cpu} for name, (wall, cpu) in times.items()}
    expected = {"ratio_to_eager": 2 / 5, "cpu_ratio_to_eager": 6 / 3, "ratio_to_pytorch": 2 / 4}
    assert timing._ratios(rows["ours"], rows) == expected
    assert timing._ratios(rows["ours"], {"ours": rows["ours"]}) == {}


def test_a_subject_that_fails_or_comes_too_late_is_a_row(monkeypatch, capsys):
    monkeypatch.setitem(benchmark.SUBJECTS, "step", raising(RuntimeError("no memory")))
    options = argparse.Namespace(batch=8, deadline=math.inf, no_torch=True)
    assert benchmark.measure_subject(options, "step") == {"batch 8": {"failed": "RuntimeError: no memory"}}
    assert "step failed: RuntimeError: no memory" in capsys.readouterr().out
    options.deadline = time.monotonic() - 1
    assert benchmark.measure_subject(options, "step") == {"batch 8": {"skipped": "no time was left"}}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pytorch", "eager, chanels last"], "--pytorch: found 'eager, chanels last', expected as in 'compiled, "),
        ([], "PyTorch is not installed: pip install isles-jax[bench], or add --no-torch"),
        (["--secnds=3"], "--secnds=3: found no such flag, expected --seconds=3?"),
    ],
)
def test_a_mistake_in_the_flags_is_one_line(monkeypatch, words, message):
    found = object() if words else None
    monkeypatch.setattr(benchmark.importlib.util, "find_spec", lambda name: found)
    with pytest.raises(InputError) as caught:
        benchmark.parse(["step", *words])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_shares_follow_from_loops_that_do_less_and_less(monkeypatch, small_config, phantom_root):
    """By a model: a step takes 2 s, drawing 1/2, metrics 1/4, a checkpoint 30, a start 7, and the first one 50 more."""
    from isles_jax.data import layouts
    from isles_jax.training.plan import prepare

    config = small_config(**{"train.checkpoint_every_steps": 20})
    plan = prepare(config, layouts.load(phantom_root, penumbra=1, core=2))
    trained = []

    def step_seconds(plan, pool, steps, drawn):
        return steps * (2.5 if drawn else 2.0)

    def fold_seconds(plan, held_out, steps, every, directory):
        trained.append(directory.name)
        return 7 + steps * 2.75 + 30 * math.ceil(steps / every) + (50 if len(trained) == 1 else 0)

    monkeypatch.setattr(pipeline, "_step_seconds", step_seconds)
    monkeypatch.setattr(pipeline, "_fold_seconds", fold_seconds)
    entry = pipeline.time_loops(plan, ["01"], 100, phantom_root)
    assert trained == ["short_0", "short_1", "unsaved", "whole"]
    # Each 20 steps take 55 s and have one checkpoint of 30 s.
    whole = 55 + 30
    assert entry["steps"] == 80
    assert entry["first_call_s"] == 2.0
    assert entry["step_alone_steps_per_s"] == 0.5
    assert entry["whole_training_steps_per_s"] == round(20 / whole, 3)
    expected = {"step": 40 / whole, "input": 10 / whole, "metrics": 5 / whole, "checkpoints": 30 / whole}
    assert entry["shares"] == {name: round(share, 3) for name, share in expected.items()}
    assert entry["start_and_last_checkpoint_s"] == 37.0


def test_what_nvidia_smi_says_is_kept(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert timing._gpus() == []
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H200, 570.1, 1980 MHz, 3201 MHz, 1980 MHz, 700.00 W'\n")
    program.chmod(0o755)
    [gpu] = timing._gpus()
    assert gpu["name"] == "NVIDIA H200"
    assert gpu["power.limit"] == "700.00 W"
    program.write_text("#!/bin/sh\nexit 9\n")
    assert timing._gpus() == []
    assert "note: nvidia-smi says nothing of the GPUs: CalledProcessError" in capsys.readouterr().out


@pytest.mark.parametrize("refused", [False, True])
def test_losses_that_cannot_be_compiled_are_eager_and_said_so(monkeypatch, refused):
    torch = pytest.importorskip("torch")
    from experiments.benchmarks import torch_functions, torch_losses

    eager = torch_losses.supervised_losses
    compiler = raising(TypeError("SplitScan")) if refused else eager
    monkeypatch.setattr(torch, "compile", lambda function, **options: compiler)
    labels = torch.zeros((2, 8, 8), dtype=torch.long, device=torch_functions.DEVICE)
    assert torch_functions._losses("eager", 3, labels) == (eager, "")
    note = "losses eager, which cannot be compiled: TypeError: SplitScan" if refused else ""
    assert torch_functions._losses("compiled, autocast", 3, labels) == (eager, note)


@pytest.mark.slow
def test_pytorch_computes_the_same_from_the_same_weights():
    pytest.importorskip("torch")
    options = benchmark.parse(["agreement", "--width=8", "--size", "64", "64", "--conv=lax"])
    options.batch, options.pytorch = 4, ["eager"]
    differences = network.check_agreement(options)
    assert set(differences) == {"bl5, logits", "bl5, loss", "proposed, logits", "proposed, loss"}
    # The adversarial losses are a thousandth of the whole.
    assert max(differences.values()) < 1e-5


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What the command measures on a tiny network."""
    output = tmp_path_factory.mktemp("benchmark") / "results.json"
    command = [sys.executable, "-m", "experiments.benchmark", "all", *TINY, f"--output={output}"]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(output.read_text())


def unmeasured(rows):
    """The places in nested results where a reason stands in place of times."""
    if not isinstance(rows, dict):
        return []
    here = [name for name in ("failed", "skipped") if name in rows]
    return here + [f"{name}: {place}" for name, row in rows.items() for place in unmeasured(row)]


@pytest.mark.slow
def test_every_subject_is_measured(results):
    assert list(results["results"]) == [name for name in benchmark.SUBJECTS if name not in benchmark.NOT_IN_ALL]
    assert unmeasured(results["results"]) == []
    assert unmeasured({"step": {"ours": {"failed": "TypeError"}}}) == ["step: ours: failed"]
    [case] = results["results"]["inference"].values()
    assert "median_ms" in case["ours, float32"]


@pytest.mark.slow
def test_a_fold_says_its_rates_and_where_its_time_goes(results):
    assert results["versions"]["jaxlib"]
    [entry] = results["results"]["fold"].values()
    assert (entry["steps"], entry["checkpoint_every_steps"], entry["batch"]) == (4, 4, 4)
    assert sum(entry["shares"].values()) == pytest.approx(1, abs=0.002)
    assert {"whole_training_steps_per_s", "first_call_s"} <= set(entry)
    # 240 slices, of which two thirds are trained on, 50 times.
    assert entry["extrapolated_to_30_cases"]["steps"] == 50 * 160 / 4


@pytest.mark.slow
def test_the_command_for_a_new_case_is_timed_twice(results):
    [(name, entry)] = results["results"]["predict"].items()
    assert name == "one case of (32, 32, 8), 3 folds"
    assert {"first_s", "second_s"} <= set(entry)


def test_the_prediction_that_compiles_is_timed_apart(monkeypatch, small_config):
    """By a model: a case takes 2 s, and the first prediction 30 more."""
    predicted = []

    def prediction_seconds(dataset, held_out, directory):
        predicted.append(directory.name)
        return 2 * len(held_out) + 30 * (len(predicted) == 1)

    rates = {"whole_training_steps_per_s": 10.0, "start_and_last_checkpoint_s": 5.0}
    monkeypatch.setattr(pipeline, "make_config", lambda *_, **keys: small_config())
    monkeypatch.setattr(pipeline, "time_loops", lambda *_: dict(rates))
    monkeypatch.setattr(pipeline, "_prediction_seconds", prediction_seconds)
    options = argparse.Namespace(steps=20, epochs=1, cases=6, shape=(32, 32, 8), seed=0, pytorch=[])
    [entry] = pipeline.benchmark_fold(options).values()
    assert predicted == ["unsaved", "whole"]
    assert (entry["first_prediction_s"], entry["prediction_of_a_case_s"]) == (34.0, 2.0)
    whole = entry["extrapolated_to_30_cases"]
    assert whole["fold_min"] == round((whole["steps"] / 10 + 5 + 10 * 2.0) / 60, 2)


def test_what_pytorch_compiles_for_a_minute_each_is_a_subject_of_its_own():
    options = argparse.Namespace(no_torch=False, variants=None)
    for subject in benchmark.SUBJECTS:
        compiled = [variant for variant in benchmark.variants(options, subject) if "compiled" in variant]
        assert bool(compiled) == (subject == "compiled")
    options.no_torch = True
    assert benchmark.variants(options, "compiled") == []
    options.pytorch = []
    assert network.benchmark_compiled(options) == {}


def test_a_fold_of_too_few_steps_is_refused_with_the_reason():
    with pytest.raises(InputError, match="--steps=1: expected at least 2, two calls of the compiled step"):
        pipeline.benchmark_fold(argparse.Namespace(steps=1, epochs=50))
