"""The report in a real browser: it asks nobody for anything, obeys no text of a run, and its tables sort."""

from itertools import product

import pytest
from selenium.webdriver.common.by import By

from explore.compare.report import report
from tests.explore.compare.fake_runs import DEFAULT, fake_grid, fake_run

EVIL = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">'\"&<!--script-->"


@pytest.fixture
def opened(watched, tmp_path):
    """Reports on runs and opens the page."""

    def open_report(name: str = "demo"):
        report(name, out=str(tmp_path))
        watched.get((tmp_path / "reports" / name / "report.html").as_uri())
        assert watched.execute_script("return document.documentElement.dataset.ready") == "yes"
        return watched

    return open_report


def column(driver, table: int, title: str) -> list[str]:
    script = """const table = document.querySelectorAll("table")[arguments[0]];
        const i = [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent === arguments[1]);
        return [...table.tBodies[0].rows].map((row) => row.cells[i].textContent)"""
    return driver.execute_script(script, table, title)


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize(
    "axes",
    [
        {},
        {"norm": [letter * 70 for letter in "abcd"], "random_seed": [0, 1]},
        {"positions": ["learned", "rotary"], "lr": [1e-3, 3e-3], "random_seed": [0, 1, 2, 3, 4]},
        {
            "positions": ["learned", "sin", "rotary", "alibi", "none"],
            "dim": [64, 128, 256, 512, 1024],
            "lr": [3e-4, 1e-3, 3e-3, 1e-2],
            "random_seed": [0, 1, 2, 3, 4],
        },
    ],
    ids=["1 run", "long names", "20 runs", "500 runs"],
)
def test_the_page_fits_a_window_and_draws_inside_its_plots(opened, tmp_path, axes):
    fake_grid(tmp_path, **axes)
    driver = opened()
    assert (tmp_path / "reports" / "demo" / "report.html").stat().st_size < 2e6
    assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    plots = driver.find_elements(By.TAG_NAME, "svg")
    assert len(plots) >= 2
    # A title is as wide as it is; no label leaves its plot, no two of an axis touch.
    outside = driver.execute_script("""return [...document.querySelectorAll("svg")].flatMap((svg) => {
        const frame = svg.getBoundingClientRect();
        return [...svg.querySelectorAll("text")].filter((text) => {
          const box = text.getBoundingClientRect();
          return box.left < frame.left - 1 || box.right > frame.right + 12 || box.bottom > frame.bottom + 1;
        }).map((text) => text.textContent) })""")
    assert outside == []
    touching = driver.execute_script("""return [...document.querySelectorAll("svg")].flatMap((svg) => {
        const boxes = [...svg.querySelectorAll("text.tick[text-anchor=middle]")].map((text) => text.getBoundingClientRect());
        return boxes.slice(1).filter((box, i) => box.left < boxes[i].right).map((box) => box.left) })""")
    assert touching == []


@pytest.mark.slow
@pytest.mark.ci
def test_a_steep_curve_is_cut_off_at_its_plot(opened, tmp_path):
    """Where the loss falls from far above the plot, a screen point above the plot shows no part of the curve."""
    fake_grid(tmp_path, n_points=3, random_seed=[0, 1])
    driver = opened()
    above = driver.execute_script("""
        const frames = [...document.querySelectorAll("svg svg")];
        const lines = frames.flatMap((frame) => [...frame.querySelectorAll("polyline, path, polygon")]);
        document.documentElement.style.scrollBehavior = "auto";
        return lines.filter((line) => {
          line.closest("svg").scrollIntoView({ block: "end" });
          const box = line.getBoundingClientRect(), frame = line.closest("svg").parentNode.getBoundingClientRect();
          const y = frame.top - 5;
          for (let x = box.left; x <= box.right; x += 0.5)
            if (document.elementsFromPoint(x, y).includes(line)) return true;
          return false;
        }).length""")
    assert above == 0


@pytest.mark.slow
@pytest.mark.ci
def test_markup_in_texts_of_runs_does_nothing(opened, tmp_path):
    for number, (seed, lr, text) in enumerate(product((0, 1), (1e-3, 1e-2), ("char", EVIL))):
        own = {"task_args": {"kind": text}, "norm": EVIL, "positions": text, "tokenizer_source_name": text}
        params = DEFAULT.changed(random_seed=seed, lr=lr, **own)
        fake_run(tmp_path, "demo", number, params, val_loss=3.0 + seed / 10, sample=EVIL, leak=EVIL)
    fake_run(tmp_path, "demo", 9, DEFAULT.changed(random_seed=9), stopped=f"failed: {EVIL}", val_loss=9.0)
    driver = opened()
    assert driver.title == "Report: demo"
    assert driver.find_elements(By.TAG_NAME, "img") == []
    assert len(driver.find_elements(By.TAG_NAME, "script")) == 1
    assert driver.find_element(By.TAG_NAME, "pre").text == EVIL
    text = driver.find_element(By.TAG_NAME, "body").text
    assert text.count(EVIL) >= 5


def test_a_name_with_markup_is_only_a_name(opened, tmp_path):
    name = "<b onclick=1>&"
    fake_grid(tmp_path, name, random_seed=[0, 1])
    driver = opened(name)
    assert driver.find_element(By.TAG_NAME, "h1").text == name


@pytest.mark.slow
@pytest.mark.ci
def test_tables_sort_by_numbers_and_by_text(opened, tmp_path):
    fake_grid(tmp_path, positions=["rotary", "learned", "none"], dim=[64, 1024], random_seed=[0, 1, 2])
    driver = opened()
    dims = column(driver, 0, "dim")
    assert sorted(dims) != sorted(dims, key=int)
    headers = {
        cell.text: cell for cell in driver.find_elements(By.CSS_SELECTOR, "table:first-of-type th")[:9]
    }
    headers["dim"].click()
    assert column(driver, 0, "dim") == ["64"] * 3 + ["1024"] * 3
    headers["dim"].click()
    assert column(driver, 0, "dim") == ["1024"] * 3 + ["64"] * 3
    headers["positions"].click()
    assert column(driver, 0, "positions") == ["learned"] * 2 + ["none"] * 2 + ["rotary"] * 2
    headers["difference"].click()
    values = [cell.replace("−", "-") for cell in column(driver, 0, "difference")]
    assert values[-1] == "–", "what is missing comes last"
    assert [float(value) for value in values[:-1]] == sorted(float(value) for value in values[:-1])
