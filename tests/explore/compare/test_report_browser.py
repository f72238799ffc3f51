"""The report in a real browser, driven by the mouse: charts, table, details, the state in the address, and markup in texts of runs."""

import json
import math
import random
import re
import time
from collections import Counter
from functools import partial
from itertools import product

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from common.repository import REPOSITORY
from explore.compare.report import report, write_page
from explore.diff import diff
from tests.explore.compare.fake_runs import DEFAULT, fake_grid, fake_run
from train.saving.code import Code
from train.saving.live import LiveStats, write_live_stats
from train.saving.record import Record
from train.saving.run_folder import RunFolder, create_run_files

EVIL = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">'\"&<!--script-->"
GRIDS = {
    "1 run": {},
    "long names": {"norm": [letter * 70 for letter in "abcd"], "random_seed": [0, 1]},
    "12 runs": {"positions": ["learned", "rotary", "none"], "random_seed": [0, 1, 2, 3]},
    "40 runs": {
        "positions": ["learned", "rotary"],
        "lr": [3e-4, 1e-3, 3e-3, 1e-2],
        "random_seed": [0, 1, 2, 3, 4],
    },
    "500 runs": {
        "positions": ["learned", "sin", "rotary", "alibi", "none"],
        "dim": [64, 128, 256, 512, 1024],
        "lr": [3e-4, 1e-3, 3e-3, 1e-2],
        "random_seed": [0, 1, 2, 3, 4],
    },
}
MAX_LOAD_SECONDS = 3
pytestmark = [pytest.mark.slow, pytest.mark.ci]


@pytest.fixture
def opened(watched, tmp_path):
    """Reports on runs and opens the page."""

    def open_report(name: str = "demo", hash: str = ""):
        report(name, out=str(tmp_path))
        watched.get("about:blank")
        watched.get((tmp_path / "reports" / name / "report.html").as_uri() + hash)
        wait_until_ready(watched)
        return watched

    return open_report


def wait_until_ready(driver) -> None:
    script = "return document.documentElement.dataset.ready === 'yes'"
    WebDriverWait(driver, 30, poll_frequency=0.02).until(lambda _: driver.execute_script(script))


def shown_runs(driver) -> list[str]:
    script = """return [...document.querySelectorAll("#runs tbody tr")].filter((row) => !row.hidden)
        .map((row) => row.cells[row.cells.length - 1].textContent)"""
    return driver.execute_script(script)


def column(driver, selector: str, title: str) -> list[str]:
    script = """const table = document.querySelector(arguments[0]);
        const i = [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent === arguments[1]);
        return [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.cells[i].textContent)"""
    return driver.execute_script(script, selector, title)


def header(driver, selector: str, title: str):
    cells = driver.find_elements(By.CSS_SELECTOR, f"{selector} th")
    return next(cell for cell in cells if cell.text.rstrip(" ↑↓") == title)


def curve_chart(driver):
    return driver.find_element(By.CSS_SELECTOR, "figure.curves[data-figure] svg")


def lines(driver) -> list[str]:
    """The paths of the curves that are drawn."""
    script = """return [...document.querySelectorAll("figure.curves[data-figure] svg .mark-line path")]
        .map((path) => path.getAttribute("d")).filter((d) => d && d.length > 5)"""
    return driver.execute_script(script)


def choose(driver, id: str, value: str) -> None:
    Select(driver.find_element(By.ID, id)).select_by_value(value)


def type_filter(driver, text: str) -> None:
    box = driver.find_element(By.ID, "filter")
    box.send_keys(Keys.CONTROL, "a")
    box.send_keys(text or Keys.DELETE)


@pytest.mark.parametrize("width", [1280, 600])
@pytest.mark.parametrize("grid", GRIDS)
def test_the_page_fits_a_window_loads_in_time_and_is_small(opened, tmp_path, grid, width):
    fake_grid(tmp_path, n_points=1000, **GRIDS[grid])
    report("demo", out=str(tmp_path))
    size = (tmp_path / "reports" / "demo" / "report.html").stat().st_size
    assert size < 5e6
    driver = opened()
    driver.set_window_size(width, 900)
    driver.refresh()
    wait_until_ready(driver)
    assert driver.execute_script("return performance.now()") < MAX_LOAD_SECONDS * 1000 + 500
    assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    charts = driver.find_elements(By.CSS_SELECTOR, "figure .view svg")
    assert len(charts) == len(driver.find_elements(By.TAG_NAME, "figure")) >= 1
    wide = driver.execute_script("""return [...document.querySelectorAll("figure")].filter((figure) =>
        figure.querySelector("svg").getBoundingClientRect().width > figure.getBoundingClientRect().width + 1).length""")
    assert wide == 0
    driver.set_window_size(1200, 900)


