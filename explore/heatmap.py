"""Heat maps of inspection's results: a page with hover for notebooks, and a figure for papers.

The templates and scripts of the page are in page/.

Shape suffixes:  R row of a panel  C column of a panel
"""

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from explore.html import Page, fill_template, save_html
from explore.inspection.tables import HeatPanel, heat_panels, is_one_sided, logit_lens_panel, tokens_of
from explore.plots import DARK_SHARE, column_width, draw_heatmap, save_figure
from model.inputs import Input
from model.lm import LM

ROW_PIXELS = 22
MAX_CELLS = 200_000  # of one page


class HeatMap(Page):
    """Panels of numbers as colors. A notebook shows the page as a cell's value."""

    def __init__(self, panels: Sequence[HeatPanel], title: str, center: float) -> None:
        n_cells = sum(panel.values_RC.size for panel in panels)
        if n_cells > MAX_CELLS:
            raise ValueError(
                f"a heat map of {n_cells:,} cells is too large for a browser (at most {MAX_CELLS:,})"
            )
        self.panels, self.center = list(panels), center
        self.limit = limit_of(panels, center)
        super().__init__(self.fill_page(title), title or "Heat map")
        longest = max(max(map(len, panel.columns), default=0) for panel in panels)
        self.height = 110 + 8 * longest + ROW_PIXELS * max(len(panel.rows) for panel in panels)

    def fill_page(self, title: str) -> str:
        one_sided = is_one_sided(self.panels, self.center)
        data = {"center": self.center, "limit": self.limit, "one_sided": one_sided}
        values = {
            "title": escape(title or "Heat map"),
            "heading": escape(title),
            "data": json.dumps(data, allow_nan=False),
            "panels": "".join(self.table_of(panel) for panel in self.panels),
        }
        return fill_template("heatmap.html", ["heatmap.js"], values)

    def table_of(self, panel: HeatPanel) -> str:
        """Return the HTML of a panel. The script reads the names of a cell in its row and its column."""
        head = "".join(
            f'<th scope="col"><span><bdi>{escape(name)}</bdi></span></th>' for name in panel.columns
        )
        texts = panel.texts or [[""] * len(panel.columns)] * len(panel.rows)
        rows = "".join(
            f'<tr><th scope="row"><bdi>{escape(name)}</bdi></th>'
            f"{''.join(map(self.cell_of, values_C.tolist(), shown))}</tr>"
            for name, values_C, shown in zip(panel.rows, panel.values_RC, texts, strict=True)
        )
        kind = ' class="texts"' if panel.texts else ""
        caption = f"<caption>{escape(panel.title)}</caption>" if panel.title else ""
        return f"<table{kind}>{caption}<thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table>"

    def cell_of(self, value: float, text: str) -> str:
        if not np.isfinite(value):
            shown = "no value" if np.isnan(value) else str(value)
            return f'<td class="none" data-v="{shown}"></td>'
        share = min(1.0, abs(value - self.center) / self.limit)
        kind = "up" if value >= self.center else "down"
        # Texts change their color where it would not contrast any more.
        kind += " full" if share > DARK_SHARE else " strong" if share > 0.55 else ""
        shown = f"<bdi>{escape(text)}</bdi>" if text else ""
        return f'<td class="{kind}" style="--a:{share:.3g}" data-v="{value:.4g}">{shown}</td>'

    def save(self, path: str | Path, width: float | None = None) -> None:
        """Save the page as .html, or a figure as .png, .svg or .pdf.

        `width` is in inches; by default .svg and .pdf fit a column of a paper.
        """
        path = Path(path)
        if path.suffix == ".html":
            save_html(self, path)
            return
        width = width or column_width(path.name)
        save_figure(draw_heatmap(self.panels, self.center, self.limit, self.title, width), path)


def limit_of(panels: Sequence[HeatPanel], center: float) -> float:
    """Return the largest distance of a value from the center, which has the strongest color."""
    distances = [np.abs(panel.values_RC - center) for panel in panels]
    finite = np.concatenate([distance[np.isfinite(distance)] for distance in distances])
    return float(finite.max()) if finite.size and finite.max() > 0 else 1.0


def heatmap(
    result: pd.DataFrame | pd.Series | Tensor | np.ndarray,
    lm: LM | None = None,
    sample: Input | None = None,
    *,
    title: str = "",
    center: float | None = None,
) -> HeatMap:
    """Return a result of inspection as a heat map. A notebook shows it; its `save` writes .html, .png, .svg or .pdf.

    `result` is that of logit_lens, direct_logit_attribution, activation_patching, ablate, head_scores, detect_heads,
    composition_scores, loss_by_position or any other table of numbers. Logits [1, layers, T, V] also need `lm` and
    `sample`: each cell shows the most likely token. With `lm` and `sample`, the columns of other tables with T columns
    are tokens, too. Colors diverge around `center`: 0, and for activation patching the metric without a patch.
    Raise ValueError for a result without numbers.
    """
    tokens = tokens_of(lm, sample) if lm is not None and sample is not None else None
    if isinstance(result, Tensor | np.ndarray) and result.ndim == 4:
        if lm is None or tokens is None:
            raise ValueError(
                "heatmap: logits of the logit lens need the model and the sample: heatmap(lens, lm, text)"
            )
        panels = [logit_lens_panel(Tensor(result) if isinstance(result, np.ndarray) else result, lm, tokens)]
    else:
        panels = heat_panels(result)
        if tokens is not None:
            panels = [
                panel._replace(columns=tokens) if len(panel.columns) == len(tokens) else panel
                for panel in panels
            ]
    if center is None:
        attrs = result.attrs if isinstance(result, pd.DataFrame | pd.Series) else {}
        center = float(attrs.get("center", 0.0))
    return HeatMap(panels, title, center)
