"""The page in a real browser: its looks, the viewer, the table of every case, and print."""

import re

import browser
import numpy as np
import pytest

from isles_jax.pages import pictures, tmax

pytestmark = [
    pytest.mark.usefixtures("few_resamples"),
    pytest.mark.skipif(not browser.installed(), reason="needs chromium and chromedriver"),
]

STATE = "return Object.assign({}, document.getElementById('viewer').dataset)"
PICTURE = "return document.querySelector('#viewer canvas.slice').toDataURL()"
VALUES = "return document.querySelector('[data-part=values]').textContent"
CUT_OFF = """
return [...document.querySelectorAll(".dice, .differences")].filter((box) => box.scrollWidth > box.clientWidth).length
"""


def open_page(view, path, width=1280, height=900, theme="light"):
    view.look(width, height, theme)
    view.open(path.as_uri())
    view.wait("return document.getElementById('viewer').dataset.ready")


def box_of(view, selector):
    """Left, top, width and height of an element in the window, after it was scrolled into the middle."""
    return view.run(
        "const e = document.querySelector(arguments[0]); e.scrollIntoView({block: 'center'});"
        "const b = e.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]",
        selector,
    )


@pytest.fixture(scope="module")
def view(tmp_path_factory):
    with browser.open_browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_page_fits_the_window_and_can_be_read(view, report_file, width, height, theme):
    open_page(view, report_file, width, height, theme)
    assert view.run("return document.documentElement.scrollWidth") <= width
    shade = view.run("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (min(shade) > 200) == (theme == "light")
    assert view.run("return [...document.querySelectorAll('.controls button')].every(b => b.offsetHeight >= 40)")
    # Dice and p values are seen without scrolling; other tables scroll, by keyboard too.
    assert view.run(CUT_OFF) == 0
    assert view.run("return [...document.querySelectorAll('.wide')].every(b => b.tabIndex === 0 && b.ariaLabel)")
    contrasts = view.run(browser.CONTRASTS)
    assert len(contrasts) > 300
    assert min(ratio for ratio, _ in contrasts) >= 4.5, min(contrasts)


def test_buttons_change_what_is_shown_and_nothing_is_asked_for(view, report_file, finished_runs):
    names = [row["case"] for row in finished_runs[0].rows][::3]
    view.requests()
    open_page(view, report_file)
    before, first = view.run(STATE), view.run(PICTURE)
    assert before["case"] == names[0]
    view.click('[data-part="next-slice"]')
    after = view.run(STATE)
    assert int(after["slice"]) == int(before["slice"]) + 1
    status = view.run("return document.querySelector('[data-part=status]').textContent")
    assert f"slice {int(after['slice']) + 1}, " in status
    assert view.run(PICTURE) != first
    view.click('[data-part="previous-slice"]')
    assert view.run(PICTURE) == first
    shown = [first]
    for part in ("truth", "risk", "coloured"):
        view.click(f'[data-part="{part}"]')
        shown.append(view.run(PICTURE))
    view.run(
        "const s = document.querySelector('[data-part=system]'); s.value = ''; s.dispatchEvent(new Event('input'))"
    )
    shown.append(view.run(PICTURE))
    assert len(set(shown)) == 5
    for part, name in (("next-case", names[1]), ("previous-case", names[0]), ("previous-case", names[-1])):
        view.click(f'[data-part="{part}"]')
        view.wait("return document.getElementById('viewer').dataset.case === arguments[0]", name)
    assert view.log("browser") == []
    assert [address for address in view.requests() if not address.startswith((report_file.as_uri(), "data:"))] == []


def test_wheel_and_keys_change_slice_and_zoom(view, report_file):
    open_page(view, report_file)
    start, first = int(view.run(STATE)["slice"]), view.run(PICTURE)
    left, top, width, height = box_of(view, "#viewer canvas.slice")
    view.wheel(left + width / 2, top + height / 2, 100)
    view.wait("return Number(document.getElementById('viewer').dataset.slice) === arguments[0]", start + 1)
    view.run("document.querySelector('.views').focus()")
    view.press("ArrowUp", "ArrowUp")
    assert int(view.run(STATE)["slice"]) == start - 1
    view.press("ArrowRight")
    assert view.run(PICTURE) == first
    view.press("+", "+", "+", "+", "+")
    zoomed = view.run(PICTURE)
    assert float(view.run(STATE)["zoom"]) == 1.5**5
    view.press("Shift", "ArrowRight")
    moved = view.run(PICTURE)
    view.press("Shift", "ArrowLeft")
    assert first != zoomed != moved
    assert view.run(PICTURE) == zoomed
    view.drag(left + width / 2, top + height / 2, 30, 0)
    assert view.run(PICTURE) not in (zoomed, moved)
    view.press("0")
    assert view.run(PICTURE) == first


STATUS = "return document.querySelector('[data-part=status]').textContent"


@pytest.fixture(scope="module")
def first_picture(report_dataset, finished_runs):
    return pictures.make(report_dataset, {"proposed": finished_runs[1]}, [])[0]


def test_a_whole_image_is_zoomed_on_the_lesion(view, report_file, first_picture):
    """After the zoom, the voxel in the middle of the view is one of the lesion. In the whole image it is none."""
    position = pictures.representative_slice(first_picture)
    result = first_picture.results["proposed"][position]
    assert result[result.shape[0] // 2, result.shape[1] // 2] == 0
    for keys in (True, False):
        open_page(view, report_file)
        if keys:
            view.run("document.querySelector('.views').focus()")
            view.press("+", "+", "+", "+")
        else:
            for _ in range(4):
                view.click('[data-part="zoom-in"]')
        left, top, width, height = box_of(view, "#viewer canvas.slice")
        view.point(left + width / 2, top + height / 2)
        assert re.search(r"proposed: (penumbra|core)$", view.run(VALUES))


def test_a_bar_has_a_round_length_and_grows_with_the_zoom(view, report_file, first_picture):
    open_page(view, report_file)
    _, _, width, _ = box_of(view, "#viewer canvas.slice")
    per_mm = width / (first_picture.truth.shape[2] * first_picture.pixel_mm[1])
    view.run("document.querySelector('.views').focus()")
    for zoom in (1.0, 1.5, 1.5**2, 1.5**3, 1.5**4):
        length, pixels = view.run(STATE)["bar"].split(" mm: ")
        assert float(pixels) == pytest.approx(float(length) * per_mm * zoom, rel=0.01)
        assert width / 10 < float(pixels) <= width / 4
        view.press("+")
    # The end of the bar is white, and a pixel further it is dark.
    view.press("0")
    length = float(view.run(STATE)["bar"].split(": ")[1])
    context = "document.querySelector('#viewer canvas.slice').getContext('2d')"
    at = f"return [...{context}.getImageData(%d, %d, 1, 1).data]"
    bottom = int(view.run("return document.querySelector('#viewer canvas.slice').height")) - 8
    assert view.run(at % (6 + length - 2, bottom))[:3] == [255, 255, 255]
    assert view.run(at % (6 + length + 1, bottom))[:3] == [0, 0, 0]


def test_slices_are_counted_from_one_and_have_their_place_in_mm(view, report_file, first_picture):
    open_page(view, report_file)
    slider = "const s = document.querySelector('[data-part=slice]'); return [s.min, s.max, s.value, s.ariaValueText]"
    position = pictures.representative_slice(first_picture)
    least, most, value, text = view.run(slider.replace("s.ariaValueText", "s.getAttribute('aria-valuetext')"))
    assert (least, most, value) == ("1", str(len(first_picture.slices)), str(position + 1))
    assert text in view.run(STATUS)
    assert text.startswith(f"slice {first_picture.slices[position] + 1}, {first_picture.places[position]} (")
    view.run("document.querySelector('.views').focus()")
    view.press(*["ArrowUp"] * 10)
    assert f"slice {first_picture.slices[0] + 1}, {first_picture.places[0]} (1 of {most} shown)" in view.run(STATUS)


def test_the_clinical_rule_is_a_choice(view, report_file, report_dataset, finished_runs):
    open_page(view, report_file)
    options = view.run("return [...document.querySelector('[data-part=system]').options].map(o => o.value)")
    assert options == ["bl1", "proposed", "clinical rule", ""]
    first = view.run(PICTURE)
    view.run(
        "[...document.querySelectorAll('#cases tbody tr')].find(r => r.cells[1].textContent === 'clinical rule')"
        ".querySelector('.show').click()"
    )
    view.wait("return document.querySelector('[data-part=system]').value === 'clinical rule'")
    view.wait(PICTURE + " !== arguments[0]", first)
    assert "Dice of clinical rule: penumbra" in view.run(STATUS)


SCROLL_SHADOWS = """
return [...document.querySelectorAll(".wide")].map((box) => [
  getComputedStyle(box).backgroundAttachment.split(", ").sort().join(" "), box.classList.contains("tall")])
"""


def test_boxes_that_scroll_have_shadows_at_their_ends(view, report_file):
    open_page(view, report_file, 390, 844)
    for attachments, tall in view.run(SCROLL_SHADOWS):
        assert attachments == " ".join(["local"] * (2 + tall) + ["scroll"] * (2 + tall))


def test_values_under_the_cursor_are_those_of_the_scan(view, report_file, report_dataset, finished_runs):
    open_page(view, report_file)
    picture = pictures.make(report_dataset, {"proposed": finished_runs[1]}, [])[0]
    position = pictures.representative_slice(picture)
    rows, columns = np.nonzero(picture.truth[position] == 2)
    row, column = int(rows[0]), int(columns[0])
    left, top, width, height = box_of(view, "#viewer canvas.slice")
    x = left + width * (column + 0.5) / picture.truth.shape[2]
    y = top + height * (row + 0.5) / picture.truth.shape[1]
    view.point(x, y)
    text = view.run(VALUES)
    assert "reference: core" in text
    number = list(report_dataset.channels).index(tmax.CHANNEL)
    low, high = picture.ranges[number]
    step = (high - low) / (pictures.LEVELS - 2)
    relation, seconds = re.match(r"Tmax ([≈≤≥]) ([\d.-]+) s ", text).groups()
    assert abs(float(seconds) - picture.values(number)[position, row, column]) <= step
    assert (relation == "≥") == (float(seconds) >= high - step / 2)
    # The values follow the slice under a cursor that rests.
    view.wheel(x, y, 100)
    view.wait(VALUES + " !== arguments[0]", text)
    view.point(left + 2, top + 2)
    assert view.run(VALUES).count("outside the brain") == len(report_dataset.channels)


def test_window_sets_the_ends_of_the_scale(view, report_file):
    open_page(view, report_file)
    first = view.run(PICTURE)
    ends = "return [...document.querySelectorAll('#viewer figure .ends input')].slice(0, 2).map(i => Number(i.value))"
    assert view.run(ends) == list(tmax.WINDOW_S)
    change = (
        "const i = document.querySelectorAll('#viewer figure .ends input')[1]; i.value = arguments[0];"
        "i.dispatchEvent(new Event('input'))"
    )
    view.run(change, "6")
    assert view.run(PICTURE) != first
    narrow = view.run(PICTURE)
    # An empty window is not shown.
    view.run(change, "0")
    assert view.run(PICTURE) == narrow
    view.run(change, "12")
    assert view.run(PICTURE) == first


COLUMN = (
    "return [...document.querySelectorAll('#cases tbody tr:not([hidden])')].map(r => r.cells[arguments[0]].textContent)"
)


def test_table_of_every_case_sorts_by_keyboard_and_filters(view, report_file, finished_runs):
    open_page(view, report_file)
    view.run("document.querySelectorAll('#cases .sort')[4].focus()")
    view.press("Enter")
    dice = list(map(float, view.run(COLUMN, 4)))
    assert dice == sorted(dice)
    assert len(dice) == len(finished_runs[0].rows) * 3
    header = "return document.querySelectorAll('#cases thead th')[4].getAttribute('aria-sort')"
    assert view.run(header) == "ascending"
    view.press("Enter")
    assert list(map(float, view.run(COLUMN, 4))) == dice[::-1]
    assert view.run(header) == "descending"
    view.run(
        "document.querySelectorAll('#cases select').forEach((s, n) => { s.value = arguments[n];"
        "s.dispatchEvent(new Event('input')) })",
        "bl1",
        "core",
    )
    assert set(view.run(COLUMN, 1)) == {"bl1"}
    shown = list(map(float, view.run(COLUMN, 4)))
    assert shown == sorted(
        (round(row["dice"], 3) for row in finished_runs[0].rows if row["class"] == "core"), reverse=True
    )
    name = view.run(COLUMN, 0)[-1]
    view.run("[...document.querySelectorAll('#cases tbody tr:not([hidden]) .show')].at(-1).click()")
    view.wait("return document.getElementById('viewer').dataset.case === arguments[0]", name)
    assert view.run("return document.querySelector('[data-part=system]').value") == "bl1"


def test_paper_says_nothing_of_what_only_a_screen_can_do(view, report_file):
    open_page(view, report_file)
    uses = ("sorts the rows", "opens the case in the viewer")
    assert all(use in view.run("return document.body.innerText") for use in uses)
    paper = view.paper_text()
    assert "Scores of every case" in paper
    assert not any(use in paper for use in uses)


def test_print_opens_every_fold_and_keeps_the_colours_of_legends(view, report_file):
    open_page(view, report_file)
    folds = "[...document.querySelectorAll('details')]"
    closed = view.run(f"return {folds}.filter(f => !f.open).length")
    assert closed
    view.run(f"addEventListener('beforeprint', () => {{ window.openInPrint = {folds}.every(f => f.open) }})")
    view.print()
    assert view.run("return window.openInPrint")
    assert view.run(f"return {folds}.filter(f => !f.open).length") == closed
    legends = "[...document.querySelectorAll('.key span')].map(s => getComputedStyle(s, '::before').printColorAdjust)"
    assert set(view.run(f"return {legends}")) == {"exact"}