def test_markup_in_texts_of_runs_does_nothing(opened, tmp_path):
    for number, (seed, lr, text) in enumerate(product((0, 1), (1e-3, 1e-2), ("char", EVIL))):
        own = {"task_args": {"kind": text}, "norm": EVIL, "positions": text, "tokenizer_source_name": text}
        params = DEFAULT.changed(random_seed=seed, lr=lr, **own)
        folder = fake_run(tmp_path, "demo", number, params, val_loss=3.0 + seed / 10, sample=EVIL, leak=EVIL)
        about = json.loads((folder / "about.json").read_text())
        about |= {"command": [EVIL], "subject": EVIL, "commit": EVIL, "versions": {EVIL: EVIL}}
        (folder / "about.json").write_text(json.dumps(about))
        (folder / "diff.patch").write_text(EVIL)
    fake_run(tmp_path, "demo", 9, DEFAULT.changed(random_seed=9), stopped=f"failed: {EVIL}", val_loss=9.0)
    driver = opened()
    driver.execute_script("document.querySelector('#runs tbody tr').click()")
    assert driver.title == "Report: demo"
    assert driver.find_elements(By.TAG_NAME, "img") == []
    assert len(driver.find_elements(By.TAG_NAME, "script")) == 2
    assert driver.find_element(By.CSS_SELECTOR, "#detail pre").text == EVIL
    text = driver.execute_script("return document.body.innerText")
    assert text.count(EVIL) >= 5


def test_a_name_with_markup_is_only_a_name(opened, tmp_path):
    name = "<b onclick=1>&"
    fake_grid(tmp_path, name, random_seed=[0, 1])
    driver = opened(name)
    assert driver.find_element(By.TAG_NAME, "h1").text == name


def test_tables_sort_by_numbers_and_by_text(opened, tmp_path):
    fake_grid(tmp_path, positions=["rotary", "learned", "none"], dim=[64, 1024], random_seed=[0, 1, 2])
    driver = opened()
    dims = column(driver, "table", "dim")
    assert sorted(dims) != sorted(dims, key=int)
    header(driver, "table:first-of-type", "dim").click()
    assert column(driver, "table", "dim") == ["64"] * 3 + ["1024"] * 3
    header(driver, "table:first-of-type", "dim").click()
    assert column(driver, "table", "dim") == ["1024"] * 3 + ["64"] * 3
    header(driver, "table:first-of-type", "difference").click()
    values = [cell.replace("−", "-") for cell in column(driver, "table", "difference")]
    assert values[-1] == "–", "what is missing comes last"
    assert [float(value) for value in values[:-1]] == sorted(float(value) for value in values[:-1])


def test_the_table_of_runs_filters_sorts_and_has_chosen_columns(opened, tmp_path):
    fake_grid(tmp_path, **GRIDS["40 runs"])
    driver = opened()
    assert len(shown_runs(driver)) == 40
    losses = [float(loss) for loss in column(driver, "#runs table", "loss")]
    assert losses == sorted(losses)
    for text, n in (
        ("rotary", 20),
        ("lr=0.001", 10),
        ("lr=0.001 rotary", 5),
        ("positions!=rotary lr<0.001", 5),
    ):
        type_filter(driver, text)
        assert len(shown_runs(driver)) == n
        assert driver.find_element(By.ID, "count").text == f"{n} of 40 runs"
    type_filter(driver, f"val_loss<={losses[9]}")
    assert 9 <= len(shown_runs(driver)) <= 11
    type_filter(driver, "")
    header(driver, "#runs", "random_seed").click()
    assert column(driver, "#runs table", "random_seed") == sorted(
        column(driver, "#runs table", "random_seed")
    )
    driver.find_element(By.TAG_NAME, "summary").click()
    boxes = {label.text: label for label in driver.find_elements(By.CSS_SELECTOR, "#columns label")}
    boxes["dropout"].click()
    boxes["accuracy"].click()
    assert column(driver, "#runs table", "dropout") == ["0"] * 40 or set(
        column(driver, "#runs table", "dropout")
    ) == {"0.1"}
    titles = [cell.text for cell in driver.find_elements(By.CSS_SELECTOR, "#runs th")]
    assert "accuracy" not in titles
    assert column(driver, "#runs table", "random_seed") == sorted(
        column(driver, "#runs table", "random_seed")
    )


