"""Table 1 and the ablation: their configurations, runs in parts, averages over seeds, and the page of results."""

import csv
import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from scipy import stats

from experiments import (
    ablation,
    best,
    critics,
    figures,
    first_weights,
    ideas,
    intervals,
    nnunet,
    peers,
    real_cases,
    results_page,
    rows,
    seeds,
    study,
    table1,
)
from isles_jax.config import flatten, resolve, to_dict
from isles_jax.cross_validation import cross_validate
from isles_jax.data import layouts
from isles_jax.phantoms.phantom import write_phantom
from isles_jax.runtime import overrides
from isles_jax.runtime.command import InputError
from isles_jax.scoring import comparison, run_files, scores, statistics

SMALL = {
    "data.phantom.cases": 4, "data.phantom.shape": (32, 32, 4), "model.width": 4, "discriminator.width": 4,
    "train.epochs": 1, "train.batch_size": 4, "folds": 2,
}  # fmt: skip
OVERRIDES = [f"--config.{key}={value}" for key, value in SMALL.items()]


def test_the_rows_are_the_files_in_configs():
    systems = table1.table_rows([])
    assert list(systems) == list(comparison.PAPER)
    for name, config in systems.items():
        assert flatten(config) == flatten(overrides.read(f"configs/{name}.py", []))


def test_overrides_reach_every_row():
    for configs in (table1.table_rows(OVERRIDES), ablation.ablation_rows(OVERRIDES), best.best_rows(OVERRIDES)):
        for config in configs.values():
            assert SMALL.items() <= flatten(config).items()


def test_the_way_to_best_leads_to_its_configuration():
    rows_of_best, rows_of_ideas = best.best_rows([]), ideas.idea_rows([])
    for name, config in (("bl6", rows_of_best["bl6"]), ("best", rows_of_ideas["best"])):
        assert flatten(config) == flatten(overrides.read(f"configs/{name}.py", []))
    assert flatten(rows_of_best["augmented"]) == flatten(rows_of_ideas["augmented"])
    choices = [flatten(config) for config in rows_of_best.values()]
    assert len({tuple(str(value) for value in choice.values()) for choice in choices}) == len(choices)


def test_each_idea_is_valid_and_changes_its_settings_alone():
    rows_of_ideas = ideas.idea_rows([])
    choices = {name: flatten(resolve(config)) for name, config in rows_of_ideas.items()}
    assert all(config.name == name for name, config in rows_of_ideas.items())
    plain = choices["augmented"]
    changed = {name: {key for key in choice if choice[key] != plain[key]} for name, choice in choices.items()}
    named = {name: {change.partition("=")[0][9:] for change in changes} for name, changes in ideas.IDEAS.items()}
    assert {name: keys - {"name"} for name, keys in changed.items()} == named


def test_each_choice_of_the_ablation_changes_one_key():
    choices = {name: flatten(config) for name, config in ablation.ablation_rows([]).items()}
    default = choices.pop("proposed")
    changed = [{key for key in default if choice[key] != default[key]} for choice in choices.values()]
    assert all(len(keys) == 2 and "name" in keys for keys in changed)
    assert len({tuple(str(value) for value in choice.values()) for choice in choices.values()}) == len(choices)


@pytest.mark.parametrize("wrong", [["--config.modl.width=3"], ["--config.model.width=wide"], ["nonsense"]])
def test_a_wrong_override_is_refused(wrong):
    with pytest.raises(InputError, match=r"modl|wide|nonsense"):
        table1.table_rows(wrong)


def test_a_wrong_row_or_fold_is_refused_before_anything_is_written(tmp_path):
    systems = table1.table_rows(OVERRIDES)
    with pytest.raises(InputError, match=r"--rows=bl9: expected some of bl1,.*proposed"):
        rows.run_rows(systems, tmp_path / "table", only=["bl9"])
    with pytest.raises(InputError, match=r"--config.fold: found 2, expected 0 to 1"):
        rows.run_rows(systems, tmp_path / "table", folds=[2])
    assert not (tmp_path / "table").exists()


