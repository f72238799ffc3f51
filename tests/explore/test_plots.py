"""Figures show the numbers they are made of, are saved where they should be, and are not left open."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import model_explorer
from data.tokenizer import char_tokenizer
from explore.inspection.patterns import Patterns
from explore.plots import draw_attentions, head_film
from model.lm import LM
from model.model_params import ModelParams
from tests.explore.test_load import FIRST, SECOND, edit_json, folder_of


@pytest.fixture(autouse=True)
def nothing_left_open():
    yield
    assert plt.get_fignums() == []


@pytest.fixture
def lm():
    torch.manual_seed(0)
    params = ModelParams(dim=8, n_layers=2, n_heads=4, max_seq_len=20, tied_embeddings=False)
    return LM(params, char_tokenizer("abcde $"))


def lines_of(ax):
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in ax.get_lines()}


def test_metrics_are_drawn_over_trained_samples(root):
    figure = model_explorer.plot_metrics(FIRST, "stat/val_loss:main", out=str(root))
    [ax] = figure.axes
    assert lines_of(ax) == {FIRST: ([0, 8, 16, 24, 32], [4.0 - step / 8 for step in range(5)])}
    assert ax.get_xlabel() == "trained samples"
    assert not (root / "metrics").exists()


def test_several_runs_and_metrics_share_a_figure(root, capsys):
    metrics = ["stat/val_loss:main", "stat/lr"]
    figure = model_explorer.plot_metric([FIRST, SECOND], metrics, filename="both", out=str(root))
    assert [set(lines_of(ax)) for ax in figure.axes] == [{"dim=8", "dim=16"}, {"dim=8", "dim=16"}]
    assert [ax.get_ylabel() for ax in figure.axes] == ["val_loss:main", "lr"]
    assert lines_of(figure.axes[0])["dim=16"][1][4] == 4.0 - 4 / 16
    assert (root / "metrics" / "both.png").read_bytes().startswith(b"\x89PNG")
    assert str(root / "metrics" / "both.png") in capsys.readouterr().out


def with_seeds(root, *seeds: int) -> list[str]:
    """Copy the first run for each seed, whose losses are higher by the seed. Return the timestamps of all."""
    found = [FIRST]
    for seed in seeds:
        timestamp = f"2024-04-22--16-18-{seed:02}"
        path = Path(shutil.copytree(folder_of(root), folder_of(root, timestamp)))
        edit_json(path / "params.json", "train", "random_seed", value=seed)
        stats = json.loads((path / "stats.json").read_text())
        for stat in stats["stat/val_loss:main"]:
            stat[3] += seed
        (path / "stats.json").write_text(json.dumps(stats))
        found.append(timestamp)
    return found


def test_runs_that_differ_in_the_seed_are_one_line_with_a_band(root):
    same = with_seeds(root, 1, 2)
    figure = model_explorer.plot_metrics([*same, SECOND], "val_loss", out=str(root))
    [ax] = figure.axes
    assert list(lines_of(ax)) == ["dim=8, 3 seeds", "dim=16"]
    x, y = lines_of(ax)["dim=8, 3 seeds"]
    assert x == [0, 8, 16, 24, 32]
    assert y == pytest.approx([5.0 - step / 8 for step in range(5)])
    [band] = ax.collections
    heights = band.get_paths()[0].vertices[:, 1]
    margin = 4.302653 / 3**0.5  # Student's t of two degrees of freedom, times a standard deviation of 1
    assert (heights.min(), heights.max()) == pytest.approx((4.5 - margin, 5 + margin))
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["dim=8, 3 seeds", "dim=16"]
    assert ax.get_legend() is None
    figure.savefig(root / "loss.png")  # lays it out
    assert legend.get_window_extent().x0 >= ax.get_window_extent().x1 - 1  # outside
    plt.close(figure)
    [ax] = model_explorer.plot_metrics(same, out=str(root)).axes
    assert list(lines_of(ax)) == ["3 seeds"]
    assert ax.get_title() == "3 seeds"


def test_runs_that_differ_in_nothing_are_named_by_their_timestamps(root):
    [again] = with_seeds(root, 3)[1:]
    edit_json(folder_of(root, again) / "params.json", "train", "random_seed", value=0)
    figure = model_explorer.plot_metrics([FIRST, again, SECOND], out=str(root))
    assert list(lines_of(figure.axes[0])) == [f"dim=8 {FIRST}", f"dim=8 {again}", "dim=16"]


def test_axes_and_smoothing_are_arguments(root):
    figure = model_explorer.plot_metrics(FIRST, "loss", out=str(root), x="steps", log="xy", smooth=2)
    [ax] = figure.axes
    x, y = lines_of(ax)[FIRST]
    assert x == [0, 1, 2, 3, 4]
    assert y == pytest.approx([4.0, *(4.0 - (2 * step - 1) / 16 for step in range(1, 5))])
    assert (ax.get_xlabel(), ax.get_xscale(), ax.get_yscale()) == ("steps", "log", "log")
    for wrong in ({"x": "hours"}, {"log": "z"}, {"smooth": 0}):
        with pytest.raises(
            ValueError, match="x must be one of samples, steps, tokens, flops, seconds, log one of"
        ):
            model_explorer.plot_metrics(FIRST, out=str(root), **wrong)


def with_totals(root, timestamp: str, seconds: float) -> None:
    """Let a run of 4 steps and 32 samples have 320 tokens, 3,200 FLOPs, and `seconds`, half of them in its first step."""
    path = folder_of(root, timestamp)
    totals = {"steps": 4, "trained_samples": 32, "trained_tokens": 320, "flops": 3200}
    for name, value in (totals | {"tokens_per_second": 320 / seconds}).items():
        edit_json(path / "about.json", "summary", name, value=value)
    stats = json.loads((path / "stats.json").read_text())
    stats["stat/train_seconds"] = [[1, 8, 99, seconds / 2]]
    (path / "stats.json").write_text(json.dumps(stats))


def test_metrics_are_drawn_over_tokens_flops_and_seconds(root):
    for timestamp, seconds in zip(with_seeds(root, 1), (6.0, 12.0), strict=True):
        with_totals(root, timestamp, seconds)
    for axis, expected in {"tokens": 80, "flops": 800}.items():
        [ax] = model_explorer.plot_metrics(FIRST, "loss", out=str(root), x=axis).axes
        assert lines_of(ax)[FIRST][0] == pytest.approx([expected * step for step in range(5)])
    [ax] = model_explorer.plot_metrics(FIRST, "loss", out=str(root), x="seconds").axes
    assert lines_of(ax)[FIRST][0] == pytest.approx([0, 3, 4, 5, 6])
    assert ax.get_xlabel() == "seconds of training"
    again = [FIRST, "2024-04-22--16-18-01"]
    [ax] = model_explorer.plot_metrics(again, "loss", out=str(root), x="seconds").axes
    assert lines_of(ax)["2 seeds"][0] == pytest.approx([0, 4.5, 6, 7.5, 9]), "the mean of both runs"
    with pytest.raises(ValueError, match=f"{SECOND} has no record of its flops"):
        model_explorer.plot_metrics(SECOND, "loss", out=str(root), x="flops")


@pytest.mark.parametrize("kind", ["svg", "pdf"])
def test_figures_for_papers_fit_a_column(root, kind):
    figure = model_explorer.plot_metrics([FIRST, SECOND], filename=f"loss.{kind}", out=str(root))
    assert (root / "metrics" / f"loss.{kind}").exists()
    assert figure.get_figwidth() == 3.25
    figure = model_explorer.plot_metrics(FIRST, filename=f"wide.{kind}", out=str(root), width=5.5)
    assert figure.get_figwidth() == 5.5


@pytest.mark.parametrize("typed", ["stat/val_loss:main", "val_loss:main", "val_loss", "loss"])
def test_a_metric_may_be_named_as_people_type_it(root, typed):
    figure = model_explorer.plot_metrics("latest", typed, out=str(root))
    assert lines_of(figure.axes[0]) == {SECOND: ([0, 8, 16, 24, 32], [4.0 - step / 16 for step in range(5)])}


def test_the_load_of_experts_has_a_panel_for_each_layer(root):
    path = folder_of(root) / "stats.json"
    stats = json.loads(path.read_text())
    for layer in (1, 3):
        for expert in range(2):
            loads = [[step, 8 * step, 100 + step, 1 + layer * expert] for step in range(3)]
            stats[f"stat/expert_load:layers.{layer}.{expert}"] = loads
    path.write_text(json.dumps(stats))
    figure = model_explorer.plot_expert_load(FIRST, filename="load", out=str(root))
    assert [ax.get_ylabel() for ax in figure.axes] == ["load in layer 1", "load in layer 3"]
    assert lines_of(figure.axes[1]) == {"0": ([0, 8, 16], [1, 1, 1]), "1": ([0, 8, 16], [4, 4, 4])}
    assert (root / "metrics" / "load.png").exists()
    with pytest.raises(ValueError, match=f"{SECOND} has no expert_load: none of its layers has n_experts"):
        model_explorer.plot_expert_load(SECOND, out=str(root))


def test_a_wrong_metric_or_run_is_named(root):
    with pytest.raises(ValueError, match=f"{FIRST} has no metric 'val_los'; did you mean 'val_loss'"):
        model_explorer.plot_metrics(FIRST, "val_los", out=str(root))
    with pytest.raises(ValueError, match=f"{FIRST} has no metric 'stat/lrr'; did you mean 'stat/lr'"):
        model_explorer.plot_metrics(FIRST, "stat/lrr", out=str(root))
    with pytest.raises(ValueError, match="nearest"):
        model_explorer.plot_metrics([FIRST, "2024"], out=str(root))


def test_show_lm_attns_returns_logits_and_all_patterns(lm):
    out_embeds, attns = model_explorer.show_lm_attns(lm, "abc", layers=[1], heads=[0, 2])
    assert torch.equal(out_embeds, lm("abc"))
    assert torch.equal(attns, lm("abc", get_attns=True)["attns"])
    assert attns.shape == (1, 2, 4, 4, 4)
    for same in (lm.tokenizer("abc"), torch.Tensor(lm.tokenizer("abc")), torch.tensor([lm.tokenizer("abc")])):
        assert torch.equal(model_explorer.show_lm_attns(lm, same)[1], attns)


def test_show_lm_attns_saves_one_figure(lm, tmp_path, capsys):
    model_explorer.show_lm_attns(
        lm, "a $b$ c", layers=[0], heads=[0, 3], folder_name="demo", out=str(tmp_path)
    )
    [path] = (tmp_path / "attentions" / "demo").iterdir()
    assert path.name == "layers-0--heads-0-3.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert str(path) in capsys.readouterr().out
    model_explorer.show_lm_attns(lm, "a", folder_name="paper", out=str(tmp_path), file_type="pdf")
    [path] = (tmp_path / "attentions" / "paper").iterdir()
    assert path.read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"layers": [2]}, r"layers=\[2\]: there are patterns of 0, 1"),
        ({"heads": [0, -1]}, r"heads=\[0, -1\]: there are patterns of 0, 1, 2, 3"),
        ({"heads": []}, r"heads=\[\]: there are patterns of 0, 1, 2, 3"),
    ],
)
def test_unknown_layers_and_heads_are_refused(lm, arguments, told):
    with pytest.raises(ValueError, match=told):
        model_explorer.show_lm_attns(lm, "abc", **arguments)


def test_only_one_sequence_of_a_model_with_attention_is_shown(lm):
    with pytest.raises(ValueError, match="one sequence, but the input is a batch of 2"):
        model_explorer.show_lm_attns(lm, torch.ones(2, 3))
    rnn = LM(
        ModelParams(dim=8, n_layers=1, layer_architecture="torch-lstm", positions="none"),
        char_tokenizer("abc"),
    )
    with pytest.raises(ValueError, match="layer_architecture='torch-lstm'"):
        model_explorer.show_lm_attns(rnn, "abc")


def causal(n_layers: int, n_heads: int, n_tokens: int) -> np.ndarray:
    scores = torch.randn(n_layers, n_heads, n_tokens, n_tokens, generator=torch.Generator().manual_seed(0))
    return scores.masked_fill(torch.ones(n_tokens, n_tokens).triu(1) > 0, -torch.inf).softmax(-1).numpy()


def patterns_of(attns_LHTS: np.ndarray, tokens=None) -> Patterns:
    tokens = list(tokens or "abcde"[: attns_LHTS.shape[-1]])
    return Patterns(tokens, dict(enumerate(attns_LHTS)), len(attns_LHTS))


def shown_in(ax) -> np.ndarray:
    """Return the drawn part of the pattern: keys up to the query."""
    return ax.get_images()[0].get_array()


def test_every_selected_head_is_drawn_in_its_place_on_one_scale():
    attns_LHTS = causal(3, 4, 5)
    figure = draw_attentions(patterns_of(attns_LHTS), layers=[0, 2], heads=[3, 1])
    for ax, (layer, head) in zip(figure.axes, [(0, 3), (0, 1), (2, 3), (2, 1)], strict=True):
        [image] = ax.get_images()
        np.testing.assert_array_equal(shown_in(ax).filled(0), attns_LHTS[layer, head])
        np.testing.assert_array_equal(shown_in(ax).mask, np.triu(np.ones((5, 5)), 1) > 0)
        assert image.get_clim() == (0, 1)
    assert [ax.get_title() for ax in figure.axes] == ["head 3", "head 1", "", ""]
    plt.close(figure)


def test_attention_to_the_future_is_not_hidden():
    attns_LHTS = causal(1, 1, 4)
    attns_LHTS[0, 0, 1, 3] = 1e-9
    figure = draw_attentions(patterns_of(attns_LHTS), [0], [0])
    leak = figure.axes[0].get_images()[1]
    assert np.argwhere(~leak.get_array().mask).tolist() == [[1, 3]]
    red, green, blue, opacity = leak.cmap(leak.norm(1e-9))
    assert opacity == 1
    assert red > max(green, blue) + 0.3
    plt.close(figure)


def test_weights_below_0_have_a_color_of_their_own():
    attns_LHTS = causal(1, 1, 4)
    attns_LHTS[0, 0, 2, 1] = -0.5
    figure = draw_attentions(patterns_of(attns_LHTS), [0], [0])
    [image] = figure.axes[0].get_images()
    assert image.cmap(image.norm(-0.5)) != image.cmap(image.norm(0))
    plt.close(figure)


def test_layers_without_patterns_are_left_out(tmp_path, monkeypatch):
    kinds = ("gated-conv", "custom-transformer")
    params = ModelParams(dim=8, n_layers=4, n_heads=4, n_kv_heads=2, layer_architecture=kinds)
    lm, drawn = LM(params, char_tokenizer("abc")), []
    monkeypatch.setattr("explore.plots.show", lambda figure, is_result: drawn.append(figure))
    _, attns = model_explorer.show_lm_attns(lm, "abc")
    grid = np.array(drawn[0].axes).reshape(2, 4)
    assert [ax.get_ylabel() for ax in grid[:, 0]] == ["layer 1: query", "layer 3: query"]
    for row, attns_HTS in zip(grid, attns[0], strict=True):
        for ax, attns_TS in zip(row, attns_HTS, strict=True):
            np.testing.assert_array_equal(shown_in(ax).filled(0), attns_TS)
    with pytest.raises(ValueError, match=r"layers=\[0\]: there are patterns of 1, 3"):
        model_explorer.show_lm_attns(lm, "abc", layers=[0])
    plt.close(drawn[0])


@pytest.mark.parametrize("n_heads", [1, 4])
@pytest.mark.parametrize("tokens", [["<bos>", "antidisestablishment", "a", "b"], None])
def test_attention_patterns_fit_a_column_of_a_paper(n_heads, tokens):
    figure = draw_attentions(patterns_of(causal(2, n_heads, 4), tokens), [0, 1], range(n_heads), width=3.25)
    assert figure.get_figwidth() == 3.25
    figure.canvas.draw()
    for ax in figure.axes:
        box = ax.get_tightbbox(figure.canvas.get_renderer())
        assert box.x0 >= figure.bbox.x0 - 1
        assert box.x1 <= figure.bbox.x1 + 1
    plt.close(figure)


def checkpoints(n: int) -> list[tuple[int, LM]]:
    models = []
    for step in range(n):
        torch.manual_seed(step)
        models.append((1000 * step, LM(ModelParams(dim=8, n_layers=2, n_heads=2), char_tokenizer("abc"))))
    return models


def test_a_film_has_a_panel_for_each_step(tmp_path):
    steps = checkpoints(8)
    figure = head_film(iter(steps), "abc", layer=1, head=0, filename="film", out=str(tmp_path))
    panels = [ax for ax in figure.axes if ax.get_images()]
    assert [ax.get_title() for ax in panels] == [
        "step 0",
        "step 1,000",
        *(f"step {n},000" for n in range(2, 8)),
    ]
    for ax, (_, lm) in zip(panels, steps, strict=True):
        pattern = lm("abc", get_attns=True)["attns"][0, 1, 0].detach()
        np.testing.assert_array_equal(shown_in(ax).filled(0), pattern)
    assert panels[0].get_ylabel() == "layer 1, head 0: query"
    assert (tmp_path / "attentions" / "film.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("layer", "head", "told"),
    [(2, 0, r"layer=\[2\]: there are patterns of 0, 1"), (0, 2, r"head=\[2\]: there are patterns of 0, 1")],
)
def test_a_film_of_an_unknown_head_is_refused(layer, head, told):
    with pytest.raises(ValueError, match=told):
        head_film(checkpoints(2), "abc", layer, head)


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize(
    ("n_layers", "n_heads", "n_tokens", "named"),
    [(2, 4, 8, True), (12, 12, 8, True), (1, 1, 64, True), (2, 4, 64, False)],
)
def test_tokens_are_named_at_the_edges_where_they_fit(n_layers, n_heads, n_tokens, named):
    tokens = ["<bos>", "·a", "$\\x$", "antidisestablishment"] * (n_tokens // 4)
    patterns = patterns_of(causal(n_layers, n_heads, n_tokens), tokens)
    figure = draw_attentions(patterns, range(n_layers), range(n_heads))
    grid = np.array(figure.axes).reshape(n_layers, n_heads)
    assert (
        [text.get_text() for text in grid[0, 0].get_yticklabels()][:4]
        == ["<bos>", "·a", "$\\x$", "antidisestab…"]
    ) == named
    assert ([text.get_text() for text in grid[-1, -1].get_xticklabels()][:2] == ["<bos>", "·a"]) == named
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    edges = figure.bbox
    for ax in (grid[0, 0], grid[-1, -1]):  # nothing is cut off
        box = ax.get_tightbbox(renderer)
        assert box.x0 >= edges.x0
        assert box.y0 >= edges.y0
        assert box.x1 <= edges.x1
        assert box.y1 <= edges.y1
    for labels, side in (
        (grid[0, 0].get_yticklabels(), 1),
        (grid[-1, 0].get_xticklabels(), 0),
    ):  # nor do names overlap
        spans = sorted(label.get_window_extent(renderer).get_points()[:, side].tolist() for label in labels)
        assert all(left[1] <= right[0] + 1 for left, right in pairwise(spans))
    plt.close(figure)
