"""The records of a run's calls: what they hold, how they outlive a call, and what the report shows."""

import dataclasses
import json
import platform
import shlex
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ROOT

from isles_jax import __version__
from isles_jax.pages import run_sections
from isles_jax.runtime.command import InputError
from isles_jax.scoring import calls, comparison

COMMAND = "isles-jax train --config.data.root=/patients/Doe/SPES --workdir=runs/<b>"


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass as the test says."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_each_second_of_a_call_counts_for_one_part(tmp_path, clock):
    clock[0] += 4
    call = calls.Call(tmp_path, 100.0)
    for _ in range(2):
        with call.part("training"):
            clock[0] += 10
            jax.monitoring.record_event_duration_secs(calls._COMPILED, 3.0)
            jax.monitoring.record_event_duration_secs("/other", 5.0)
    with call.part("scoring"):
        clock[0] += 2
    # Outside of the parts nobody listens.
    jax.monitoring.record_event_duration_secs(calls._COMPILED, 7.0)
    [record] = calls.read(tmp_path)
    assert record["seconds"] == {
        "preparing": 4.0, "compiling": 6.0, "training": 14.0, "prediction": 0.0, "scoring": 2.0, "report": 0.0,
    }  # fmt: skip
    assert (record["isles_jax"], record["jax"]) == (__version__, jax.__version__)
    assert (record["devices"], record["device"]) == (jax.device_count(), jax.devices()[0].device_kind)


def test_jax_says_how_long_it_compiles(tmp_path):
    call = calls.Call(tmp_path, time.monotonic())
    with call.part("training"):
        jax.jit(lambda x: jnp.sin(x) * 17.25)(jnp.arange(3.0))
    assert call._seconds["compiling"] > 0


def fail_after_five_seconds(error, clock):
    clock[0] += 5
    raise error("the reason")


def test_what_ends_a_call_is_said_and_its_seconds_are_kept(tmp_path, clock):
    for number, error in enumerate((KeyboardInterrupt, InputError), 1):
        call = calls.Call(tmp_path, clock[0])
        with pytest.raises(error, match="the reason"), call.part("training"):
            fail_after_five_seconds(error, clock)
        assert [record["seconds"]["training"] for record in calls.read(tmp_path)] == [5.0] * number
    call._path = tmp_path / "file" / "x.json"
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match="the reason"), call.part("training"):
        raise InputError("the reason")
    with pytest.raises(InputError, match="cannot be written"), call.part("training"):
        pass


def test_a_damaged_record_is_named_and_a_run_without_records_has_none(tmp_path):
    assert calls.read(tmp_path) == []
    calls.Call(tmp_path, 0.0)
    [path] = (tmp_path / "calls").iterdir()
    (tmp_path / "calls" / "mine.txt").write_text("not read")
    record = json.loads(path.read_text())
    del record["command"]
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match=rf"{path.name}: found no 'command' in its content, expected the file as it"):
        calls.read(tmp_path)


def test_a_command_is_written_as_it_is_typed():
    assert (
        calls._command(["/opt/bin/python", "-m", "isles_jax.main", "--x=a b"]) == "python -m isles_jax.main '--x=a b'"
    )
    assert calls._command(["/opt/bin/python3", "/opt/bin/isles-jax", "train"]) == "isles-jax train"
    assert calls._command(["python"]) == "python"


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ({"HEAD": f"{COMMIT}\n"}, COMMIT),
        ({"HEAD": "ref: refs/heads/main\n", "refs/heads/main": f"{COMMIT}\n"}, COMMIT),
        (
            {"HEAD": "ref: refs/heads/main\n", "packed-refs": f"# peeled\n{COMMIT} refs/heads/main\n"},
            COMMIT,
        ),
        ({"HEAD": "ref: refs/heads/main\n", "packed-refs": f"{COMMIT} refs/heads/other\n"}, ""),
        ({"HEAD": "ref: refs/heads/main\n"}, ""),
        ({}, ""),
    ],
)
def test_the_commit_of_a_checkout_is_read_without_git(stored, expected, tmp_path):
    for name, text in stored.items():
        path = tmp_path / ".git" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert calls.commit(tmp_path) == expected


def test_the_digest_of_the_program_changes_with_each_of_its_files(tmp_path):
    found = set()
    for name, text in (("a.py", "1"), ("b/c.py", "1"), ("a.py", "2"), ("notes.txt", "1")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        calls.source_digest.cache_clear()
        found.add(calls.source_digest(tmp_path))
    assert len(found) == 3


def test_a_call_records_what_its_numbers_depend_on(tmp_path):
    calls.Call(tmp_path, 0.0)
    [record] = calls.read(tmp_path)
    assert record["packages"]["numpy"] == np.__version__
    assert record["python"] == platform.python_version()
    assert record["source_sha256"] == calls.source_digest(ROOT / "isles_jax")
    assert record["commit"] == calls.commit(ROOT)


def section(finished_runs, **facts):
    record = {
        "command": COMMAND, "date": "2026-11-27 21:05 UTC", "isles_jax": "0.2.0", "jax": "0.10.2", "cores": 2,
        "processor": "A & B", "device": "cpu", "devices": 1, "processes": 1,
        "seconds": dict(zip(calls.PARTS, (1.0, 2.0, 3.25, 4.0, 5.0, 6.0), strict=True)),
    }  # fmt: skip
    runs = [finished_runs[0], dataclasses.replace(finished_runs[1], calls=[record, record | facts])]
    return run_sections.what_was_run(comparison.make_study(runs))


def test_the_report_says_what_was_run_without_the_folders_of_the_machine(finished_runs):
    text = section(finished_runs, device="H100", devices=4, processes=2, commit=COMMIT)
    # Each word of the command stays whole where a line ends.
    assert "<span>isles-jax</span> <span>train</span>" in text
    text = text.replace("<span>", "").replace("</span>", "")
    assert text.count("<li>") == 2
    command = "isles-jax train --config.data.root=.../SPES &#x27;--workdir=runs/&lt;b&gt;&#x27;"
    said = "2026-11-27 21:05 UTC, isles_jax 0.2.0, jax 0.10.2"
    assert f"<li>proposed, {said}, 2 cores of A &amp; B: <code>{command}</code></li>" in text
    assert "isles_jax 0.2.0 (0123456789ab), jax 0.10.2" in text
    assert "2 processes, 4 x H100, 2 cores of A &amp; B" in text
    assert "<td>3.2</td>" in text
    assert "<td>21.2</td>" in text
    assert "Doe" not in text


def test_the_report_of_an_earlier_versions_runs_has_no_such_section(finished_runs):
    assert run_sections.what_was_run(comparison.make_study(finished_runs)) == ""


def test_only_the_folders_above_the_last_part_of_a_path_are_left_out():
    for word, shown in (
        ("--x=/a b/c d", "'--x=.../c d'"), ("/a/b/", ".../b/"), ("--x=gs://bucket/c", "--x=.../c"), ("/", "/"),
        ("--workdir=runs/x", "--workdir=runs/x"), ("--coordinator=10.0.0.2:80", "--coordinator=10.0.0.2:80"),
    ):  # fmt: skip
        assert run_sections._without_folders(shlex.join(["isles-jax", word])) == f"isles-jax {shown}"
