import json

from isles_jax.runtime.progress import Bar
from isles_jax.training.metric_writer import MetricWriter


def read(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_scalars_are_json_lines(tmp_path):
    writer = MetricWriter(tmp_path / "fold_0", 0)
    writer.write_scalars(10, {"loss": 0.5, "lovasz": float("nan")})
    writer.write_scalars(20, {"loss": 0.25})
    assert read(tmp_path / "fold_0") == [{"step": 10, "loss": 0.5, "lovasz": None}, {"step": 20, "loss": 0.25}]


def test_a_resumed_run_drops_what_it_will_write_again(tmp_path):
    writer = MetricWriter(tmp_path, 0)
    for step in (10, 20, 30):
        writer.write_scalars(step, {"loss": 1.0 / step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')  # killed while writing
    resumed = MetricWriter(tmp_path, 20)
    assert [line["step"] for line in read(tmp_path)] == [10, 20]
    resumed.write_scalars(30, {"loss": 0.0})
    assert [line["step"] for line in read(tmp_path)] == [10, 20, 30]


def test_without_a_terminal_progress_is_plain_lines(capsys):
    with Bar("fold 0", 5, "step") as bar:
        for _ in range(5):
            bar.advance(note="loss 0.5")
    said = capsys.readouterr().out
    assert said.startswith("fold 0: 5/5 steps, ")
    assert said.endswith("0 s left  loss 0.5\n")
    assert "\x1b" not in said


def test_nothing_done_says_nothing_and_errors_pass(capsys):
    with Bar("fold 0", 5, "step", done=5):
        pass
    bar = Bar("fold 0", 5, "step")
    bar.__enter__().advance()
    assert not bar.__exit__(KeyError, KeyError(), None)
    assert capsys.readouterr().out == ""