def test_curves_follow_the_filter_the_axes_and_the_smoothing(opened, tmp_path):
    fake_grid(tmp_path, **GRIDS["12 runs"])
    driver = opened()
    assert len(lines(driver)) == 3, "a mean for each variant"
    choose(driver, "lines", "runs")
    assert len(lines(driver)) == 12
    type_filter(driver, "rotary")
    assert len(lines(driver)) == 4
    choose(driver, "loss", "train")
    rough = lines(driver)
    slider = driver.find_element(By.ID, "smooth")
    slider.send_keys(*[Keys.ARROW_RIGHT] * 20)
    assert lines(driver) != rough
    assert all(len(one) > 100 for one in lines(driver))
    titles = {
        "tokens": "tokens",
        "flops": "training FLOPs",
        "seconds": "seconds of training",
        "steps": "steps",
    }
    for value, title in titles.items():
        choose(driver, "x", value)
        texts = [
            text.text for text in curve_chart(driver).find_elements(By.CSS_SELECTOR, ".role-axis-title text")
        ]
        assert texts == [title, "training loss"]
        assert len(lines(driver)) == 4
    linear = lines(driver)
    for box in ("logx", "logy"):
        driver.find_element(By.ID, box).click()
        assert len(lines(driver)) == 4
        assert lines(driver) != linear
        linear = lines(driver)


def test_a_click_on_a_legend_entry_hides_its_variant(opened, tmp_path):
    fake_grid(tmp_path, **GRIDS["12 runs"])
    driver = opened()
    bands = "figure.curves[data-figure] svg .mark-area path"
    assert len(lines(driver)) == len(driver.find_elements(By.CSS_SELECTOR, bands)) == 3
    [label] = [
        text
        for text in curve_chart(driver).find_elements(By.CSS_SELECTOR, ".role-legend-label text")
        if text.text == "positions=rotary"
    ]
    ActionChains(driver).move_to_element(label).click().perform()
    time.sleep(0.2)
    assert len(lines(driver)) == 2
    [label] = [
        text
        for text in curve_chart(driver).find_elements(By.CSS_SELECTOR, ".role-legend-label text")
        if text.text == "positions=rotary"
    ]
    assert float(label.get_attribute("opacity")) < 0.5
    ActionChains(driver).move_to_element(label).click().perform()
    time.sleep(0.2)
    assert len(lines(driver)) == 3


