"""Locks between real processes."""

import subprocess
import sys

import pytest
from helpers import ROOT

from isles_jax.runtime import lock
from isles_jax.runtime.command import InputError

HOLDER = """
import sys
from isles_jax.runtime import lock
with lock.hold(sys.argv[1], {int(sys.argv[2]): f"fold {sys.argv[2]}"}) as alone:
    with alone():
        print("held", flush=True)
        sys.stdin.readline()
    print("shared", flush=True)
    sys.stdin.readline()
"""


def folds(*numbers):
    return {number: f"fold {number}" for number in numbers}


@pytest.fixture
def holder(tmp_path):
    """A process that holds fold 0 of a workdir and what the folds share; a line on its stdin lets go of the latter."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run"), "0"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_fold_is_held_until_its_process_is_gone_however_it_goes(holder, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(InputError, match="another process at work on fold 0") as refused, lock.hold(run, folds(0, 1)):
        pass
    assert "\n" not in str(refused.value)
    assert (run / lock.NAME).exists(), "a run that is refused takes nothing away from the one at work"
    with lock.hold(run, folds(1, 2)):
        pass
    holder.kill()
    holder.wait()
    with lock.hold(run, folds(0, 1)) as alone, alone():
        pass


@pytest.mark.slow
def test_the_command_is_refused_in_one_line(holder, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "isles_jax.main", f"--workdir={run}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {run}: found another process at work on fold 0, ")
    assert done.stderr.count("\n") == 1
    assert [path.name for path in run.iterdir()] == [lock.NAME]


def test_what_the_folds_share_is_waited_for(holder, tmp_path, monkeypatch):
    waited = []

    def sleep(seconds):
        if not waited:
            holder.stdin.write("\n")
            holder.stdin.flush()
            assert holder.stdout.readline() == "shared\n"
        waited.append(seconds)

    monkeypatch.setattr(lock.time, "sleep", sleep)
    with lock.hold(tmp_path / "run", folds(1)) as alone:
        with alone():
            assert len(waited) == 1
        with alone():
            assert len(waited) == 1


def test_what_was_made_for_a_lock_is_removed_if_nothing_was_written(tmp_path):
    with pytest.raises(ZeroDivisionError), lock.hold(tmp_path / "a", folds(0)):
        raise ZeroDivisionError
    assert not (tmp_path / "a").exists()
    with lock.hold(tmp_path / "b", folds(0)):
        (tmp_path / "b" / "config.json").touch()
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == [lock.NAME, "config.json"]


def test_a_folder_and_a_lock_file_that_were_there_stay(tmp_path):
    for names in ([], ["letter.txt"], [lock.NAME]):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for name in names:
            (folder / name).write_bytes(b"of someone else")
        with lock.hold(folder, folds(0)):
            pass
        assert [path.name for path in folder.iterdir()] == names
        assert {path.read_bytes() for path in folder.iterdir()} <= {b"of someone else"}


def test_the_whole_folder_is_taken_only_where_no_other_process_is(holder, tmp_path):
    with lock.hold(tmp_path / "run", folds(1)) as held:
        assert not held.take_all()
    holder.kill()
    holder.wait()
    with lock.hold(tmp_path / "run", folds(1)) as held:
        assert held.take_all()
        command = [sys.executable, "-c", HOLDER, str(tmp_path / "run"), "2"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL)
        assert "another process at work on fold 2" in done.stderr


def test_a_place_where_nothing_can_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/run: cannot be written \(Not a directory\)"):
        lock.hold(tmp_path / "file" / "run", folds(0)).__enter__()


def test_buckets_have_no_locks():
    with lock.hold("gs://bucket/run", folds(0)) as alone, alone():
        pass
