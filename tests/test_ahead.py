"""Compiling ahead: what is read from a compiled program's text, and a tiny step and inference compiled for a TPU."""

import json

import jax
import jax.numpy as jnp
import pytest
from jax import lax

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


CONVOLUTIONS = """HloModule step

%fused (p: f32[8,96,128,2]) -> f32[3,3,2,64] {
  ROOT %convolution.1 = f32[3,3,2,64]{3,2,1,0} convolution(%p, %q), window={size=96x128 pad=1_1x1_1}, \
dim_labels=f01b_i01o->01bf, metadata={op_name="critics/conv1/transpose"}
}

ENTRY %main (a: f32[8,96,128,6]) -> f32[8] {
  %cudnn-conv.2 = (f32[6,64,3,3]{3,2,1,0}, u8[0]{0}) custom-call(%a, %b), window={size=96x128 pad=1_1x1_1}, \
dim_labels=bf01_oi01->bf01, custom_call_target="__cudnn$convForward", metadata={op_name="critics/vmap/transpose"}
  %cudnn-conv.3 = (f32[64,2,3,3]{3,2,1,0}, u8[0]{0}) custom-call(%a, %b), window={size=3x3 pad=1_1x1_1}, \
dim_labels=bf01_oi01->bf01, custom_call_target="__cudnn$convBackwardFilter"
  %cudnn-conv.4 = (f32[8,6,96,128]{3,2,1,0}, u8[0]{0}) custom-call(%a, %b), window={size=3x3 pad=1_1x1_1}, \
dim_labels=bf01_oi01->bf01, feature_group_count=3, custom_call_target="__cudnn$convForward"
  %conv.5 = f32[8,96,128,6]{3,2,1,0} convolution(%a, %b), window={size=1x9}, dim_labels=b01f_01io->b01f, \
batch_group_count=2, metadata={op_name="a/b"}
  %conv.6 = f32[8,96,128,6]{3,2,1,0} convolution(%a, %b), dim_labels=b01f_01io->b01f, feature_group_count=1
  ROOT %pool.7 = f32[8]{0} reduce-window(%a, %zero), window={size=1x16}, to_apply=%max
}
"""


def test_slow_forms_are_large_windows_and_groups():
    assert compiled_text.slow_forms(CONVOLUTIONS, windows=True) == [
        "window 96x128: critics/conv1/transpose",
        "window 96x128: critics/vmap/transpose",
        "3 feature groups: cudnn-conv.4",
        "window 1x9, 2 batch groups: a/b",
    ]
    groups = ["3 feature groups: cudnn-conv.4", "2 batch groups: a/b"]
    assert compiled_text.slow_forms(CONVOLUTIONS, windows=False) == groups


def test_a_convolution_is_a_slow_form_once_it_has_groups():
    def compiled(groups):
        def convolve(x, kernel):
            layout = ("NHWC", "HWIO", "NHWC")
            return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", None, None, layout, groups)

        shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 16, 16, 4), (3, 3, 4 // groups, 6))]
        return compiled_text.slow_forms(jax.jit(convolve).lower(*shapes).compile().as_text(), windows=False)

    assert compiled(1) == []
    [form] = compiled(2)
    assert form.startswith("2 feature groups: jit(convolve)/")


def test_the_summary_prints_each_slow_form():
    empty = dict.fromkeys(("arguments", "temporary", "code", "device"), 1e9)
    part = {"compile_s": 1.0, "memory_bytes": empty, "flops": 1e9, "bytes": 1e9, "launches": 3.0, "operations": {}}
    part |= {"seconds_at_peak": {"arithmetic": 1.0, "bytes": 1.0}, "pixel_gathers": 0, "step_s": 1.0}
    part |= {"collectives": {"count": 0, "bytes": 0, "seconds_at_peak": 0}, "slow_forms": ["window 96x128: critics"]}
    lines = ahead.summary({"target": "h100", "devices": 1, "step": part}).splitlines()
    place = lines.index("  convolutions in slow forms: 1")
    assert lines[place + 1] == "    window 96x128: critics"


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
        assert part["slow_forms"] == []
        assert part["cycles"] > 0
        assert part["flops"] > 0
    assert {"critics", "segmenter", "losses", "optimiser", "augmentation"} <= report["step"]["cycles_by_part"].keys()
    assert report["versions"]["libtpu"]
    assert report["lower_bounds"]["fold_s"] == pytest.approx(50 * report["lower_bounds"]["epoch_s"])