def test_the_mouse_shows_name_and_value_and_zooms(opened, tmp_path):
    fake_grid(tmp_path, **GRIDS["12 runs"])
    driver = opened()
    path = driver.find_element(By.CSS_SELECTOR, "figure.curves[data-figure] svg .mark-line path")
    driver.execute_script("arguments[0].scrollIntoView({ block: 'center' })", path)
    ActionChains(driver).move_to_element(path).perform()
    size = path.size
    for share in range(-5, 6):
        ActionChains(driver).move_to_element_with_offset(path, size["width"] * share // 12, 0).perform()
        if tip := driver.find_element(By.ID, "tip").text:
            break
    assert "positions=" in tip
    assert "steps: " in tip
    assert "loss: " in tip
    before = lines(driver)
    wheel = """const svg = document.querySelector("figure.curves[data-figure] svg"), box = svg.getBoundingClientRect();
        const place = { clientX: box.left + box.width / 2, clientY: box.top + 120, bubbles: true, cancelable: true };
        document.elementFromPoint(place.clientX, place.clientY).dispatchEvent(new WheelEvent("wheel", { ...place, deltaY: -300, ctrlKey: arguments[0] }))"""
    driver.execute_script(wheel, False)
    time.sleep(0.2)
    assert lines(driver) == before, "the wheel alone scrolls the page"
    driver.execute_script(wheel, True)
    time.sleep(0.3)
    zoomed = lines(driver)
    assert zoomed != before
    assert "zoom=" in driver.current_url
    driver.refresh()
    wait_until_ready(driver)
    assert rounded(lines(driver)) == rounded(zoomed), "the address holds the zoom"
    ActionChains(driver).double_click(path_now(driver)).perform()
    time.sleep(0.3)
    assert lines(driver) == before


def test_the_mouse_shows_the_values_of_dots(opened, tmp_path):
    fake_grid(tmp_path, **GRIDS["12 runs"])
    driver = opened()
    dots = driver.find_elements(By.CSS_SELECTOR, "figure.effect svg .mark-symbol.role-mark path")
    assert len(dots) == 12 + 3
    driver.execute_script("arguments[0].scrollIntoView({ block: 'center' })", dots[0])
    ActionChains(driver).move_to_element(dots[0]).perform()
    tip = driver.find_element(By.ID, "tip").text
    assert "run: random_seed=" in tip
    assert "loss: " in tip


def test_zoom_shows_more_points_of_many_runs(opened, tmp_path):
    fake_grid(tmp_path, n_points=1000, lr=[1e-3, 3e-3], dim=[32, 64, 128, 256], random_seed=[*range(20)])
    url = "#loss=train&lines=runs"
    driver = opened(hash=url)
    whole = [path.count("L") for path in lines(driver)]
    assert len(whole) == 160
    assert max(whole) <= 260
    driver.get("about:blank")
    driver.get((tmp_path / "reports" / "demo" / "report.html").as_uri() + url + "&zoom=500,600,2,4")
    wait_until_ready(driver)
    time.sleep(1)
    inside = "return doc.runs.length && curveRows(doc.figures.find((one) => one.chart === 'curves')).filter((row) => row.x >= 500 && row.x <= 600 && row.key === 0).length"
    assert driver.execute_script(inside) >= 35


def test_a_notebook_shows_the_page(watched, tmp_path):
    fake_grid(tmp_path, **GRIDS["12 runs"])
    page = report("demo", out=str(tmp_path))
    (tmp_path / "notebook.html").write_text(f"<!doctype html><body>{page._repr_html_()}")
    watched.get((tmp_path / "notebook.html").as_uri())
    watched.switch_to.frame(0)
    wait_until_ready(watched)
    choose(watched, "lines", "runs")
    assert len(lines(watched)) == 12
    watched.switch_to.default_content()


def test_the_print_is_light(opened, tmp_path):
    fake_grid(tmp_path, **GRIDS["12 runs"])
    driver = opened()
    media = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    script = "dispatchEvent(new Event(arguments[0])); return getComputedStyle(document.body).backgroundColor"
    assert driver.execute_script(script, "beforeprint") == "rgb(255, 255, 255)"
    time.sleep(0.3)
    color = "return getComputedStyle(document.querySelector('figure.curves svg')).backgroundColor"
    assert driver.execute_script(color) == "rgb(255, 255, 255)"
    assert driver.execute_script(script, "afterprint") != "rgb(255, 255, 255)"
    assert driver.execute_cdp_cmd("Page.printToPDF", {})["data"]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def rounded(paths: list[str]) -> list[list[int]]:
    return [[round(float(number) / 5) for number in re.findall(r"-?[\d.]+", path)] for path in paths]


def path_now(driver):
    return driver.find_element(By.CSS_SELECTOR, "figure.curves[data-figure] svg .mark-line path")


def test_charts_are_saved_as_svg_and_png(opened, tmp_path):
    fake_grid(tmp_path, **GRIDS["12 runs"])
    driver = opened()
    script = """const done = arguments[1], click = HTMLAnchorElement.prototype.click;
        HTMLAnchorElement.prototype.click = async function () {
          HTMLAnchorElement.prototype.click = click;
          done([this.download, this.href.slice(0, 22)]);
        };
        document.querySelector(`figure.curves button.save:nth-of-type(${arguments[0]})`).click()"""
    assert driver.execute_async_script(script, 1)[0] == "curves.svg"
    assert driver.execute_async_script(script, 2) == ["curves.png", "data:image/png;base64,"]


def test_a_click_on_a_run_shows_its_details_and_with_shift_two_side_by_side(opened, tmp_path):
    folders = fake_grid(tmp_path, **GRIDS["12 runs"])
    about = json.loads((folders[4] / "about.json").read_text())
    about |= {
        "command": ["main.py", "--config=demo"],
        "subject": "A commit",
        "commit": "c" * 40,
        "edited": True,
    }
    (folders[4] / "about.json").write_text(json.dumps(about))
    (folders[4] / "diff.patch").write_text("-old line\n+new line\n")
    driver = opened()
    rows = driver.find_elements(By.CSS_SELECTOR, "#runs tbody tr")
    place = shown_runs(driver).index(folders[4].name)
    rows[place].click()
    detail = driver.find_element(By.ID, "detail")
    text = driver.execute_script("return document.getElementById('detail').textContent")
    for part in (
        "main.py --config=demo",
        "c" * 12 + " A commit (edited)",
        "+new line",
        f'get_model_by_timestamp("{folders[4].name}")',
    ):
        assert part in text
    cells = [
        [cell.text for cell in row.find_elements(By.TAG_NAME, "td")]
        for row in detail.find_elements(By.CSS_SELECTOR, "tbody tr")
    ]
    assert ["positions", "rotary", "learned"] in cells
    assert detail.find_elements(By.CSS_SELECTOR, "svg .mark-line path")
    assert "the state of run 4 is strong" in text
    assert len(lines(driver)) == 4, "its curve is among the means"
    other = shown_runs(driver).index(folders[1].name)
    ActionChains(driver).key_down(Keys.SHIFT).click(rows[other]).key_up(Keys.SHIFT).perform()
    assert "Two runs: where they differ" in detail.text
    cells = [
        [cell.text for cell in row.find_elements(By.TAG_NAME, "td")]
        for row in detail.find_elements(By.CSS_SELECTOR, "tbody tr")
    ]
    assert ["positions", "rotary", "learned", "learned"] in cells
    assert len(detail.find_elements(By.CSS_SELECTOR, "svg .mark-line path")) == 2
    assert f'model_explorer.diff("{folders[4].name}","{folders[1].name}")' in detail.text.replace(", ", ",")
    url = driver.current_url
    detail.find_element(By.TAG_NAME, "button").click()
    assert detail.text == ""
    driver.get("about:blank")
    driver.get(url)
    wait_until_ready(driver)
    assert "Two runs: where they differ" in driver.find_element(By.ID, "detail").text


def test_two_runs_part_where_diff_says(opened, tmp_path):
    rng = random.Random(0)
    losses: dict[str, list[float]] = {}
    for number in range(9):
        kept = rng.choice([*losses.values()])[: rng.choice([0, 5, 20, 21, 60])] if losses else []
        own = [rng.choice([rng.random(), math.nan]) for _ in range(rng.choice([0, 3, 40]))]
        folder = fake_run(tmp_path, "demo", number, DEFAULT.changed(random_seed=number))
        of_run = losses[folder.name] = kept + own or [1.0]
        stats = json.loads((folder / "stats.json").read_text())
        stats["stat/train_loss:main"] = [(step, 8 * step, 0, loss) for step, loss in enumerate(of_run, 1)]
        (folder / "stats.json").write_text(json.dumps(stats))
    thinned = fake_run(tmp_path, "demo", 9, DEFAULT).name
    script = """const ids = doc.runs.map((run) => run.id);
        return ids.flatMap((one, i) => ids.slice(0, i).map((other, j) => [one, other, partingOf([i, j])]))"""
    pairs = opened().execute_script(script)
    kinds = Counter()
    for one, other, sentence in pairs:
        both = enumerate(zip(losses.get(one, []), losses.get(other, []), strict=False), 1)
        step = next((step for step, (a, b) in both if str(a) != str(b)), None)
        expected = f"Their training losses first differ at step {step}."
        if thinned in (one, other):
            expected = "The training losses of both runs at every step are not known."
        elif step is None:
            expected = "All training losses that both runs have are equal, up to step "
        assert thinned in (one, other) or diff(one, other, out=str(tmp_path)).first_step == step
        assert sentence.startswith(expected)
        kinds[expected[:10]] += 1
    assert len(pairs) == 45
    assert len(kinds) == 3


def test_two_runs_of_different_code_show_what_changed(opened, tmp_path):
    source = tmp_path / "source" / "train" / "run.py"
    source.parent.mkdir(parents=True)
    for number, text in enumerate(["scale = 1", "scale = 2", f"scale = 2  # {EVIL}"]):
        folder = fake_run(tmp_path, "demo", number, DEFAULT.changed(random_seed=number))
        source.write_text(text + "\n")
        code = Code.read(source.parents[1])
        code.keep(tmp_path)
        about = json.loads((folder / "about.json").read_text())
        about |= {"code": code.hashes(DEFAULT.flat()), "code_text": code.text_id, "commit": f"{number}" * 40}
        (folder / "about.json").write_text(json.dumps(about))
    driver = opened(hash="#run=2024-04-22--16-17-00&other=2024-04-22--16-17-01")
    detail = driver.find_element(By.ID, "detail")
    summary = detail.find_element(By.CSS_SELECTOR, "details summary")
    assert summary.text == "Difference of the code, from “first” to “run.py +1 -1”"
    assert not detail.find_element(By.CSS_SELECTOR, "details pre").is_displayed()
    summary.click()
    assert "\n-scale = 1\n+scale = 2" in detail.find_element(By.CSS_SELECTOR, "details pre").text
    choose(driver, "beside", "2024-04-22--16-17-02")
    assert "Difference of the code, from “first”" in detail.text
    driver.find_element(By.ID, "2024-04-22--16-17-01").click()
    choose(driver, "beside", "2024-04-22--16-17-02")
    assert "The same code trained both runs." in detail.text, "a comment is no difference"
    assert "111111111111" in detail.text
    assert "222222222222" in detail.text


def test_everything_that_a_click_does_can_be_done_by_keyboard(opened, tmp_path):
    fake_grid(tmp_path, **GRIDS["12 runs"])
    driver = opened()
    detail = driver.find_element(By.ID, "detail")

    def press(*keys: str) -> None:
        ActionChains(driver).send_keys(*keys).perform()

    def tab_to(selector: str, at_most: int) -> None:
        for _ in range(at_most):
            press(Keys.TAB)
            if driver.execute_script("return document.activeElement.matches(arguments[0])", selector):
                return
        raise AssertionError(f"{at_most} times Tab do not lead to {selector}")

    driver.find_element(By.ID, "filter").click()
    tab_to("#runs th[aria-sort=none] button", 4)
    press(" ")
    assert driver.execute_script("return document.activeElement.parentNode.ariaSort") == "ascending"
    tab_to("#runs tbody tr", len(driver.find_elements(By.CSS_SELECTOR, "#runs th")))
    order = shown_runs(driver)
    assert driver.switch_to.active_element.get_attribute("id") == order[0]
    assert driver.execute_script("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    press(Keys.ENTER)
    assert f"Run {order[0]}" in detail.text
    assert driver.find_element(By.ID, "count").text == "12 of 12 runs, 1 in detail below"
    press(Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    ActionChains(driver).key_down(Keys.SHIFT).send_keys(Keys.ENTER).key_up(Keys.SHIFT).perform()
    assert "Two runs: where they differ" in detail.text
    chosen = driver.find_elements(By.CSS_SELECTOR, "#runs tr[aria-selected=true]")
    assert [row.get_attribute("id") for row in chosen] == [order[0], order[2]]
    tab_to("#beside", 1)
    press(Keys.ARROW_DOWN)
    assert driver.switch_to.active_element.get_attribute("id") == "beside"
    press(Keys.ESCAPE)
    assert detail.text == ""
    assert driver.switch_to.active_element.get_attribute("id") == order[0]
    tab_to("figure.curves .group_legend_labels text", 12)
    press(Keys.ENTER)
    WebDriverWait(driver, 5).until(lambda _: len(lines(driver)) == 2)
    assert driver.execute_script("return document.activeElement.ariaPressed") == "false"
    press(" ")
    WebDriverWait(driver, 5).until(lambda _: len(lines(driver)) == 3)


def test_a_run_that_trains_has_all_axes(opened, tmp_path):
    fake_grid(tmp_path, **GRIDS["12 runs"])
    folder = RunFolder.claim(tmp_path, lambda timestamp: f"demo/{timestamp}")
    create_run_files(folder.path, DEFAULT, ["main.py"])
    stats = LiveStats()
    Record(stats, folder).note(costs_of_step={"tokens": 1000.0, "flops": 1e9})
    for step in range(1, 201):
        stats.log("train_loss:main", 4.0 - step / 100, step=step, n_samples=8 * step)
        stats.log("train_seconds", step / 10, step=step, n_samples=8 * step)
    stats.drain()
    write_live_stats(stats, folder.path)
    driver = opened(hash="#loss=train")
    last = "return curveRows(doc.figures.find((one) => one.chart === 'curves')).filter((row) => row.group === 'training').at(-1)?.x"
    for axis, x in {"steps": 200, "tokens": 200e3, "flops": 200e9, "seconds": 20}.items():
        choose(driver, "x", axis)
        assert len(lines(driver)) == 4
        assert driver.execute_script(last) == pytest.approx(x)
    folder.discard()


def test_the_address_holds_the_state_of_the_page(opened, tmp_path):
    fake_grid(tmp_path, **GRIDS["40 runs"])
    driver = opened(
        hash="#q=rotary&sort=-random_seed&x=tokens&loss=train&lines=runs&logy=1&cols=random_seed,lr"
    )
    assert len(shown_runs(driver)) == 20
    seeds = column(driver, "#runs table", "random_seed")
    assert seeds == sorted(seeds, reverse=True)
    assert [cell.text.rstrip(" ↓") for cell in driver.find_elements(By.CSS_SELECTOR, "#runs th")] == [
        "lr",
        "random_seed",
        "ended",
        "run",
    ]
    assert driver.find_element(By.ID, "logy").is_selected()
    assert len(lines(driver)) == 20
    type_filter(driver, "lr=0.01")
    assert "q=lr%3D0.01" in driver.current_url


def test_a_page_of_runs_that_train_loads_itself_again_and_keeps_its_state(opened, tmp_path, monkeypatch):
    monkeypatch.setattr("explore.compare.report.write_page", partial(write_page, refresh=2.0))
    fake_grid(tmp_path, **GRIDS["12 runs"])
    driver = opened()
    type_filter(driver, "rotary")
    row = shown_runs(driver)[2]
    driver.execute_script("byId(arguments[0]).focus(); scrollTo(0, 400); window.isOld = true", row)
    WebDriverWait(driver, 10).until(lambda _: not driver.execute_script("return window.isOld"))
    wait_until_ready(driver)
    assert driver.execute_script("return scrollY") == 400
    assert driver.find_element(By.ID, "filter").get_attribute("value") == "rotary"
    assert len(shown_runs(driver)) == 4
    assert driver.switch_to.active_element.get_attribute("id") == row
    driver.get("about:blank")


def test_the_csv_has_the_filtered_runs_and_no_formulas(opened, tmp_path):
    for number, kind in enumerate(("learned", "=1+1", "rotary")):
        fake_run(tmp_path, "demo", number, DEFAULT.changed(random_seed=number), sample="", variant=kind)
    driver = opened()
    type_filter(driver, "random_seed!=2")
    script = "const done = arguments[0]; URL.createObjectURL = (blob) => { blob.text().then(done); return '#'; }; document.getElementById('csv').click()"
    text = driver.execute_async_script(script)
    assert len(text.splitlines()) == 3
    assert "'=1+1" in text


def test_the_heat_map_shows_the_fields_that_are_chosen(opened, tmp_path):
    fake_grid(
        tmp_path, positions=["rotary", "learned", "none"], dim=[64, 128], lr=[1e-3, 1e-2], random_seed=[0, 1]
    )
    driver = opened()
    heat = "figure.heat svg .mark-rect.role-mark path"
    assert len(driver.find_elements(By.CSS_SELECTOR, heat)) == 4
    Select(driver.find_elements(By.CSS_SELECTOR, "figure.heat select")[1]).select_by_value("positions")
    assert len(driver.find_elements(By.CSS_SELECTOR, heat)) == 6


def test_pairs_without_runs_are_empty_in_the_heat_map(opened, tmp_path):
    pairs = [(64, "rotary"), (64, "none"), (128, "rotary")]
    for number, (dim, positions) in enumerate(pairs):
        fake_run(tmp_path, "demo", number, DEFAULT.changed(dim=dim, positions=positions))
    texts = opened().find_elements(By.CSS_SELECTOR, "figure.heat svg .mark-text.role-mark text")
    assert len([one.text for one in texts if float(one.text) > 0]) == len(pairs)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_charts_have_the_colors_of_the_page(opened, tmp_path, scheme):
    fake_grid(tmp_path, **GRIDS["12 runs"])
    driver = opened()
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    time.sleep(0.3)
    page = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    script = "return getComputedStyle(document.querySelector('figure.curves svg')).backgroundColor"
    assert driver.execute_script(script) == page
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_the_script_of_the_page_is_short():
    script = (REPOSITORY / "explore" / "page" / "report.js").read_text(encoding="utf-8")
    assert len(script.splitlines()) <= 300
