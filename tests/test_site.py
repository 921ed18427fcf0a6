"""The documentation as a site."""

import re
import subprocess
import sys
from html.parser import HTMLParser

import browser
import pytest
from helpers import ROOT

from isles_jax import losses, metrics, models

pytestmark = pytest.mark.slow
# The attributes whose address a browser loads at once. A link of an `a` is loaded on a click only.
LOADED = ("src", "srcset", "data", "poster", "background", "xlink:href")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documentation") / "site"
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-c", "docs", ".", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_builds_without_a_warning_and_shows_the_functions(site):
    functions = (site / "docs" / "api.html").read_text()
    for module in (losses, metrics, models):
        for name in module.__all__:
            if callable(getattr(module, name)):
                assert f'id="{module.__name__}.{name}"' in functions, name
    start = (site / "index.html").read_text()
    first = (site / re.search(r"url=([\w.]+)", start)[1]).read_text()
    # Every page is one click away.
    pages = [*(ROOT / "docs").glob("*.md"), *(ROOT / "experiments").glob("*.md"), *ROOT.glob("C*.md")]
    for page in pages:
        assert f'href="{page.relative_to(ROOT).with_suffix(".html")}"' in first, page


class Loads(HTMLParser):
    """The addresses that a page loads when it is opened."""

    def __init__(self, page):
        super().__init__()
        self.addresses = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in LOADED or (name == "href" and tag in ("link", "use", "image", "base")):
                self.addresses.append(value)
            if name == "style":
                self.addresses += styled(value)

    def handle_data(self, text):
        if self.lasttag == "style":
            self.addresses += styled(text)


def styled(text):
    """The addresses that a style sheet loads."""
    return re.findall(r"""(?:url\(|@import)\s*["']?([^"')\s;]+)""", text)


def test_addresses_are_found():
    page = '<a href="//a.b"><script src="//c.d/e.js"></script><p style="background: url(//f.g)">'
    page += '<style>@import "//h.i";</style>'
    assert Loads(page).addresses == ["//c.d/e.js", "//f.g", "//h.i"]
    assert styled('@import "x.css"; p {background: url( "https://h.i/j.png")}') == ["x.css", "https://h.i/j.png"]


def test_a_page_loads_files_of_the_site_only(site):
    loaded = [(page, address) for page in site.rglob("*.html") for address in Loads(page.read_text()).addresses]
    loaded += [(sheet, address) for sheet in site.rglob("*.css") for address in styled(sheet.read_text())]
    assert len(loaded) > 100
    for page, address in loaded:
        # What begins with data: stands in the page itself, and # is a place in it.
        if not address.startswith(("data:", "#")):
            assert (page.parent / re.split("[?#]", address)[0]).is_file(), f"{page} loads {address}"


@pytest.mark.skipif(not browser.installed(), reason="Chromium and chromedriver are not installed")
def test_a_browser_asks_for_files_of_the_site_only(site, tmp_path):
    # Scripts, too, can load things.
    with browser.open_browser(tmp_path / "profile") as one:
        for page in site.rglob("*.html"):
            one.open(page.as_uri())
            asked = one.requests()
            assert page.as_uri() in asked
            assert [a for a in asked if not a.startswith(("data:", site.as_uri()))] == []


@pytest.mark.parametrize("page", ["losses", "method"])
def test_every_formula_is_drawn_without_a_script(site, page):
    text = re.sub("```.*?```", "", (ROOT / "docs" / f"{page}.md").read_text(), flags=re.DOTALL)
    formulas = re.findall(r"\$\$.+?\$\$|\$.+?\$", text)
    shown = (site / "docs" / f"{page}.html").read_text()
    assert len(formulas) > 10
    assert shown.count("<math ") == len(formulas)
    assert not re.search(r"\\(frac|sum|log|\()", shown)
    # A fraction has two parts, and a sum has its sign.
    assert re.search(r"<mfrac>\s*<mn>1</mn>\s*<mi>N</mi>\s*</mfrac>", shown)
    assert "∑" in shown
