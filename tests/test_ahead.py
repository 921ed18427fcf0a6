"""Compiling ahead: what is read from a compiled program's text, and a tiny step and inference compiled for a TPU."""

import json

import pytest

from experiments.benchmarks import ahead, chips, compiled_text
from isles_jax.runtime.command import InputError

# A loop of three over a fusion, a gather of single numbers, a gather of rows, and an all-reduce of 64 numbers.
TEXT = """HloModule step

%fused (p: f32[8]) -> f32[8] {
  ROOT %gather.1 = f32[8]{0} gather(%p, %i), offset_dims={}, slice_sizes={1}, metadata={op_name="critics/gather"}
}

%body (s: (s32[], f32[8])) -> (s32[], f32[8]) {
  %x = f32[8]{0} get-tuple-element(%s), index=1
  %fusion.2 = f32[8]{0:T(8,128)} fusion(%x), kind=kLoop, calls=%fused, metadata={op_name="jit(f)/critics/while/add"}, \
backend_config={"window_config":{"estimated_cycles":"100"}}
  ROOT %t = (s32[], f32[8]{0}) tuple(%i, %fusion.2)
}

%condition (s: (s32[], f32[8])) -> pred[] {
  %bound = s32[]{:T(128)} constant(3)
  ROOT %less = pred[] compare(%i, %bound), direction=LT
}

ENTRY %main (a: f32[64], b: f32[4,64]) -> f32[64] {
  %a = f32[64]{0} parameter(0)
  %b = f32[4,64]{1,0} parameter(1)
  %while.3 = (s32[], f32[8]{0}) while(%start), condition=%condition, body=%body
  %rows = f32[2,64]{1,0} gather(%b, %i), offset_dims={1}, slice_sizes={1,64}, metadata={op_name="jit(f)/augmentation/x"}
  %copy.4 = f32[64]{0} copy(%a), backend_config={"window_config":{"estimated_cycles":"7"}}
  ROOT %sum = f32[64]{0} all-reduce(%copy.4), replica_groups={{0,1}}, to_apply=%add
}
"""


def test_operations_are_read_with_their_parts_bytes_and_loops():
    found = {o.name: o for o in compiled_text.operations(TEXT)}
    assert list(found) == ["fusion.2", "rows", "copy.4", "sum"]
    loop = found["fusion.2"]
    assert (loop.opcode, loop.cycles, loop.times, loop.bytes) == ("fusion", 100, 3, 64)
    assert (found["rows"].cycles, found["rows"].times, found["rows"].bytes) == (None, 1, 4 * 64 * 4 + 2 * 64 * 4)
    cycles = ahead._cycles(list(found.values()), 1, chips.CHIPS["v5e"])
    assert cycles["cycles_by_part"] == {"critics": 300.0, "copies": 7.0, "augmentation": 0.0, "other": 0.0}
    assert cycles["without_estimate"] == {"gather": 1}
    assert cycles["cycles_without_estimate_by_bytes"] == pytest.approx(6 * 64 * 4 / 819e9 * 1.5e9)
    assert ahead._pixelwise(TEXT) == [], "eight numbers are no picture"
    picture = TEXT.replace("f32[8]{0} gather(", "f32[2,32,32]{2,1,0:T(8,128)} gather(")
    assert [line.strip()[:14] for line in ahead._pixelwise(picture)] == ["ROOT %gather.1"]
    collectives = ahead._collectives(list(found.values()), 1, chips.CHIPS["v5e"], 2)
    assert (collectives["count"], collectives["bytes"]) == (1, 64 * 4)
    assert collectives["seconds_at_peak"] == pytest.approx(64 * 4 / 200e9)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target=v9:2x2"], r"--target=v9:2x2: found no such target, expected h100 or a topology such as v5e:1x1"),
        (["--target=v5e:2x4", "--config.modl.width=3"], "modl"),
        (["--target=v5e:2x4", "--size=30x32"], "--size"),
        (["--target=v5e:2x4", "--config=nowhere.py"], r"--config=nowhere.py: found no such file"),
        (["--target=v5e:2x4", "--tarjet=h100"], "tarjet"),
    ],
)
@pytest.mark.filterwarnings("ignore:the load_module")  # by ml_collections, for a config file
def test_mistakes_are_refused_in_one_line(words, message):
    with pytest.raises(InputError, match=message) as caught:
        ahead.main(words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("target", "package"), [("v5e:1x1", "libtpu"), ("h100", "CUDA plugin")])
def test_what_is_not_installed_is_named_with_how_to_install_it(monkeypatch, target, package):
    monkeypatch.setattr(chips.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=f"{target}: .*{package} is not installed; pip install"):
        chips.find_devices(target)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the load_module")
def test_a_tiny_step_and_inference_compile_for_tpus(tmp_path, capsys):
    pytest.importorskip("libtpu")
    output = tmp_path / "ahead.json"
    small = ["--size=32x32", "--slices=12", "--config.model.width=4", "--config.discriminator.width=4"]
    ahead.main(["--target=v5e:1x1", "--config=configs/proposed.py", f"--output={output}", *small])
    [report] = json.loads(output.read_text())
    assert "estimated by the compiler, nothing was run" in capsys.readouterr().out
    for part in (report["step"], report["inference"]):
        assert part["pixel_gathers"] == 0
        assert part["wide"] == [], "nothing of 64 bits reaches a TPU"
        assert part["cycles"] > 0
        assert part["flops"] > 0
    assert {"critics", "segmenter", "losses", "optimiser", "augmentation"} <= report["step"]["cycles_by_part"].keys()
    assert report["versions"]["libtpu"]
    assert report["lower_bounds"]["fold_s"] == pytest.approx(50 * report["lower_bounds"]["epoch_s"])
