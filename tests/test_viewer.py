"""The page in a real browser."""

import base64

import browser
import pytest

pytestmark = pytest.mark.usefixtures("few_resamples")

INKED = """
const [canvas] = document.querySelectorAll("#viewer canvas");
return canvas.width > 50 ? canvas.toDataURL() : "";
"""


def decode_canvas(address):
    """The bytes of a PNG in a data address."""
    return base64.b64decode(address.removeprefix("data:image/png;base64,"))


STATE = "return Object.assign({}, document.getElementById('viewer').dataset)"


@pytest.mark.skipif(not browser.installed(), reason="needs chromium and chromedriver")
def test_page_in_a_browser(report_file, finished_runs, tmp_path):
    names = [row["case"] for row in finished_runs[0].rows][::3]
    with browser.open_browser(tmp_path) as view:
        for width, height, theme in (
            (1280, 900, "light"),
            (1280, 900, "dark"),
            (390, 844, "light"),
            (390, 844, "dark"),
        ):
            view.look(width, height, theme)
            view.open(report_file.as_uri())
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
            "return document.querySelector('[data-part=status]').textContent"
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
        assert [address for address in view.requests() if not address.startswith((report_file.as_uri(), "data:"))] == []
