"""Heat maps show the numbers of a result under the names of layers, heads and tokens, and obey no token."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By

from explore.heatmap import heatmap
from explore.inspection.analysis import ablate, activation_patching, direct_logit_attribution, logit_lens
from explore.inspection.circuits import composition_scores
from explore.inspection.scores import head_scores, loss_by_position, over_checkpoints
from tests.explore.inspection.test_page import CONTRASTS, EVIL
from tests.model.tiny import tiny_lm

HEADS = [f"layer {layer}, head {head}" for layer in (0, 1) for head in (0, 1)]


@pytest.fixture
def lm():
    return tiny_lm(max_seq_len=20)


def only_panel(result, *others):
    [panel] = heatmap(result, *others).panels
    return panel


def test_the_logit_lens_shows_the_most_likely_token_of_each_layer(lm):
    lens = logit_lens(lm, "hello")
    panel = only_panel(lens, lm, "hello")
    assert (panel.rows, panel.columns) == (["layer 0", "layer 1"], ["<", *"hello"])
    probs, ids = lens[0].softmax(-1).max(-1)
    np.testing.assert_allclose(panel.values_RC, probs)
    assert panel.texts == [lm.tokenizer.tokens(row) for row in ids.tolist()]
    with pytest.raises(ValueError, match=r"need the model and the sample: heatmap\(lens, lm, text\)"):
        heatmap(lens)
    with pytest.raises(ValueError, match="need one sequence, and a sample of 6 tokens"):
        heatmap(lens, lm, "hell")


def test_attributions_have_a_row_for_each_layer(lm):
    parts = direct_logit_attribution(lm, "hello")
    panel = only_panel(parts)
    assert panel.title == f"contributions to the logit of {parts.name}"
    assert panel.rows == ["embed", "layer 0", "layer 1", "final norm"]
    assert panel.columns == ["head 0", "head 1", "attention bias", "MLP", "all"]
    of = pd.DataFrame(panel.values_RC, panel.rows, panel.columns)
    assert of.loc["layer 1", "head 1"] == parts["layers.1.head_out.1"]
    assert of.loc["layer 0", "MLP"] == parts["layers.0.mlp_out"]
    assert of.loc["final norm", "all"] == parts["final_norm"]
    assert np.nansum(panel.values_RC) == pytest.approx(parts.sum())
    rnn = tiny_lm(layer_architecture="torch-gru", positions="none")
    assert only_panel(direct_logit_attribution(rnn, "ab")).columns == ["layer", "all"]


def test_patching_has_tokens_and_diverges_around_the_unpatched_metric(lm):
    def metric(logits):
        return logits[0, -1].log_softmax(-1)[9]

    table = activation_patching(lm, "hello", "jelly", metric)
    page = heatmap(table)
    [panel] = page.panels
    assert (panel.rows, panel.columns) == (["layer 0", "layer 1"], ["<", "h/j", "e", "l", "l", "o/y"])
    np.testing.assert_array_equal(panel.values_RC, table)
    assert page.center == pytest.approx(metric(lm("jelly")).item())
    assert page.limit == pytest.approx(np.abs(table.to_numpy() - page.center).max())
    assert only_panel(activation_patching(lm, "hello", "jelly", metric, "z")).rows == HEADS


def test_results_by_head_are_grids_of_layers_and_heads(lm):
    rises = ablate(lm, ["hello", "abc"])
    panel = only_panel(rises)
    assert (panel.title, panel.rows, panel.columns) == (
        "zero z",
        ["layer 0", "layer 1"],
        ["head 0", "head 1"],
    )
    np.testing.assert_array_equal(panel.values_RC, rises.unstack())
    assert only_panel(ablate(lm, ["hello"], "mlp_out")).rows == ["layer 0", "layer 1"]
    scores = head_scores(lm)
    panels = heatmap(scores).panels
    assert [panel.title for panel in panels] == ["previous_token", "duplicate_token", "induction"]
    np.testing.assert_array_equal(panels[2].values_RC, scores["induction"].unstack())
    table = composition_scores(lm, "Q")
    panel = only_panel(table)
    assert (panel.title, panel.rows, panel.columns) == ("rows write, columns read (Q)", HEADS, HEADS)
    over = over_checkpoints(head_scores, [(0, lm), (100, lm)])["induction"].unstack(["layer", "head"])
    panel = only_panel(over)
    assert (panel.rows, panel.columns) == (["step 0", "step 100"], HEADS)


def test_losses_by_position_and_any_numbers(lm):
    table = loss_by_position(lm, ["hello", "abc"])
    panel = only_panel(table)
    assert (panel.rows, panel.columns) == (["loss"], ["1", "2", "3", "4", "5"])
    np.testing.assert_array_equal(panel.values_RC[0], table["loss"])
    numbers = torch.arange(6.0).reshape(2, 3)
    assert only_panel(numbers).rows == ["0", "1"]
    assert only_panel(numbers, lm, "ab").columns == ["<", "a", "b"]
    page = heatmap(numbers, center=2)
    assert page.limit == 3
    cells = re.findall(r'<td class="(\w+)[^"]*" style="--a:([\d.]+)" data-v="(\d)"', page.html)
    shares = ["0.667", "0.333", "0", "0.333", "0.667", "1"]
    assert cells == [("up" if i >= 2 else "down", share, str(i)) for i, share in enumerate(shares)]
    with pytest.raises(ValueError, match="has no numbers"):
        heatmap(pd.DataFrame({"token": ["a"]}))
    with pytest.raises(TypeError, match="must be a table, a Series or a tensor, not list"):
        heatmap([1, 2])


@pytest.mark.parametrize("kind", ["png", "svg", "pdf", "html"])
def test_a_heat_map_is_saved_as_a_page_or_a_figure(lm, kind, tmp_path, capsys):
    page = heatmap(logit_lens(lm, "hello"), lm, "hello", title="$a$ <b>")
    path = tmp_path / "new" / f"lens.{kind}"
    page.save(path)
    assert str(path) in capsys.readouterr().out
    begins = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF", "html": b"<!doctype html>"}
    assert path.read_bytes().startswith(begins[kind])
    assert plt.get_fignums() == []
    if kind == "svg":  # as wide as a column of a paper
        width = re.search(r'width="([\d.]+)pt"', path.read_text(encoding="utf-8"))
        assert 200 < float(width[1]) < 260


@pytest.fixture
def opened(watched, tmp_path):
    """Opens a heat map."""

    def open_map(page):
        path = tmp_path / "map.html"
        path.write_text(page.html, encoding="utf-8")
        watched.get(path.as_uri())
        return watched

    return open_map


def tip(driver) -> list[str]:
    return driver.find_element(By.ID, "tip").text.splitlines()


def test_hover_and_arrow_keys_name_a_cell_and_its_value(opened):
    index = pd.MultiIndex.from_product([[0, 3], [0, 1]], names=["layer", "head"])
    driver = opened(heatmap(pd.Series([0.5, -0.25, 1.0, np.nan], index, name="scores"), title="<i>all</i>"))
    assert driver.title == "<i>all</i>"
    assert driver.find_element(By.TAG_NAME, "h1").text == "<i>all</i>"
    assert driver.find_element(By.ID, "scale").text.split() == ["-1", "1"]
    cells = driver.find_elements(By.CSS_SELECTOR, "tbody td")
    ActionChains(driver, duration=0).move_to_element(cells[1]).perform()
    assert tip(driver) == ["-0.25", "layer 0", "head 1"]
    assert [name.text for name in driver.find_elements(By.CSS_SELECTOR, "th.on")] == ["head 1", "layer 0"]
    colors = [cell.value_of_css_property("background-color") for cell in cells]
    assert len(set(colors)) == 4
    driver.execute_script("document.querySelector('tbody td').focus()")
    assert tip(driver) == ["0.5", "layer 0", "head 0"]
    ActionChains(driver).send_keys(Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT).perform()
    assert tip(driver) == ["no value", "layer 3", "head 1"]
    ActionChains(driver, duration=0).move_to_element(driver.find_element(By.TAG_NAME, "h1")).perform()
    assert not driver.find_element(By.ID, "tip").is_displayed()


def test_markup_in_names_and_texts_does_nothing(opened):
    table = pd.DataFrame(np.eye(len(EVIL)), EVIL, EVIL)
    page = heatmap(table, title=EVIL[0])
    [panel] = page.panels
    page.panels = [panel._replace(texts=[EVIL] * len(EVIL), title=EVIL[1])]
    page.html = page.fill_page(EVIL[0])
    driver = opened(page)
    assert driver.title == EVIL[0]
    assert driver.find_elements(By.CSS_SELECTOR, "img, iframe, b b, i i, table script") == []
    assert len(driver.find_elements(By.TAG_NAME, "script")) == 2
    ActionChains(driver, duration=0).move_to_element(
        driver.find_element(By.CSS_SELECTOR, "tbody td")
    ).perform()
    assert "title='hacked'" in driver.find_element(By.ID, "tip").text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_can_be_read_on_every_color(opened, lm, scheme):
    lens = torch.zeros(1, 1, 19, 30)
    lens[0, 0, :, 5] = torch.linspace(0, 9, 19)
    driver = opened(heatmap(lens, lm, "hello" * 3 + "abc", title="title"))
    driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    found = driver.execute_script(CONTRASTS.replace("color.match(/[\\d.]+/g).map(Number)", RGBA))
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert len(found) > 40
    assert [(text, contrast) for text, contrast in found if contrast < 4.4] == []


# Colors that are mixed come as "color(srgb 0.1 0.2 0.3)".
RGBA = "(color.startsWith('color') ? color.match(/[\\d.]+/g).map((x, i) => (i < 3 ? x * 255 : +x)) : color.match(/[\\d.]+/g).map(Number))"
