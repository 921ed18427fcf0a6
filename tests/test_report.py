import base64
import dataclasses
import html.parser
import json
import re
import struct
import zlib

import browser
import nibabel as nib
import numpy as np
import pytest

from isles_jax import clinical, config, report
from isles_jax.data import check, folds, layouts
from isles_jax.data.case import radiological
from isles_jax.data.nifti import write_labels
from isles_jax.reporting import case_sections, charts, page, pictures, results, scores, statistics, table
from isles_jax.runtime import files
from isles_jax.runtime.command import InputError

CELLS = {"bl1": (False, False, False), "proposed": (True, True, True)}


def make_run(workdir, dataset, split, cell, seed, root):
    """A finished workdir without a training: the truth, moved a little, is the prediction."""
    made = config.baseline(**dict(zip(("residual", "adversarial", "overlap"), cell, strict=True)))
    made.data.root = str(root)
    files.write_json(workdir / "config.json", config.to_dict(config.resolve(made)))
    files.write_json(workdir / "folds.json", split)
    files.write_json(workdir / "data.json", check.describe(dataset))
    cases, rows, rule = {case.name: case for case in dataset.cases}, [], []
    for fold, names in enumerate(split):
        (workdir / f"fold_{fold}" / "predictions").mkdir(parents=True)
        lines = [
            {"step": 10 * n, "loss": 1 / n + 0.1 * fold, "critic/core": None if n == 2 else 0.5} for n in range(1, 9)
        ]
        (workdir / f"fold_{fold}" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        for number, name in enumerate(names):
            case = cases[name]
            prediction = np.roll(case.labels, (seed + number) % 3, 1)
            write_labels(
                workdir / f"fold_{fold}" / "predictions" / f"{name}.nii.gz", prediction, case, dataset.label_values
            )
            rows += scores.score_case(name, fold, prediction, case.labels, case.spacing_mm, dataset.classes)
            by_rule = clinical.clinical_rule(case, 1.5)
            rule += scores.score_case(name, fold, by_rule, case.labels, case.spacing_mm, dataset.classes)
    scores.write_cases_csv(workdir / "cases.csv", rows)
    scores.write_cases_csv(workdir / "clinical_rule.csv", rule)
    return workdir


@pytest.fixture(scope="module", autouse=True)
def few_resamples():
    """Intervals are tested elsewhere; here they need not be fine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "RESAMPLES", 300)
        yield


@pytest.fixture(scope="module")
def dataset(phantom_root):
    return layouts.load(phantom_root, penumbra=1, core=2)


@pytest.fixture(scope="module")
def split(dataset):
    return folds.make_folds([case.name for case in dataset.cases], 3, 0)


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory, phantom_root, dataset, split):
    base = tmp_path_factory.mktemp("runs")
    return {
        name: make_run(base / name, dataset, split, cell, seed, phantom_root)
        for seed, (name, cell) in enumerate(CELLS.items(), 1)
    }


@pytest.fixture(scope="module")
def runs(workdirs):
    return [results.read_run(workdir) for workdir in workdirs.values()]


@pytest.fixture(scope="module")
def written(tmp_path_factory, runs):
    path = tmp_path_factory.mktemp("page") / "report.html"
    page.write_report(path, runs)
    return path


def lines_of(text, start):
    return [line for line in text.splitlines() if line.startswith(start)]


# --- reading and the table -------------------------------------------------------------------------------------------


def test_read_run(workdirs, runs, split):
    run = runs[1]
    assert (run.name, run.folds) == ("proposed", split)
    assert run.rows == sorted(scores.read_cases_csv(workdirs["proposed"] / "cases.csv"), key=lambda row: row["case"])
    assert [line["step"] for line in run.curves[2]] == list(range(10, 90, 10))
    assert [results.factors_of(run) for run in runs] == list(CELLS.values())


def test_read_run_names_what_is_missing(workdirs, tmp_path):
    with pytest.raises(InputError, match=r"config\.json: found no readable file"):
        results.read_run(tmp_path)
    for name in ("config.json", "data.json", "folds.json"):
        (tmp_path / name).write_bytes((workdirs["bl1"] / name).read_bytes())
    with pytest.raises(InputError, match=r"cases\.csv"):
        results.read_run(tmp_path)
    (tmp_path / "data.json").write_text("{")
    with pytest.raises(InputError, match=r"data\.json: found no JSON"):
        results.read_run(tmp_path)


def test_table_of_one_run(runs):
    text = table.table(runs[1:])
    assert "6 cases, 3 folds; data: the built-in phantom" in text
    row = lines_of(text, "proposed")[0]
    summary = scores.summarise(runs[1].rows)["classes"]
    for word in ("penumbra", "core", "whole lesion"):
        assert f"{summary[word]['dice']['mean']:.3f} ± {summary[word]['dice']['std']:.3f} [" in row
    assert re.search(r"\]\s+0\.881 .*\]\s+0\.877 ", row)
    assert "another set" in text
    assert (
        lines_of(text, "clinical rule")[0].split()[2]
        == f"{results.dice_means({'x': runs[1].rule}, 'penumbra')['x'].mean:.3f}"
    )
    assert "difference of Dice from clinical rule" in text
    assert "main effects" not in text
    assert max(map(len, text.splitlines())) < 130


def test_table_of_several_runs_compares_with_a_chosen_row(runs):
    assert "difference of Dice from proposed" in table.table(runs)
    text = table.table(runs, "bl1")
    assert "difference of Dice from bl1" in text
    change = np.mean(results.dice_of(runs[1].rows, "core")) - np.mean(results.dice_of(runs[0].rows, "core"))
    # The last lines on a system are its comparison: penumbra, core, lesion.
    assert lines_of(text, "proposed")[-2].split()[2] == f"{change:+.3f}"
    with pytest.raises(InputError, match="no row called 'bl9'"):
        table.table(runs, "bl9")


def test_eight_cells_give_main_effects(runs, workdirs, dataset, split, phantom_root, tmp_path):
    cells = [(bool(n & 4), bool(n & 2), bool(n & 1)) for n in range(8)]
    eight = [
        results.read_run(make_run(tmp_path / str(n), dataset, split, cell, n, phantom_root))
        for n, cell in enumerate(cells)
    ]
    assert [run.name for run in eight] == list(results.PAPER)
    text = table.table(eight)
    effects = results.design_effects(eight, "core")
    for factor, (value, _, _) in effects.items():
        assert f"core {value:+.3f} [" in lines_of(text, factor)[0]
    page.write_report(tmp_path / "page.html", eight)
    assert "Main effects" in (tmp_path / "page.html").read_text()
    assert results.design_effects(eight[:7], "core") is None


def test_runs_on_other_data_are_refused(runs, workdirs, tmp_path):
    for name in ("config.json", "folds.json", "cases.csv"):
        (tmp_path / name).write_bytes((workdirs["bl1"] / name).read_bytes())
    other = json.loads((workdirs["bl1"] / "data.json").read_text())
    other["cases"].popitem()
    files.write_json(tmp_path / "data.json", other)
    with pytest.raises(InputError, match="expected runs on the same data"):
        table.table([runs[0], results.read_run(tmp_path)])
    with pytest.raises(InputError, match="found no run"):
        table.table([])


def test_two_runs_of_one_name_are_told_apart(runs):
    labels = list(results.systems([runs[0], runs[0]]))
    assert labels[0] == results.RULE
    assert all(str(runs[0].workdir) in label for label in labels[1:])


def test_paper_is_table_1():
    assert [entry["penumbra"] for entry in results.PAPER.values()] == [
        0.835,
        0.838,
        0.803,
        0.841,
        0.845,
        0.844,
        0.852,
        0.881,
    ]
    assert [entry["core"] for entry in results.PAPER.values()] == [
        0.792,
        0.802,
        0.730,
        0.813,
        0.867,
        0.874,
        0.865,
        0.877,
    ]


def test_command_writes_table_and_page(workdirs, tmp_path, capsys):
    report.main([*map(str, workdirs.values()), f"--output={tmp_path / 'set.html'}", "--reference=bl1"])
    assert "difference of Dice from bl1" in capsys.readouterr().out
    assert "Differences from bl1" in (tmp_path / "set.html").read_text()


# --- pictures --------------------------------------------------------------------------------------------------------


def decode(content):
    """A gray PNG's pixels, by the format's own rules."""
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(content):
        (size,) = struct.unpack(">I", content[at : at + 4])
        kind, body = content[at + 4 : at + 8], content[at + 8 : at + 8 + size]
        assert struct.unpack(">I", content[at + 8 + size : at + 12 + size])[0] == zlib.crc32(kind + body)
        chunks[kind], at = body, at + 12 + size
    width, height, depth, colour = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    assert (depth, colour) == (8, 0)
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert not rows[:, 0].any()
    return rows[:, 1:]


def test_png_holds_the_pixels():
    gray = np.random.default_rng(0).integers(0, 256, (5, 9)).astype(np.uint8)
    assert np.array_equal(decode(pictures.png(gray)), gray)
    assert np.array_equal(decode(base64.b64decode(pictures.data_uri(gray).split(",")[1])), gray)


def fill(path, shape):
    """The pixels inside closed paths of h and v lines, by the even-odd rule along each row."""
    crossings = np.zeros((shape[0], shape[1] + 1), int)
    for loop in filter(None, path.split("z")):
        start, *moves = re.findall(r"M\d+ \d+|[hv]-?\d+", loop)
        x, y = map(int, start[1:].split())
        first = (x, y)
        for move in moves:
            length = int(move[1:])
            if move[0] == "h":
                x += length
            else:
                for row in range(min(y, y + length), max(y, y + length)):
                    crossings[row, x] += 1
                y += length
        assert (x, y) == first
    return crossings.cumsum(axis=1)[:, :-1] % 2 == 1


@pytest.mark.parametrize("seed", range(20))
def test_outline_encloses_exactly_the_mask(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random(rng.integers(1, 12, 2)) < rng.uniform(0.1, 0.95)
    assert np.array_equal(fill(pictures.outline(mask), mask.shape), mask)


def test_outline_of_a_square_is_one_loop():
    mask = np.zeros((5, 6), bool)
    mask[1:4, 2:5] = True
    path = pictures.outline(mask)
    assert path.count("M") == path.count("z") == 1
    assert len(re.findall("[hv]", path)) <= 5
    assert pictures.outline(np.zeros((3, 3), bool)) == ""


def test_picture_shows_the_case(dataset, runs):
    made = pictures.make(dataset, {"bl1": runs[0]}, [])
    assert [picture.name for picture in made] == [case.name for case in dataset.cases]
    picture, case = made[0], dataset.cases[0]
    assert (picture.truth == 1).sum() == (case.labels == 1).sum()
    assert (picture.results["bl1"] == 2).sum() == (case.labels == 2).sum()
    assert picture.gray.shape[1:] == picture.truth.shape == (len(picture.slices), *picture.truth.shape[1:])
    at = pictures.telling_slice(picture)
    share = [(case.labels[..., z] == 1).sum() / (case.labels == 1).sum() + (case.labels[..., z] == 2).sum()
             / max(1, (case.labels == 2).sum()) for z in range(case.labels.shape[2])]  # fmt: skip
    assert picture.slices[at] == int(np.argmax(share))


def test_display_is_radiological_however_the_volume_is_stored(dataset, runs, tmp_path):
    """Storing a volume the other way round must not change what is seen."""
    case = dataset.cases[0]
    codes = nib.aff2axcodes(case.affine)
    seen = []
    for flip_x in (False, True):
        for flip_y in (False, True):
            index = (slice(None, None, -1 if flip_x else 1), slice(None, None, -1 if flip_y else 1))
            affine = case.affine @ np.diag([-1 if flip_x else 1, -1 if flip_y else 1, 1, 1])
            steps, sides = radiological(affine)
            assert sides == "RLAP"
            seen.append(case.labels[index][:: steps[0], :: steps[1]])
            assert nib.aff2axcodes(affine)[0] != codes[0] or not flip_x
    for other in seen[1:]:
        assert np.array_equal(other, seen[0])
    # The first column is the patient's right, the first row the front.
    assert radiological(np.diag([2.0, 2, 2, 1]))[0] == (-1, -1)
    assert radiological(np.diag([-2.0, -2, 2, 1]))[0] == (1, 1)
    assert radiological(np.eye(4)[[2, 1, 0, 3]]) == ((1, 1), "")


def test_large_sets_show_the_lesion_and_as_many_cases_as_fit(dataset, runs, monkeypatch):
    monkeypatch.setattr(pictures, "ALL_SLICES_VOXELS", 1)
    monkeypatch.setattr(pictures, "PAGE_SIZE", 25_000)
    wanted = dataset.cases[4].name
    made = pictures.make(dataset, {"bl1": runs[0]}, [wanted])
    assert wanted in [picture.name for picture in made]
    assert len(made) < len(dataset.cases)
    for picture in made:
        case = next(case for case in dataset.cases if case.name == picture.name)
        assert picture.truth.astype(bool).sum() == (case.labels > 0).sum()
    text = case_sections.viewer(made, runs, "bl1")
    assert f"{len(made)} of 6 cases" in text


def test_ticks_are_round_and_inside():
    assert charts.ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    rng = np.random.default_rng(1)
    for _ in range(200):
        low = rng.normal() * 10 ** rng.uniform(-3, 3)
        high = low + 10 ** rng.uniform(-3, 3)
        found = charts.ticks(low, high)
        assert 2 <= len(found) <= 6
        assert low - 1e-6 * (high - low) <= min(found)
        assert max(found) <= high + 1e-6 * (high - low)
        assert np.ptp(np.diff(found)) < 1e-9 * max(1, abs(high))


def test_charts_of_degenerate_values():
    assert charts.curves("x", {"fold 0": ([], [])}) == ""
    for drawn in (
        charts.curves("x", {"fold 0": ([1, 2], [0.5, 0.5]), "fold 1": ([1], [None])}),
        charts.bland_altman("x", [("a", 0.0, 0.0)]),
        charts.bland_altman("x", [("a", 1.0, 2.0), ("b", 1.0, 2.0)]),
        charts.bland_altman("x", [("a", 1e3, 2e3), ("b", 1.0, -2e3)]),
        charts.strip({"a": [("c", 1.0)]}, {"a": (1.0, 0.0, 1.0)}, {"a": None}, "x"),
    ):
        assert "nan" not in drawn
        assert "inf" not in drawn
        assert "e+0" not in drawn


# --- the page --------------------------------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """Tags, attributes and whether every element that is opened is closed."""

    def __init__(self, text):
        super().__init__()
        self.stack, self.attributes, self.tags, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in ("meta", "link", "input", "br", "img"):
            self.stack.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, text):
        self.text += text


def test_page_is_well_formed_and_names_no_address(written):
    text = written.read_text()
    parsed = Page(text)
    for name, value in parsed.attributes:
        if name in ("src", "href", "xlink:href", "action", "poster", "data"):
            assert value.startswith("data:"), value
        assert not name.startswith("on")
    assert not re.search(
        r"(?i)https?:|//[a-z]|@import|url\(", re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]*", "", text)
    )
    assert {"img", "iframe", "object", "embed"}.isdisjoint(parsed.tags)


def test_page_shows_what_it_promises(written, runs):
    text = Page(written.read_text()).text
    for words in ("Dice", "clinical rule", "0.881", "other data", "digital phantom", "Differences from proposed",
                  "Best: case", "Worst: case", "Bland-Altman", "Learning curves", "Where the runs differ",
                  "optimizer.learning_rate", "6 cases, 3-fold"):  # fmt: skip
        assert words in text, words
    for run in runs:
        for row in run.rows:
            assert f"{row['dice']:.3f}" in text
    assert written.stat().st_size < 3e6


def test_versions_stand_beside_the_settings(runs):
    text = page._settings(runs, [{"jax": "0.10.2", "flax": "0.12.8"}, {"jax": "0.11.2", "flax": "0.12.8"}])
    differing, every = text.split("Every key")
    assert "Trained with flax 0.12.8; this page" in every
    assert "version of jax" in differing
    assert "0.10.2" in differing
    assert "version of flax" not in differing
    assert "This page was made by" in page._settings(runs, [{}, {}])


def test_a_name_from_outside_cannot_become_markup(runs, dataset, tmp_path):
    evil = '</script><script>alert(1)</script><b onclick="x">&\''
    old = dataset.cases[0].name

    def renamed(rows):
        return [{**row, "case": evil if row["case"] == old else row["case"]} for row in rows]

    run = runs[0]
    changed = results.Run(run.workdir, evil, {**run.config, "note": evil}, run.data, run.folds, renamed(run.rows),
                          renamed(run.rule), run.curves)  # fmt: skip
    picture = pictures.make(dataset, {evil: run}, [])[0]
    shown = pictures.Picture(evil, *[getattr(picture, field.name) for field in dataclasses.fields(picture)[1:]])
    text = page.page([changed], results.RULE, [shown], {"best": evil}, [{evil: evil}])
    parsed = Page(text)
    assert parsed.tags.count("script") == 2
    assert "b" not in parsed.tags
    assert not any(name.startswith("on") for name, _ in parsed.attributes)
    assert evil in parsed.text


def test_page_without_the_images_says_so(runs, tmp_path):
    moved = json.loads(json.dumps(runs[0].config))
    moved["data"]["root"] = str(tmp_path / "gone")
    run = results.Run(
        runs[0].workdir, "bl1", moved, *[getattr(runs[0], n) for n in ("data", "folds", "rows", "rule", "curves")]
    )
    page.write_report(tmp_path / "page.html", [run])
    assert "no pictures of cases" in (tmp_path / "page.html").read_text()


def test_a_missing_prediction_is_an_input_error(dataset, split, phantom_root, tmp_path):
    workdir = make_run(tmp_path / "run", dataset, split, CELLS["bl1"], 1, phantom_root)
    (workdir / "fold_1" / "predictions" / f"{split[1][0]}.nii.gz").unlink()
    with pytest.raises(InputError, match=f"{split[1][0]}.nii.gz"):
        page.write_report(tmp_path / "page.html", [results.read_run(workdir)])
    assert not (tmp_path / "page.html").exists()


# --- in a browser ----------------------------------------------------------------------------------------------------

INKED = """
const [canvas] = document.querySelectorAll("#viewer canvas");
return canvas.width > 50 ? canvas.toDataURL() : "";
"""


def decode_canvas(address):
    """The bytes of a PNG in a data address."""
    return base64.b64decode(address.removeprefix("data:image/png;base64,"))


STATE = "return Object.assign({}, document.getElementById('viewer').dataset)"


@pytest.mark.skipif(not browser.found(), reason="needs chromium and chromedriver")
def test_page_in_a_browser(written, runs, tmp_path):
    names = [row["case"] for row in runs[0].rows][::3]
    with browser.open_browser(tmp_path) as view:
        for width, height, theme in (
            (1280, 900, "light"),
            (1280, 900, "dark"),
            (390, 844, "light"),
            (390, 844, "dark"),
        ):
            view.look(width, height, theme)
            view.open(written.as_uri())
            view.wait("return document.getElementById('viewer').dataset.ready")
            assert view.run("return document.documentElement.scrollWidth") <= width
            shade = view.run("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
            assert (min(shade) > 200) == (theme == "light")
            small = "return [...document.querySelectorAll('#viewer button')].every(b => b.offsetHeight >= 40)"
            assert view.run(small)
        before, first = view.run(STATE), view.run(INKED)
        assert before["case"] == names[0]
        assert len(decode_canvas(first)) > 1000
        view.click('[data-part="next-slice"]')
        after = view.run(STATE)
        assert int(after["slice"]) == int(before["slice"]) + 1
        assert f"slice {int(after['slice']) + 1} " in view.run(
            "return document.querySelector('[data-part=said]').textContent"
        )
        assert view.run(INKED) != first
        view.click('[data-part="previous-slice"]')
        assert view.run(INKED) == first
        view.click('[data-part="truth"]')
        bare = view.run(INKED)
        assert bare != first
        view.run(
            "const s = document.querySelector('[data-part=system]'); s.value = ''; s.dispatchEvent(new Event('input'))"
        )
        assert view.run(INKED) not in (first, bare)
        view.click('[data-part="next-case"]')
        view.wait("return document.getElementById('viewer').dataset.case === arguments[0]", names[1])
        view.click('[data-part="previous-case"]')
        view.wait("return document.getElementById('viewer').dataset.case === arguments[0]", names[0])
        view.click('[data-part="previous-case"]')
        view.wait("return document.getElementById('viewer').dataset.case === arguments[0]", names[-1])
        assert view.log("browser") == []
        assert [address for address in view.requests() if not address.startswith((written.as_uri(), "data:"))] == []