@pytest.mark.parametrize(
    ("layout", "channels", "classes"),
    [("spes", ("Tmax", "TTP", "DWI"), ("penumbra", "core")), ("isles2022", ("DWI", "ADC"), ("lesion",))],
)
def test_all_rows_share_the_phantom_whose_layout_is_set(monkeypatch, tmp_path, layout, channels, classes):
    trained = {}
    monkeypatch.setattr(rows, "cross_validate", lambda config, run: trained.update({run.name: config.data.root}))
    systems = table1.table_rows([*OVERRIDES, f"--config.data.phantom.layout={layout}"])
    assert rows.run_rows(systems, epath.Path(tmp_path), only=["bl1", "proposed"]) is None
    assert trained == dict.fromkeys(("bl1", "proposed"), str(tmp_path / "phantom"))
    dataset = layouts.load(tmp_path / "phantom")
    assert (dataset.channels, dataset.classes, len(dataset.cases)) == (channels, classes, SMALL["data.phantom.cases"])


@pytest.mark.slow
def test_rows_run_in_parts_equal_the_main_command(tmp_path, capsys):
    table = tmp_path / "table"
    systems = {name: config for name, config in table1.table_rows(OVERRIDES).items() if name in ("bl1", "bl5")}
    assert rows.run_rows(systems, table, only=["bl1"], folds=[1]) is None
    assert sorted(path.name for path in (table / "seed_0").iterdir()) == ["bl1"]
    assert not (table / "seed_0" / "bl1" / "fold_0" / "checkpoints").exists()
    assert rows.run_rows(systems, table, only=["bl1"]) is None
    assert "not finished yet: bl5 of seed 0" in capsys.readouterr().out
    runs = rows.run_rows(systems, table)
    assert {name: [run.name for run in seeds] for name, seeds in runs.items()} == {"bl1": ["bl1"], "bl5": ["bl5"]}
    capsys.readouterr()
    assert rows.run_rows(systems, table)["bl1"][0].rows == runs["bl1"][0].rows
    assert capsys.readouterr().out == "", "nothing is trained again"

    study.finish(runs, table, "table1", "bl5")
    written = list(csv.DictReader((table / "table1.csv").read_text().splitlines()))
    assert [(row["row"], row["class"]) for row in written][:3] == [
        ("clinical rule", "penumbra"), ("bl1", "penumbra"), ("bl5", "penumbra")
    ]  # fmt: skip
    dice = [row["dice"] for row in runs["bl1"][0].rows if row["class"] == "core"]
    [line] = [row for row in written if (row["row"], row["class"]) == ("bl1", "core")]
    assert float(line["dice"]) == pytest.approx(np.mean(dice), abs=1e-6)
    assert "<html" in (table / "table1.html").read_text()

    cross_validate(systems["bl1"], tmp_path / "alone")
    alone = scores.read_cases_csv(tmp_path / "alone" / "cases.csv")
    assert alone == scores.read_cases_csv(table / "seed_0" / "bl1" / "cases.csv")

    one, other = (run_files.read_run(table / "seed_0" / name) for name in ("bl1", "bl5"))
    mean = rows.average([one, other])
    for row, first, second in zip(mean.rows, one.rows, other.rows, strict=True):
        assert (row["case"], row["class"]) == (first["case"], first["class"])
        assert row["dice"] == pytest.approx((first["dice"] + second["dice"]) / 2)


def test_the_pages_show_the_tables_of_the_results():
    texts = [path.read_text() for path in results_page.PAGES]
    shown = {name for text in texts for name in re.findall(r"<!-- (\w+\.csv) -->", text)}
    assert shown == {path.name for path in results_page.FOLDER.glob("*.csv")}
    assert [results_page.fill(text) for text in texts] == texts, "run python -m experiments.results_page"


