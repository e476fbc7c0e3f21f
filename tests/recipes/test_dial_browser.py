"""The page of `adapt dial` in a real browser: a headless Chromium that Playwright drives."""

import os
import shutil

import pytest
from dial_server import serving

import adapt_recipes as ar
from adapt_recipes.dial.served import serve_default, serve_folder

pytest.importorskip("gradio", reason="the page needs gradio: pip install '.[dial]'")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")

PATIENCE_MS = 60_000  # shared cores
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def browser():
    """The system's Chromium, else Playwright's own."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with playwright.sync_playwright() as driver:
        path = found or driver.chromium.executable_path
        if not os.path.exists(path):
            pytest.skip("no Chromium: apt-get install chromium, or playwright install chromium")
        # No sandbox as root, and containers' /dev/shm is small.
        chromium = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def served():
    return serve_default()


@pytest.fixture(scope="module")
def url(served):
    with serving(served) as address:
        yield address


@pytest.fixture
def page(browser, url):
    opened = open_page(browser, url)
    yield opened
    opened.close()


def open_page(browser, url, size="desktop", theme="light"):
    width, height = SIZES[size]
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(PATIENCE_MS)
    page.failures = []
    page.on("pageerror", lambda error: page.failures.append(str(error)))
    page.goto(f"{url}?__theme={theme}")
    page.locator("#bars [data-dialled]").first.wait_for()
    return page


def answer(page, prompt=None):
    if prompt is not None:
        page.locator("#prompt textarea").first.fill(prompt)
    page.get_by_role("button", name="Ask", exact=True).click()


def dialled(page):
    return float(page.locator("#bars [data-dialled]").first.get_attribute("data-dialled"))


def set_bias(page, value):
    field = page.get_by_label("number input for Bias towards fast (logit units)").first
    field.fill(str(value))
    field.press("Enter")
    field.blur()


def test_ask(page):
    page.get_by_label("slow", exact=True).first.check()
    answer(page, "1 +1 +2 +3 +1 . . . . ?")
    page.get_by_text("mode slow: 8 tokens").wait_for()
    assert page.locator("#answer textarea").input_value() == "8"
    thought = page.locator("#thought textarea")
    assert not thought.is_visible()
    page.get_by_role("button", name="Thought (4 tokens)").click()
    assert thought.input_value() == "2 4 7 8"
    page.get_by_text("forced slow: 8 tokens").wait_for()
    assert not page.failures


def test_the_slider_moves_p(page):
    before = dialled(page)
    set_bias(page, -8)
    page.wait_for_function(
        "was => +document.querySelector('#bars [data-dialled]').dataset.dialled < was / 2", arg=before
    )
    own = float(page.locator("#bars [data-own]").first.get_attribute("data-own"))
    assert own == pytest.approx(before, abs=1e-4)


def test_a_click_on_the_frontier_sets_the_slider(page):
    page.get_by_role("tab", name="Frontier").click()
    page.locator(".dial-dot[data-bias='-3'] circle").last.click()
    page.get_by_text("The slider of the first tab is at -3.").wait_for()
    assert page.locator(".dial-chosen").get_attribute("data-bias") == "-3"
    page.get_by_role("tab", name="Ask").click()
    assert page.get_by_label("number input for Bias towards fast (logit units)").first.input_value() == "-3"


def test_compare(page):
    page.get_by_role("tab", name="Compare").click()
    for side, mode in (("A", "fast"), ("B", "slow")):
        page.locator(f"#setting-{side}").get_by_label(mode, exact=True).click()
        page.locator(f"#setting-{side}").get_by_label("forced mode", exact=True).check()
    page.get_by_role("button", name="Ask both").click()
    page.locator("#setting-A").get_by_text("mode fast:").wait_for()
    page.locator("#setting-B").get_by_text("mode slow:").wait_for()
    assert page.locator("#answer-A textarea").input_value() and page.locator("#answer-B textarea").input_value()


def test_bad_input_is_a_message(page):
    answer(page, "7 +" * 3334)
    alert = page.get_by_role("alert").filter(has_text="the prompt has")
    alert.wait_for()
    assert "Traceback" not in page.content()
    answer(page, "")
    page.get_by_role("alert").filter(has_text="the prompt is empty").wait_for()
    answer(page, "9 +8 . . . . . . . ?")
    page.get_by_text("mode fast: 3 tokens").wait_for()
    assert page.get_by_role("alert").filter(has_text="the prompt").count() == 0


@pytest.fixture
def held(served, monkeypatch):
    """Makes every forward of the model last until the test has looked, at most 0.3 s."""
    import time

    forwards = []
    head = served.model.lm_head.forward

    def slow(*arguments):
        forwards.append(1)
        time.sleep(0.3)
        return head(*arguments)

    monkeypatch.setattr(served.model.lm_head, "forward", slow)
    return forwards


def test_stop_stops_computing(page, held, served):
    page.get_by_label("slow", exact=True).first.check()
    answer(page, "1 +1 +5 +6 +0 +3 +2 +0 +7 ?")
    page.get_by_text("mode ...: ").wait_for()
    page.get_by_role("button", name="Stop").first.click()
    page.get_by_text("stopped", exact=True).wait_for()
    computed = len(held)
    page.wait_for_timeout(1000)
    assert len(held) == computed < 12 and not served.lock.locked()


def test_a_reload_in_mid_answer(page, held, served):
    page.get_by_label("slow", exact=True).first.check()
    answer(page, "1 +1 +5 +6 +0 +3 +2 +0 +7 ?")
    page.get_by_text("mode ...: ").wait_for()
    page.reload()
    page.locator("#bars [data-dialled]").first.wait_for()
    answer(page, "9 +8 . . . . . . . ?")
    page.get_by_text("mode fast: 3 tokens").wait_for()


def test_a_folder_without_modes_is_asked_for_them(browser, tmp_path):
    folder = tmp_path / "nameless"
    shutil.copytree(ar.checkpoint_path("rl"), folder)
    (folder / "modes.json").unlink()
    served = serve_folder(folder)
    served.examples = ["9 +8 . . . . . . . ?"]
    with serving(served) as address:
        page = browser.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.goto(address)
        page.get_by_label("A fast answer begins with").fill("<nothing>")
        page.get_by_label("A slow answer begins with").fill("<think>")
        page.get_by_role("button", name="Use these modes").click()
        page.get_by_role("alert").filter(has_text="<nothing>").wait_for()
        page.get_by_label("A fast answer begins with").fill("<answer>")
        page.get_by_role("button", name="Use these modes").click()
        page.get_by_label("A fast answer begins with").wait_for(state="hidden")
        answer(page)
        page.get_by_text("mode fast:").wait_for()
        page.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_it_fits_and_follows_the_theme(browser, url, size, theme):
    page = open_page(browser, url, size, theme)
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    # Perceived lightness of the ground and of the text on it, 0 to 255.
    ground, text = page.evaluate(
        """() => ['backgroundColor', 'color'].map(name => {
          const of = name === 'color' ? '.dial-head h1' : 'gradio-app';
          const style = getComputedStyle(document.querySelector(of));
          const [r, g, b] = style[name].match(/[0-9.]+/g).map(Number);
          return .3 * r + .59 * g + .11 * b;
        })"""
    )
    assert (ground < 60 and text > 180) if theme == "dark" else (ground > 220 and text < 90)
    page.close()
