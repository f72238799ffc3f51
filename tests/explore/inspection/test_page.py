"""The attention page in a real browser: it shows the right numbers, asks nobody for anything, and obeys no token."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from explore.html import AttentionPage, attention_pair, fill_page
from explore.inspection.patterns import Patterns, visible
from explore.inspection.scores import pattern_scores


@pytest.fixture
def opened(watched, tmp_path):
    """Opens a page, given as its text."""

    def open_page(page: str) -> Page:
        path = tmp_path / "page.html"
        path.write_text(page, encoding="utf-8")
        watched.get(path.as_uri())
        return Page(watched).when_ready()

    return open_page


class Page:
    """Page in a browser, with the actions of a user."""

    def __init__(self, driver) -> None:
        self.driver = driver

    def when_ready(self) -> "Page":
        self.wait("document.querySelector('#heads').style.length")  # its size is what is found out last
        return self

    def wait(self, condition: str, *arguments) -> None:
        WebDriverWait(self.driver, 60, 0.05).until(lambda _: self.run(f"return {condition}", *arguments))

    def one(self, selector: str):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def run(self, script: str, *arguments):
        return self.driver.execute_script(script, *arguments)

    def hover(self, element, x: float, y: float) -> str:
        """Hover over an element and return the tooltip. `x` and `y` are fractions of its width and height."""
        size = element.size
        dx, dy = round((x - 0.5) * size["width"]), round((y - 0.5) * size["height"])
        ActionChains(self.driver, duration=0).move_to_element_with_offset(element, dx, dy).perform()
        return self.one("#tip").text

    def press(self, *keys: str) -> None:
        ActionChains(self.driver).send_keys(*keys).perform()

    def pixels(self, selector: str = "#pattern") -> np.ndarray:
        """[height, width, red green blue opacity] of a canvas."""
        canvas = self.one(selector)
        # The canvas is square once it has been drawn.
        self.wait("arguments[0].width === arguments[0].height", canvas)
        script = (
            "const c = arguments[0]; return [...c.getContext('2d').getImageData(0, 0, c.width, c.width).data]"
        )
        n = self.run("return arguments[0].width", canvas)
        return np.array(self.run(script, canvas)).reshape(n, n, 4)


def causal(*shape: int, seed: int = 0) -> np.ndarray:
    weights = np.tril(np.random.default_rng(seed).random(shape) ** 4 + 1e-3)
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


def page_of(pattern_HTS: np.ndarray, tokens: list[str] | None = None) -> str:
    tokens = tokens or [f"t{i}" for i in range(pattern_HTS.shape[-1])]
    return fill_page([(None, Patterns([visible(token) for token in tokens], {0: pattern_HTS}, 1))])


@pytest.mark.slow
@pytest.mark.ci
def test_hovering_shows_the_weight_and_its_tokens(opened):
    pattern = causal(2, 5, 5)
    page = opened(page_of(pattern, ["<bos>", " a", "b", "c", "d"]))
    page.all("#heads button")[1].click()
    assert page.one("#name").text == "layer 0, head 1"
    for query, key in [(0, 0), (4, 0), (4, 4), (2, 1)]:
        weight, *where = page.hover(page.one("#pattern"), (key + 0.5) / 5, (query + 0.5) / 5).splitlines()
        assert float(weight) == pytest.approx(pattern[1, query, key], abs=1e-3)
        names = ["<bos>", "·a", "b", "c", "d"]
        assert where == [f"query {query} {names[query]}", f"key {key} {names[key]}"]
        assert [label.text for label in page.all(".axis .on")] == [names[query], names[key]]
    assert page.hover(page.one("#pattern"), 0.9, 0.1).startswith("the future\nquery 0 <bos>\nkey 4 d")
    small = page.hover(page.all("#heads canvas")[0], 0.1, 0.9)
    assert small.startswith(f"{pattern[0, 4, 0]:.2f}"[:4])
    assert "layer 0, head 0" in small
    page.hover(page.one("#most"), 0.1, 0.5)
    assert not page.one("#tip").is_displayed()


def test_arrow_keys_show_weights_too(opened):
    pattern = causal(1, 5, 5)
    page = opened(page_of(pattern))
    page.run("document.querySelector('#pattern').focus()")
    page.press(
        Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ARROW_LEFT, Keys.ARROW_RIGHT
    )
    weight, *where = page.one("#tip").text.splitlines()
    assert where == ["query 3 t3", "key 1 t1"]
    assert float(weight) == pytest.approx(pattern[0, 3, 1], abs=1e-3)
    page.press(Keys.ENTER)
    assert page.one("#text [aria-pressed=true]").text == "t3"
    page.press(Keys.ESCAPE)
    assert page.all("#text [aria-pressed=true]") == []


def test_a_clicked_token_shows_what_it_attends_to_and_what_attends_to_it(opened):
    pattern = causal(1, 6, 6)
    page = opened(page_of(pattern))
    page.all("#text button")[3].click()
    drawn = page.pixels()

    def shades():
        colors = [chip.value_of_css_property("background-color") for chip in page.all("#text button")]
        return [[int(part) for part in color.strip("rgba()").split(",")[:3]] for color in colors]

    assert [chip.get_attribute("class") for chip in page.all("#text button")] == [""] * 4 + ["blank"] * 2
    assert shades()[:4] == drawn[3, :4, :3].tolist()
    most = page.one("#most").text
    assert most.startswith("t3 (3) attends most to ")
    keys, weights = zip(*re.findall(r"t(\d) \(\d\) ([\d.]+)", most), strict=True)
    assert [int(key) for key in keys] == np.argsort(-pattern[0, 3, :4]).tolist()
    np.testing.assert_allclose([float(weight) for weight in weights], -np.sort(-pattern[0, 3, :4]), atol=1e-3)
    assert page.one("#chosen").get_attribute("class") == "row"

    page.one("input[value=to]").click()
    assert [chip.get_attribute("class") for chip in page.all("#text button")] == ["blank"] * 3 + [""] * 3
    assert shades()[3:] == drawn[3:, 3, :3].tolist()
    assert page.one("#most").text.startswith("t3 (3) is attended to most by ")
    assert page.one("#chosen").get_attribute("class") == "column"
    assert page.hover(page.all("#text button")[5], 0.5, 0.5).endswith("query 5 t5\nkey 3 t3")
    page.all("#text button")[3].click()
    assert page.one("#most").text.startswith("Click a token")


def test_arrow_keys_move_between_buttons(opened):
    patterns = {0: causal(3, 4, 4), 2: causal(2, 4, 4), 3: causal(3, 4, 4)}
    page = opened(fill_page([(None, Patterns(list("abcd"), patterns, 5))]))
    assert "no patterns in layer 1, 4" in page.one("#about").text
    assert [label.text for label in page.all("#heads .layer")] == ["head", "layer 0", "layer 2", "layer 3"]
    page.all("#heads button")[0].click()
    visited = []
    for key in (
        Keys.ARROW_RIGHT,
        Keys.ARROW_DOWN,
        Keys.ARROW_RIGHT,
        Keys.ARROW_DOWN,
        Keys.ARROW_RIGHT,
        Keys.ARROW_UP,
    ):
        page.press(key)
        visited.append(page.one("#name").text)
    assert visited == [
        "layer 0, head 1",
        "layer 2, head 1",
        "layer 2, head 1",  # there is no other to its right
        "layer 3, head 1",
        "layer 3, head 2",
        "layer 3, head 2",  # nor above this one
    ]
    assert len(page.all("#heads button[tabindex='0']")) == 1
    page.all("#text button")[1].click()
    page.press(Keys.ARROW_RIGHT)
    assert page.one("#text [aria-pressed=true]").text == "c"


def test_the_future_is_blank_and_a_leak_is_not(opened):
    pattern = np.tril(np.full((1, 4, 4), 0.0, np.float32))
    pattern[0, :, 0] = 1
    pattern[0, 1, 3] = 1e-9
    page = opened(page_of(np.concatenate([pattern, np.tril(pattern)])))
    drawn = page.pixels()
    past, future = np.tri(4, dtype=bool), ~np.tri(4, dtype=bool)
    assert np.all(drawn[past][:, 3] == 255)
    assert len(np.unique(drawn[past], axis=0)) == 2  # weights 0 and 1
    assert drawn[future][:, 3].tolist() == [0, 0, 0, 0, 255, 0]
    red, green, blue, _ = drawn[1, 3]
    assert red > 200 > max(green, blue)
    assert page.one("#alarm").text.startswith("The future is seen by layer 0, head 0 (up to 1e-9)")
    assert "on the future" in page.one("#legend").text
    assert [button.get_attribute("class") for button in page.all("#heads button")] == ["leaks", ""]
    assert page.hover(page.one("#pattern"), 0.9, 0.3).splitlines()[0].endswith("on the future")
    page = opened(page_of(np.tril(pattern)))
    assert not page.one("#alarm").is_displayed()


def test_small_pictures_lose_no_single_weight(opened):
    pattern = np.zeros((1, 300, 300), np.float32)
    pattern[0, 200, 100] = 1
    pattern[0, 250, 250] = 1
    pattern[0, 10, 280] = 1e-4
    pattern[0, range(100, 120), range(100, 120)] = 1
    pattern[0, range(100, 120), range(101, 121)] = 1e-4
    page = opened(page_of(pattern))
    drawn = page.pixels("#heads canvas")
    n = len(drawn)
    assert n < 300
    at = np.arange(300) * n // 300  # the pixel of each token
    assert drawn[at[200], at[100]].tolist() == [8, 48, 107, 255]  # the darkest blue
    assert drawn[at[250], at[250]].tolist() == [8, 48, 107, 255]  # its pixel has a bit of the future, too
    assert np.all(drawn[range(n), range(n), 3] == 255)
    beside = [i for i in range(100, 120) if at[i] == at[i + 1]]
    for query, key in [
        (10, 280),
        *((i, i) for i in beside),
    ]:  # a leak is seen even where the past is in its pixel
        red, _, blue, opacity = drawn[at[query], at[key]]
        assert opacity == 255
        assert red > blue + 80


def test_the_slider_goes_through_training(opened):
    films = [causal(2, 6, 6, seed=step) for step in range(3)]
    tokens = list("abcdef")
    page = opened(
        fill_page([(500 * step, Patterns(tokens, {0: film}, 1)) for step, film in enumerate(films)])
    )
    slider, seen = page.one("#step"), []
    for step in range(3):
        assert page.one("#when").text == f"step {500 * step:,}"
        weight = page.hover(page.one("#pattern"), 0.1, 0.9).splitlines()[0]
        assert float(weight) == pytest.approx(films[step][0, 5, 0], abs=1e-3)
        seen.append([page.pixels("#pattern"), page.pixels("#heads button:nth-of-type(2) canvas")])
        slider.send_keys(Keys.ARROW_RIGHT)
    assert page.one("#when").text == "step 1,000"
    assert not np.array_equal(seen[0][0], seen[1][0])
    assert not np.array_equal(seen[1][1], seen[2][1])

    page.one("#play").click()
    page.wait("document.querySelector('#play').textContent === '⏸'")
    page.wait("document.querySelector('#play').textContent === '▶'")
    assert page.one("#when").text == "step 1,000"
    np.testing.assert_array_equal(page.pixels(), seen[2][0])
    assert not opened(page_of(films[0])).one("#film").is_displayed()


def two_layers(seed: int = 0, model: str = "") -> str:
    """A page of five heads of five tokens, in the layers 0 and 3; the values of token 2 are the longest."""
    patterns = {0: causal(2, 5, 5, seed=seed), 3: causal(3, 5, 5, seed=seed + 1)}
    norms = {layer: np.tile([1, 1, 4, 2, 1], (len(pattern), 1)) for layer, pattern in patterns.items()}
    return fill_page([(None, Patterns(list("ababa"), patterns, 4, True, norms, model))])


def names_of_heads(page) -> list[str]:
    return [button.get_attribute("aria-label") for button in page.all("#heads button")]


def test_heads_are_ordered_and_filtered_by_a_score(opened):
    patterns = np.concatenate([causal(2, 5, 5), causal(3, 5, 5, seed=1)])
    names = ["layer 0, head 0", "layer 0, head 1", *(f"layer 3, head {head}" for head in range(3))]
    page = opened(two_layers())
    assert names_of_heads(page) == names
    assert not page.one("#least").is_displayed()
    scores = pattern_scores(patterns, list("ababa"))
    for kind, option in [("induction", "induction"), ("previous_token", "previous token"), ("sink", "sink")]:
        Select(page.one("#order")).select_by_value(option)
        order = np.argsort(-scores[kind], kind="stable")
        assert names_of_heads(page) == [names[i] for i in order]
        first = page.one("#heads small").text
        assert float(first.split(": ")[1]) == pytest.approx(scores[kind].max(), abs=0.01)
    page.press(Keys.TAB)
    slider = page.one("#least")
    page.run("arguments[0].value = 0.9; arguments[0].dispatchEvent(new Event('input'))", slider)
    kept = [i for i in order if scores["sink"][i] >= 0.9 * scores["sink"].max() - 1e-4]
    assert names_of_heads(page) == [names[i] for i in kept]
    assert page.one("#count").text.startswith(f"{len(kept)} of 5, from ")
    Select(page.one("#order")).select_by_value("layer")
    assert names_of_heads(page) == names


def test_several_heads_are_averaged(opened):
    pattern = causal(2, 5, 5)
    page = opened(two_layers())
    buttons = page.all("#heads button")
    ActionChains(page.driver).key_down(Keys.SHIFT).click(buttons[1]).key_up(Keys.SHIFT).perform()
    assert page.one("#name").text == "mean of 2 heads: 0.0, 0.1"
    shown = page.hover(page.one("#pattern"), 0.3, 0.9).splitlines()
    assert float(shown[0]) == pytest.approx(pattern[:, 4, 1].mean(), abs=1e-3)
    assert [button.get_attribute("aria-pressed") for button in buttons[:3]] == ["true", "true", "false"]
    ActionChains(page.driver).key_down(Keys.SHIFT).click(buttons[0]).key_up(Keys.SHIFT).perform()
    assert page.one("#name").text == "layer 0, head 1"
    page.one("#mean").click()
    assert page.one("#name").text == "mean of 5 heads: 0.0, 0.1, 3.0, 3.1, 3.2"
    every = np.concatenate([pattern, causal(3, 5, 5, seed=1)])
    shown = page.hover(page.one("#pattern"), 0.3, 0.9).splitlines()
    assert float(shown[0]) == pytest.approx(every[:, 4, 1].mean(), abs=1e-3)
    buttons[2].click()
    assert page.one("#name").text == "layer 3, head 0"


def test_weights_are_multiplied_by_the_norms_of_values(opened):
    pattern = causal(2, 5, 5)
    page = opened(two_layers())
    page.one("#values").click()
    for key, norm in enumerate([0.25, 0.25, 1, 0.5, 0.25]):
        shown = page.hover(page.one("#pattern"), (key + 0.5) / 5, 0.9).splitlines()
        assert float(shown[0]) == pytest.approx(pattern[0, 4, key] * norm, abs=1e-3)
    page = opened(page_of(pattern))
    assert not page.one("#values").is_enabled()


def test_the_url_holds_the_state(opened):
    page = opened(two_layers())
    Select(page.one("#order")).select_by_value("sink")
    first, second = names_of_heads(page)[1:3]
    buttons = page.all("#heads button")
    buttons[1].click()
    ActionChains(page.driver).key_down(Keys.SHIFT).click(buttons[2]).key_up(Keys.SHIFT).perform()
    page.all("#text button")[3].click()
    page.one("input[value=to]").click()
    page.one("#values").click()
    page.wait("location.hash.includes('values=1')")
    url = page.driver.current_url
    name, most = page.one("#name").text, page.one("#most").text
    assert name.startswith("mean of 2 heads")
    page.driver.get("about:blank")
    page.driver.get(url)
    page.when_ready()
    assert (page.one("#name").text, page.one("#most").text) == (name, most)
    assert names_of_heads(page)[1:3] == [first, second]
    assert page.one("#values").is_selected()
    page.run(
        "location.hash = 'heads=9.9 3.1&token=77&order=no&least=7&step=5'"
    )  # what does not exist is ignored
    page.wait("document.querySelector('#name').textContent === 'layer 3, head 1'")
    assert page.all("#text [aria-pressed=true]") == []
    assert len(names_of_heads(page)) == 5


def test_a_head_is_saved_as_a_drawing(opened, tmp_path):
    pattern = causal(1, len(EVIL), len(EVIL))
    page = opened(page_of(pattern, EVIL))
    folder = {"behavior": "allow", "downloadPath": str(tmp_path)}
    page.driver.execute_cdp_cmd("Browser.setDownloadBehavior", folder)
    drawing = ElementTree.fromstring(page.run("return drawing()"))
    page.one("#save").click()
    path = tmp_path / "layer-0-head-0.svg"
    WebDriverWait(page.driver, 20, 0.05).until(lambda _: path.exists())
    assert ElementTree.fromstring(path.read_text(encoding="utf-8")).tag == drawing.tag
    space = {"svg": "http://www.w3.org/2000/svg"}
    titles = [title.text for title in drawing.iterfind(".//svg:rect/svg:title", space)]
    assert len(titles) == len(EVIL) * (len(EVIL) + 1) / 2
    assert titles[1] == f"{visible(EVIL[1])} → {visible(EVIL[0])}: {pattern[0, 1, 0]:.3f}"
    assert {element.tag.rpartition("}")[2] for element in drawing.iter()} == {"svg", "text", "rect", "title"}


def test_two_pages_side_by_side_follow_each_other(opened, chromium, tmp_path):
    pair = attention_pair(
        AttentionPage(two_layers(model="left")), AttentionPage(two_layers(seed=5, model="right"))
    )
    (tmp_path / "pair.html").write_text(pair.html, encoding="utf-8")
    chromium.get((tmp_path / "pair.html").as_uri())
    page = Page(chromium)
    frames = page.all("iframe")
    for frame, title in zip(frames, ("left", "right"), strict=True):
        chromium.switch_to.frame(frame)
        page.when_ready()
        assert page.one("#title").text == title
        chromium.switch_to.default_content()
    chromium.switch_to.frame(frames[0])
    page.wait("partner !== null")
    Select(page.one("#order")).select_by_value("entropy")
    chromium.find_element(By.CSS_SELECTOR, "[aria-label='layer 3, head 2']").click()
    chromium.switch_to.default_content()
    chromium.switch_to.frame(frames[1])
    page.wait("document.querySelector('#name').textContent === 'layer 3, head 2'")
    assert page.one("#order").get_attribute("value") == "entropy"
    page.all("#heads button")[0].click()
    name = page.one("#name").text
    chromium.switch_to.default_content()
    chromium.switch_to.frame(frames[0])
    page.wait("document.querySelector('#name').textContent === arguments[0]", name)
    chromium.switch_to.default_content()


@pytest.mark.parametrize("n_tokens", [100, 150, 220])
def test_a_long_text_uses_the_height_of_the_window(opened, n_tokens):
    page = opened(page_of(causal(4, n_tokens, n_tokens)))
    pattern, plot = page.one("#pattern"), page.one("#plot")
    assert pattern.size["height"] >= 0.95 * min(plot.size["height"] - 40, plot.size["width"] - 104)
    assert pattern.size["height"] > 0.55 * page.run("return innerHeight")
    assert page.run("return document.documentElement.scrollHeight <= innerHeight")


EVIL = [
    "</script><img src=x onerror=document.title='hacked'>",
    "<script>document.title='hacked'</script>",
    "<img src=x onerror=alert(1)>",
    "\u2028alert(1)",
    "\"');alert(1)//",
    "<!--<script>",
    "javascript:alert(1)",
    "&lt;b&gt;",
    "\u202ehacked\u200b",
]


@pytest.mark.slow
@pytest.mark.ci
def test_tokens_with_markup_do_nothing(opened):
    page = opened(page_of(causal(1, len(EVIL), len(EVIL)), EVIL))
    for i, chip in enumerate(page.all("#text button")):
        chip.click()
        assert chip.text == visible(EVIL[i])
        page.hover(page.one("#pattern"), 0.01, (i + 0.5) / len(EVIL))
        assert f"query {i} {visible(EVIL[i])}" in page.one("#tip").text
    assert page.driver.title.startswith("Attention patterns: </script><img src=x")
    assert page.all("img, iframe, b b, #text script") == []
    assert len(page.all("script")) == 3
    assert page.run("return document.body.lastElementChild.tagName") == "SCRIPT"


CONTRASTS = """
const rgba = (color) => color.match(/[\\d.]+/g).map(Number);
const luminance = (color) => {
  const [r, g, b] = rgba(color).map((c) => c / 255).map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (element) => {
  const color = getComputedStyle(element).backgroundColor;
  return rgba(color)[3] === 0 ? behind(element.parentElement) : color;
};
return [...document.body.querySelectorAll("*")]
  .filter((e) => e.checkVisibility() && e.tagName !== "SCRIPT" && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()))
  .map((e) => {
    const [a, b] = [getComputedStyle(e).color, behind(e)].map(luminance);
    return [e.textContent, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
  });
"""


def test_all_text_can_be_read_in_light_and_dark(opened):
    pattern = np.tril(np.tile(np.linspace(0, 1, 24, dtype=np.float32) ** 2, (24, 1)))[None]
    pattern[0, 0, 5], pattern[0, 23, 4], pattern[0, 23, 5] = 0.3, -0.2, np.nan
    page = opened(page_of(pattern))
    page.all("#text button")[-1].click()
    backgrounds = []
    for _ in range(2):
        page.hover(page.one("#pattern"), 0.5, 0.6)
        contrasts = page.run(CONTRASTS)
        assert len(contrasts) > 60
        assert [(text, contrast) for text, contrast in contrasts if contrast < 4.4] == []
        backgrounds.append(page.one("body").value_of_css_property("background-color"))
        page.one("#theme").click()
    assert backgrounds == ["rgba(255, 255, 255, 1)", "rgba(21, 24, 29, 1)"]


@pytest.mark.slow
@pytest.mark.ci
def test_pages_in_a_notebook_stay_in_their_frames(opened, chromium, tmp_path):
    frames = [AttentionPage(page_of(causal(2, n, n)))._repr_html_() for n in (4, 64)]
    host = f"<!doctype html><title>host</title><style>canvas {{ width: 7px }}</style><p>text</p>{''.join(frames)}"
    (tmp_path / "host.html").write_text(host, encoding="utf-8")
    chromium.get((tmp_path / "host.html").as_uri())
    page, sizes = Page(chromium), []
    fonts = page.one("p").value_of_css_property("font-family")
    for _ in range(2):
        for frame in page.all("iframe"):
            chromium.switch_to.frame(frame)
            page.when_ready()
            page.all("#heads button")[1].click()
            sizes.append((page.one("html").size, page.one("#pattern").size["width"]))
            assert page.one("#pattern").size["width"] > 200 or len(page.all("#text button")) == 4
            chromium.switch_to.default_content()
            sizes.append(frame.size["height"])
    assert sizes[:4] == sizes[4:]
    assert sizes[1] == sizes[3] == 760
    assert page.one("p").value_of_css_property("font-family") == fonts
    # The page cannot look into the frame either.
    assert page.run("return document.querySelector('iframe').contentDocument") is None


def test_only_visible_heads_are_drawn(opened):
    patterns = {layer: causal(2, 24, 24, seed=layer) for layer in range(40)}
    page = opened(fill_page([(None, Patterns(["t"] * 24, patterns, 40))]))
    page.wait("document.querySelector('#heads canvas').width === 24")
    drawn = "return [...document.querySelectorAll('#heads canvas')].filter((canvas) => canvas.width === 24).length"
    assert page.run(drawn) < 60
    page.run("document.querySelector('#heads').scrollTop = 1e6")
    page.wait("[...document.querySelectorAll('#heads canvas')].at(-1).width === 24")


@pytest.mark.slow
def test_144_heads_of_512_tokens_are_usable(opened):
    rows = np.tril(np.random.default_rng(0).standard_exponential((144, 512, 512), dtype=np.float32))
    patterns = (rows / rows.sum(-1, keepdims=True)).reshape(12, 12, 512, 512)
    text = fill_page([(None, Patterns(["token"] * 512, dict(enumerate(patterns)), 12))])
    assert len(text) < 30e6
    page = opened(text)
    page.all("#heads button")[13].click()
    page.all("#text button")[100].click()
    ActionChains(page.driver).move_to_element(page.one("#pattern")).click().perform()
    in_text = "const [a, b] = ['#text', '#text [aria-pressed=true]'].map((s) => document.querySelector(s).getBoundingClientRect());"
    assert page.run(in_text + "return a.top <= b.top && b.bottom <= a.bottom + 1")
    weight = page.hover(page.one("#pattern"), 0.2, 0.8).splitlines()
    query, key = int(weight[1].split()[1]), int(weight[2].split()[1])
    assert float(weight[0]) == pytest.approx(patterns[1, 1, query, key], rel=0.2)
