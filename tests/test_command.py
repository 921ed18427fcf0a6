"""How a command ends: one line and an exit code."""

import os
import subprocess
import sys

import pytest
from helpers import COMMAND, ROOT, run_main, save_volume, volumes

from isles_jax import cli
from isles_jax.runtime.command import InputError, problem_of


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_leaves_ends_the_command_without_a_word(lines):
    """Whether the output breaks off while it is written or only at the end."""
    main = f"def main():\n    input()\n    for _ in range({lines}):\n        print('a line')\nrun_command(main)\n"
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", COMMAND + main], cwd=ROOT, text=True, **pipes) as process:
        process.stdout.close()
        process.stdin.write("\n")
        process.stdin.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_another_broken_connection_is_no_silent_end():
    done = run_main("raise BrokenPipeError(32, 'Broken pipe')")
    assert done.returncode == 1
    assert "BrokenPipeError" in done.stderr


def test_a_full_disk_is_one_line_and_exit_code_2():
    done = run_main("raise OSError(28, 'No space left on device', 'figure.png')")
    assert (done.returncode, done.stderr) == (2, "error: figure.png: cannot be written (No space left on device)\n")


@pytest.mark.slow
def test_a_device_whose_memory_is_full_is_one_line_and_exit_code_2():
    done = run_main("import jax.numpy as jnp\njnp.zeros(1 << 46)")
    assert done.returncode == 2
    assert done.stderr.startswith("error: RESOURCE_EXHAUSTED: Out of memory")
    assert done.stderr.endswith("a smaller --config.train.batch_size or --config.dtype=bfloat16 needs less\n")
    assert done.stderr.count("\n") == 1


def test_an_error_of_the_program_is_still_a_traceback():
    done = run_main("raise SystemError('a mistake of ours')")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_path_that_the_system_refuses_is_one_line():
    done = run_main("open('/proc/self/mem/x')")
    assert (done.returncode, done.stderr) == (
        2,
        "error: /proc/self/mem/x: cannot be read or written (Not a directory)\n",
    )


def test_an_output_that_lacks_a_character_gets_the_rest(monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = run_main("print('0.8 \u00b1 0.1')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "0.8 ? 0.1\n", "")


def test_memory_that_is_full_is_one_line():
    done = run_main("bytearray(1 << 60)")
    assert (done.returncode, done.stderr) == (2, "error: out of memory (no more can be allocated)\n")


@pytest.mark.parametrize(("closed", "left"), [(">&-", "stderr"), ("2>&-", "stdout"), (">&- 2>&-", "")])
def test_closed_streams_are_refused_before_a_file_takes_their_place(tmp_path, closed, left):
    output = tmp_path / "data"
    command = f"{sys.executable} -m isles_jax.phantom --output={output} --cases=1 --shape=16x16x4 {closed}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    line = "error: found a closed stdout or stderr, expected both open; to hide what is printed, use >/dev/null\n"
    assert (done.returncode, {"stdout": done.stdout, "stderr": done.stderr}) == (
        2,
        {"stdout": "", "stderr": ""} | ({left: line} if left else {}),
    )
    assert not output.exists()


def test_a_working_directory_that_was_removed_is_named(tmp_path):
    command = f"mkdir {tmp_path}/x && cd {tmp_path}/x && rmdir {tmp_path}/x && {sys.executable} -c 'from isles_jax.cli \
import run; run()'"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert done.stderr == (
        "error: found no working directory (No such file or directory), expected one; go to another with cd\n"
    )


def test_a_python_without_assertions_and_docstrings_ends_in_one_line_too(untrained_run, tmp_path):
    command = [sys.executable, "-OO", "-m", "isles_jax.export", f"--workdir={untrained_run[0]}"]
    for platform in ("cuda", "tpu", "nonsense"):
        environment = os.environ | {"JAX_PLATFORMS": platform}
        words = [*command, f"--output={tmp_path / 'x.stablehlo'}"]
        done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True)
        if not done.returncode:
            continue  # this machine has such a device
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert done.stderr.startswith(f"error: JAX_PLATFORMS={platform}: ")
        assert not list(tmp_path.iterdir())


def test_links_that_lead_to_themselves_are_one_line(phantom_root, untrained_run, tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    page = tmp_path / "loop.html"
    page.symlink_to("loop.html")
    table = tmp_path / "loop.csv"
    table.symlink_to("loop.csv")
    run = untrained_run[0]
    masks = tmp_path / "masks"
    save_volume(masks / "a.nii", volumes()["OT"])
    for arguments in (
        ["train", f"--workdir={loop}", f"--config.data.root={phantom_root}"],
        ["train", f"--workdir={loop / 'x'}", f"--config.data.root={phantom_root}"],
        ["train", f"--workdir={tmp_path / 'new'}", f"--config.data.root={loop}"],
        ["predict", f"--workdir={loop}", f"--input={phantom_root}", f"--output={tmp_path / 'new'}"],
        ["predict", f"--workdir={run}", f"--input={loop}", f"--output={tmp_path / 'new'}"],
        ["predict", f"--workdir={run}", f"--input={phantom_root}", f"--output={loop}"],
        ["phantom", f"--output={loop}", "--cases=1", "--shape=16x16x4"],
        ["phantom", f"--output={loop / 'x'}", "--cases=1", "--shape=16x16x4"],
        ["convert", f"--input={phantom_root}", f"--output={loop}"],
        ["convert", f"--input={loop}", f"--output={tmp_path / 'new'}"],
        ["check", str(loop)],
        ["check", str(phantom_root), "--images", "DWI={case}/*DWI*/*", f"--output={loop / 'x.csv'}"],
        ["check", str(phantom_root), "--images", "DWI={case}/*DWI*/*", f"--output={table}"],
        ["evaluate", f"--predictions={loop}", f"--labels={loop}"],
        ["evaluate", f"--predictions={masks}", f"--labels={masks}", f"--output={loop}"],
        ["report", str(loop), f"--output={tmp_path / 'new'}"],
        ["report", str(run), f"--output={page}"],
        ["export", f"--workdir={loop}", f"--output={tmp_path / 'new.safetensors'}"],
    ):
        with pytest.raises((InputError, OSError)) as caught:
            cli.main(arguments)
        message = problem_of(caught.value)
        assert "loop" in message
        assert "\n" not in message
        assert sorted(path.name for path in tmp_path.iterdir()) == ["loop", "loop.csv", "loop.html", "masks"]
        assert loop.is_symlink()
        assert page.is_symlink()