def test_the_page_shows_the_figures_of_its_tables(tmp_path):
    for path in results_page.FOLDER.glob("*.csv"):
        shutil.copy(path, tmp_path)
    figures.draw(tmp_path)
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert drawn == {path.name for path in results_page.FOLDER.glob("*.png")}
    assert drawn == set(re.findall(r"\(results/(\w+\.png)\)", results_page.PAGE.read_text()))


COLUMNS = (
    "row,class,dice,low,high,difference,difference_low,difference_high,p_wilcoxon_holm,p_bootstrap_holm,paper_dice,"
    "seeds,seed_std,crossed_low,crossed_high,p_crossed_holm\n"
)


def test_a_table_of_results_in_markdown(tmp_path):
    (tmp_path / "one.csv").write_text(
        COLUMNS + "a,core,0.5,0.25,0.75,-0.125,-0.25,-0.0625,0.01,0.04,0.9,,,,,\n"
        "b,core,0.5,0.25,0.75,0.125,-0.25,0.25,0.01,0.06,,,,,,\n"
        "proposed,core,0.625,0.5,0.75,,,,,,0.8,,,,,\n"
    )
    assert results_page.fill("# Page\n<!-- one.csv -->\nold\n<!-- end -->\nprose\n", tmp_path) == (
        "# Page\n<!-- one.csv -->\n"
        "| | core | minus proposed: core |\n|---|---|---|\n"
        "| a | 0.500 [0.250, 0.750] | -0.125 [-0.250, -0.062]* |\n"
        "| b | 0.500 [0.250, 0.750] | +0.125 [-0.250, +0.250] |\n"
        "| proposed | 0.625 [0.500, 0.750] | - |\n"
        "<!-- end -->\nprose\n"
    )


