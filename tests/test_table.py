import dataclasses

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
    rows = {line.split()[1]: line for line in lines_of(text, "proposed")[:3]}
    summary = scores.means(finished_runs[1].rows)["classes"]
    for name in ("penumbra", "core", "whole lesion"):
        dice = summary[name]["dice"]
        assert f"{dice['mean']:.3f} ± {dice['std']:.3f}  [" in rows[name.split()[0]]
    assert "paper" not in text
    beside = table.table([report_runs.on_the_papers_data(finished_runs[1])])
    rows = {line.split()[1]: line for line in lines_of(beside, "proposed")[:3]}
    assert [rows[name].split()[-1] for name in ("penumbra", "core", "whole")] == ["0.881", "0.877", "-"]
    assert "* Table 1 of the paper" in beside
    of_rule = comparison.dice_means({"x": finished_runs[1].rule}, "penumbra")["x"].mean
    assert lines_of(text, "clinical rule")[0].split()[3] == f"{of_rule:.3f}"
    assert "difference of Dice from clinical rule" in text
    assert "main effects" not in text


def test_what_a_run_ends_with_is_the_first_block_without_the_paper_of_other_data(finished_runs):
    run = report_runs.on_the_papers_data(finished_runs[1])
    text = table.table([run]).split("\n\n")
    short = table.dice_table(run).split("\n\n")
    assert short[0] == text[0]
    assert len(short) == 2
    assert "paper*" in text[1]
    assert "paper*" not in short[1]
    width = max(map(len, short[1].splitlines()))
    assert [line[:width].rstrip() for line in text[1].splitlines()] == short[1].splitlines()


def test_every_line_fits_80_columns(finished_runs):
    long = dataclasses.replace(finished_runs[0], name="a system with a name that is as long as half a line")
    for runs in (finished_runs[1:], finished_runs, [long, finished_runs[1]]):
        text = table.table(runs)
        assert max(map(len, text.splitlines())) <= 80
        for run in runs:
            assert len(lines_of(text, run.name)) >= 2 * 3


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
        line = next(line for line in lines_of(text, factor) if line.split()[-4] == "core")
        assert line.split()[-3] == f"{value:+.3f}"
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
        assert ("95% interval" in text) == ("95% bootstrap interval" in " ".join(text.split())) == shown
        assert not any(line.endswith(" ") for line in text.splitlines())


def test_command_writes_table_and_page(finished_workdirs, tmp_path, capsys):
    report.main([*map(str, finished_workdirs.values()), f"--output={tmp_path / 'set.html'}", "--reference=bl1"])
    assert "difference of Dice from bl1" in capsys.readouterr().out
    assert "Differences from bl1" in (tmp_path / "set.html").read_text()
