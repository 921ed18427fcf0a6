import dataclasses
import re

import numpy as np
import pytest
import report_runs

from isles_jax import report
from isles_jax.pages import page, score_sections
from isles_jax.runtime.command import InputError
from isles_jax.scoring import comparison, run_files, scores, table

pytestmark = pytest.mark.usefixtures("few_resamples")


def lines_of(text, start):
    return [line for line in text.splitlines() if line.startswith(start)]


def test_table_of_one_run(finished_runs):
    text = table.table(finished_runs[1:])
    assert "6 cases, 3 folds; data: the built-in phantom" in text
    row = lines_of(text, "proposed")[0]
    summary = scores.means(finished_runs[1].rows)["classes"]
    for name in ("penumbra", "core", "whole lesion"):
        dice = summary[name]["dice"]
        assert f"{dice['mean']:.3f} ± {dice['std']:.3f} [" in row
    assert re.search(r"\]\s+0\.881 .*\]\s+0\.877 ", row)
    assert "another set" in text
    assert (
        lines_of(text, "clinical rule")[0].split()[2]
        == f"{comparison.dice_means({'x': finished_runs[1].rule}, 'penumbra')['x'].mean:.3f}"
    )
    assert "difference of Dice from clinical rule" in text
    assert "main effects" not in text
    assert max(map(len, text.splitlines())) < 130


def test_table_of_several_runs_compares_with_a_chosen_row(finished_runs):
    assert "difference of Dice from proposed" in table.table(finished_runs)
    text = table.table(finished_runs, "bl1")
    assert "difference of Dice from bl1" in text
    change = np.mean(comparison.dice_of(finished_runs[1].rows, "core")) - np.mean(
        comparison.dice_of(finished_runs[0].rows, "core")
    )
    # The last lines on a system are its comparison: penumbra, core, lesion.
    assert lines_of(text, "proposed")[-2].split()[2] == f"{change:+.3f}"
    with pytest.raises(InputError, match="no row called 'bl9'"):
        table.table(finished_runs, "bl9")


def test_eight_cells_give_main_effects(
    finished_runs, finished_workdirs, report_dataset, report_folds, phantom_root, tmp_path
):
    cells = [(bool(n & 4), bool(n & 2), bool(n & 1)) for n in range(8)]
    eight = [
        run_files.read_run(report_runs.make_run(tmp_path / str(n), report_dataset, report_folds, cell, n, phantom_root))
        for n, cell in enumerate(cells)
    ]
    assert [run.name for run in eight] == list(comparison.PAPER)
    text = table.table(eight)
    effects = comparison.design_effects(comparison.make_study(eight))["core"]
    for factor, (value, _) in effects.items():
        assert f"core {value:+.3f} [" in lines_of(text, factor)[0]
    page.write_report(tmp_path / "page.html", eight)
    assert "Main effects" in (tmp_path / "page.html").read_text()
    assert comparison.design_effects(comparison.make_study(eight[:7])) == {}


def test_fewer_than_six_cases_have_no_interval_in_the_table_and_on_the_page(finished_runs):
    few = []
    for run in finished_runs:
        kept = [names[:1] for names in run.folds]
        names = {name for fold in kept for name in fold}
        rows, rule = ([row for row in rows if row["case"] in names] for rows in (run.rows, run.rule))
        facts = run.data | {"cases": {name: run.data["cases"][name] for name in names}}
        few.append(dataclasses.replace(run, folds=kept, rows=rows, rule=rule, data=facts))
    for runs, shown in ((finished_runs, True), (few, False)):
        study = comparison.make_study(runs)
        text = table.table(runs)
        html = score_sections.dice(study) + score_sections.differences(study)
        assert ("[0." in text) == ('class="interval"' in html) == ("95% interval 0." in html) == shown
        assert ("Fewer than 6 cases have no intervals" in " ".join(text.split())) != shown
        assert not any(line.endswith(" ") for line in text.splitlines())


def test_command_writes_table_and_page(finished_workdirs, tmp_path, capsys):
    report.main([*map(str, finished_workdirs.values()), f"--output={tmp_path / 'set.html'}", "--reference=bl1"])
    assert "difference of Dice from bl1" in capsys.readouterr().out
    assert "Differences from bl1" in (tmp_path / "set.html").read_text()