def test_simulated_intervals_are_those_of_the_package(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", intervals.RESAMPLES)
    values = np.random.default_rng(3).beta(2, 2, (4, 8))
    values[0, :6] = 0
    found = intervals.ends(values, np.random.default_rng(statistics.SEED))
    for cases, low, high in zip(values, *found[intervals.CHOSEN], strict=True):
        assert (low, high) == pytest.approx(statistics.interval(cases))
    draw = np.random.default_rng(1)
    half = found["Student's t"][1] - values.mean(axis=1)
    expected = stats.t.interval(0.95, 7, 0, stats.sem(values, axis=1))[1]
    np.testing.assert_allclose(half, np.minimum(expected, values.max(axis=1) - values.mean(axis=1)))
    theirs = stats.bootstrap((values[1],), np.mean, method="BCa", n_resamples=20000, rng=draw).confidence_interval
    assert (found["BCa bootstrap"][0][1], found["BCa bootstrap"][1][1]) == pytest.approx(tuple(theirs), abs=0.02)


@pytest.mark.parametrize("name", intervals.DISTRIBUTIONS)
def test_simulated_cases_have_the_mean_that_is_to_be_covered(name):
    draw, mean = intervals.DISTRIBUTIONS[name]
    values = draw(np.random.default_rng(2), (1, 200_000))
    assert values.mean() == pytest.approx(mean, abs=4 * values.std() / 200_000**0.5)


def test_a_table_without_intervals_shows_the_means(tmp_path):
    cases = np.array([0.25, 0.5, 0.75])
    runs = {name: [a_run(name, 0, cases + gain)] for name, gain in (("bl1", 0.0), ("bl2", 0.125))}
    study.write_table(tmp_path / "few.csv", runs, "bl1")
    lines = list(csv.DictReader((tmp_path / "few.csv").read_text().splitlines()))
    assert [(line["low"], line["high"], line["difference_low"]) for line in lines] == [("", "", "")] * 2
    assert results_page.rows_table(tmp_path / "few.csv").splitlines()[2:] == [
        "| bl1 | 0.500 | - |", "| bl2 | 0.625 | +0.125 |"
    ]  # fmt: skip


def test_a_table_with_seeds_shows_their_spread(tmp_path):
    (tmp_path / "one.csv").write_text(
        COLUMNS + "a,core,0.5,0.25,0.75,-0.125,-0.25,-0.0625,0.01,0.04,,3,0.01,-0.5,-0.03,0.04\n"
        "b,core,0.5,0.25,0.75,0.125,-0.25,0.25,0.01,0.04,,3,0.02,-0.5,0.5,0.06\n"
        "bl6,core,0.625,0.5,0.75,,,,,,,3,0.03,,,\n"
    )
    assert results_page.rows_table(tmp_path / "one.csv") == (
        "| | core | minus bl6: core |\n|---|---|---|\n"
        "| a | 0.500 [0.250, 0.750] | -0.125 [-0.500, -0.030]* ± 0.010 |\n"
        "| b | 0.500 [0.250, 0.750] | +0.125 [-0.500, +0.500] ± 0.020 |\n"
        "| bl6 | 0.625 [0.500, 0.750] | (± 0.030 by seed) |"
    )


def a_run(name, seed, dice):
    """A finished run of a system, with a Dice for each case."""
    rows = [{"case": f"p{i:02}", "fold": 0, "class": "core", **dict.fromkeys(scores.NAMES, 0.5), "dice": float(value)}
            for i, value in enumerate(dice)]  # fmt: skip
    data = {"phantom": True, "classes": ["core"], "channels": ["DWI"], "cases": {row["case"]: {} for row in rows}}
    config = table1.table_rows([])[name]
    return run_files.Run(Path(f"seed_{seed}") / name, name, config, data, [list(data["cases"])], rows, [], [])


def test_a_finished_row_with_other_settings_is_refused(tmp_path):
    # Two studies in one workdir may have rows of one name.
    run = tmp_path / "seed_1" / "batch norm all"
    run.mkdir(parents=True)
    systems = {"batch norm all": best.best_rows(["--config.data.root=/nowhere"])["batch norm all"]}
    other = resolve(systems["batch norm all"])
    other.seed += 1
    other.loss.adversarial = 1e-3
    (run / "config.json").write_text(json.dumps(to_dict(other)))
    (run / "DONE").touch()
    with pytest.raises(InputError, match=r"batch norm all holds another run: loss.adversarial is 0.001 there and 0.0"):
        rows.run_rows(systems, tmp_path, seeds=2)


def test_the_critics_of_a_row_over_its_training(tmp_path):
    runs = {}
    for name, critics_there in (("bl1", False), ("proposed", True)):
        fold = [{"step": step, "loss": 1.0} for step in range(10, 330, 10)]
        for line in fold if critics_there else ():
            line |= {"critic_accuracy/core": line["step"] / 320, "critic_accuracy/penumbra": 0.5}
            line |= {"critic_gradient": 0.01 if line["step"] <= 160 else 0.03}
        runs[name] = [dataclasses.replace(a_run(name, seed, [0.5]), curves=[fold, fold]) for seed in range(2)]
    critics.write(tmp_path / "critics.csv", runs)
    lines = list(csv.DictReader((tmp_path / "critics.csv").read_text().splitlines()))
    assert [(line["row"], line["until_step"]) for line in lines] == [("proposed", str(40 * i)) for i in range(1, 9)]
    # The first part holds the steps 10 to 40.
    assert float(lines[0]["accuracy"]) == pytest.approx((25 / 320 + 0.5) / 2, abs=1e-4)
    assert [float(line["gradient"]) for line in lines] == [0.01] * 4 + [0.03] * 4
    assert results_page.critics_table(tmp_path / "critics.csv").splitlines()[2].startswith("| proposed | 29% (1.0%) |")


def test_several_seeds_give_a_table_and_effects_with_their_spread(tmp_path):
    rng = np.random.default_rng(0)
    cases = rng.uniform(0.3, 0.7, 12)
    runs = {}
    for name in comparison.PAPER:
        residual, adversarial, overlap = comparison.factors_of(a_run(name, 0, cases))
        gain = 0.1 * residual + 0.02 * overlap - 0.05 * adversarial
        # A seed moves all systems alike, but for residual connections, whose effect it changes by 0.03.
        runs[name] = [a_run(name, seed, cases + gain + 0.01 * seed + 0.03 * residual * (seed - 1)) for seed in range(3)]
    study.write_table(tmp_path / "table.csv", runs, "bl1")
    lines = {line["row"]: line for line in csv.DictReader((tmp_path / "table.csv").read_text().splitlines())}
    assert float(lines["bl1"]["seed_std"]) == pytest.approx(0.01)
    assert float(lines["bl2"]["seed_std"]) == pytest.approx(0, abs=1e-6)
    assert float(lines["bl5"]["seed_std"]) == pytest.approx(0.03)
    half = stats.t.ppf(0.975, 2) * 0.03 / 3**0.5
    assert float(lines["bl5"]["crossed_high"]) == pytest.approx(0.1 + half, abs=1e-5)
    assert {line["seeds"] for line in lines.values()} == {"3"}
    study.write_effects(tmp_path / "effects.csv", runs)
    effects = {line["factor"]: line for line in csv.DictReader((tmp_path / "effects.csv").read_text().splitlines())}
    for factor, effect, spread in (("residual", 0.1, 0.03), ("overlap", 0.02, 0), ("adversarial", -0.05, 0)):
        assert float(effects[factor]["effect"]) == pytest.approx(effect)
        assert float(effects[factor]["seed_std"]) == pytest.approx(spread, abs=1e-6)


def test_an_interval_without_one_of_the_two_spreads_is_student_s():
    rng = np.random.default_rng(1)
    cases, of_seed = 0.05 * rng.normal(size=20), 0.05 * rng.normal(size=3)
    for values, alone in ((np.tile(cases, (3, 1)), cases), (np.tile(of_seed[:, None], (1, 20)), of_seed)):
        found, test = seeds.crossed(values), stats.ttest_1samp(alone, 0)
        assert found.p == pytest.approx(test.pvalue)
        assert found.interval == pytest.approx(tuple(test.confidence_interval(0.95)))
    # A difference of Dice is at least -1 and at most 1, and five cases are too few.
    low, high = seeds.crossed(np.tile([[0.9], [0.1]], (1, 6))).interval
    assert (low, high) == (-1, 1)
    assert seeds.crossed(rng.normal(0, 0.1, (3, 5))).interval is None


def test_an_interval_over_seeds_and_cases_covers_the_truth():
    rng, hits = np.random.default_rng(2), 0
    for _ in range(1000):
        values = 0.5 * rng.normal(size=(3, 1)) + rng.normal(size=20) + rng.normal(size=(3, 20))
        values *= 0.05
        found = seeds.crossed(values)
        hits += found.interval[0] < 0 < found.interval[1]
    # Satterthwaite's degrees of freedom are an approximation, on the wide side for so few seeds.
    assert 930 < hits < 995


def test_nnunet_gets_our_folds():
    assert nnunet.splits([["b", "a"], ["d"], ["c"]]) == [
        {"train": ["c", "d"], "val": ["a", "b"]}, {"train": ["a", "b", "c"], "val": ["d"]},
        {"train": ["a", "b", "d"], "val": ["c"]},
    ]  # fmt: skip


@pytest.mark.parametrize(("module", "name"), [(nnunet, "nnunetv2"), (peers, "torch"), (first_weights, "torch")])
def test_a_missing_tool_is_named_with_the_extra_that_has_it(monkeypatch, tmp_path, module, name):
    def missing(name):
        raise peers.PackageNotFoundError(name)

    monkeypatch.setattr(peers, "version", missing)
    with pytest.raises(InputError, match=rf"found no {name}, expected the extra `peers`"):
        module.main([f"--workdir={tmp_path}"])


def test_the_rows_of_the_real_cases_are_the_files_in_configs():
    rows_of = real_cases.real_rows([])
    for name in ("bl1", "bl6", "proposed", "best"):
        theirs, ours = flatten(overrides.read(f"configs/{name}.py", [])), flatten(rows_of[name])
        changed = {key for key in theirs if theirs[key] != ours[key]}
        assert changed == {"folds", "model.width", "discriminator.width", "train.epochs"}


def test_the_table_of_the_real_cases_has_every_case(tmp_path, finished_runs):
    path = epath.Path(tmp_path) / "real_cases.csv"
    real_cases.write(path, {"proposed": [finished_runs[1]] * 2})
    lines = results_page.read(Path(path))
    assert len(lines) == 2 * len(finished_runs[1].rows)
    assert [line["seed"] for line in lines] == ["0"] * len(finished_runs[1].rows) + ["1"] * len(finished_runs[1].rows)
    text = (
        "row,seed,case,dice,lesion_f1,volume_pred_ml,volume_true_ml\n"
        "bl1,0,sub-strokecase0003_ses-0001,0.25,0.5,10,31\nbl1,1,sub-strokecase0003_ses-0001,0.75,0.25,20,31\n"
    )
    path.write_text(text)
    assert results_page.real_cases_table(Path(path)).splitlines() == [
        "| | 0003, 31 ml |",
        "|---|---|",
        "| bl1 | 0.50, 0.38, 15 ml |",
    ]


@pytest.mark.slow
def test_real_cases_alone_after_and_beside_a_phantom(tmp_path, monkeypatch, capsys):
    tiny = ["--config.model.width=4", "--config.discriminator.width=4", "--config.train.batch_size=4"]
    tiny += ["--config.train.epochs=1", "--config.data.phantom.shape=(32,32,6)"]
    monkeypatch.setattr(real_cases, "SYSTEMS", {"bl6": real_cases.NOT_ADVERSARIAL})
    phantom = [option for option in real_cases.PHANTOM if "phantom.shape" not in option]
    few = ["--config.data.phantom.cases=6", "--config.seed=1"]
    monkeypatch.setattr(real_cases, "PHANTOM", [*phantom, *tiny, *few])
    monkeypatch.setattr(real_cases, "BESIDE_EPOCHS", "--config.train.epochs=1")
    # A phantom under other names stands for the patients.
    write_phantom(tmp_path / "patients", cases=4, shape=(32, 32, 6), seed=0, difficulty=1.0, layout="isles2022")
    (tmp_path / "patients" / "phantom.json").unlink()
    for path in sorted((tmp_path / "patients").rglob("*phantom*"), key=lambda path: -len(path.parts)):
        path.rename(path.with_name(path.name.replace("phantom", "strokecase")))
    workdir = tmp_path / "runs"
    arguments = [f"--workdir={workdir}", f"--config.data.root={tmp_path / 'patients'}", *tiny]
    real_cases.main(arguments)
    first = (workdir / "real_cases.csv").read_bytes()
    lines = results_page.read(workdir / "real_cases.csv")
    names = ["bl6", *(f"bl6 {how} the phantom" for how in ("on", "after", "beside"))]
    names[1] += " alone"
    assert list(dict.fromkeys(line["row"] for line in lines)) == names
    for name in names:
        assert [line["case"] for line in lines if line["row"] == name] == [
            f"sub-strokecase{number:04d}_ses-0001" for number in range(1, 5)
        ]
    folds = json.loads((workdir / "both" / "folds.json").read_text())
    assert sorted(sum("phantom" in name for name in fold) for fold in folds) == [1, 1, 1, 3]
    assert sorted(sum("strokecase" in name for name in fold) for fold in folds) == [1, 1, 1, 1]
    # Called again, it only makes the table anew.
    real_cases.main(arguments)
    assert (workdir / "real_cases.csv").read_bytes() == first
