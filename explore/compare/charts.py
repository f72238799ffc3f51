"""Charts of a report as Vega specifications, with their data by name. No other file imports altair and vl_convert.

Texts in a specification that begin with @ are placeholders. The page fills in colors, names of groups and titles of axes. So
a specification is the same for all reports, and no text of a run is part of one.
"""

import math
import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

import altair as alt
import vl_convert

from explore.compare.parts import COLORS, GROUPS, X_TITLE, Y_TITLE

Spec = dict[str, Any]
AnyChart = alt.LayerChart | alt.FacetChart
CHART_HEIGHT = 330  # pixels of a chart
PAGE_FONT = "system-ui, sans-serif"
LEGEND = "group_legend"  # prefix of the mark names that Vega-Lite expects in a legend that can be clicked
INTERPRETER = "2.0.0"  # version of vega-interpreter in vl_convert
# The interpreter evaluates expressions without compiling them. A strict content security policy forbids compiling.
BUNDLE = """
import {{ parse, View, version }} from "https://cdn.jsdelivr.net/npm/vega@{vega}/+esm";
import {{ expressionInterpreter }} from "https://cdn.jsdelivr.net/npm/vega-interpreter@{interpreter}/+esm";
window.vega = {{ parse, View, version, expressionInterpreter }};
"""


@cache
def vega_script() -> str:
    """Return the JavaScript of Vega and its interpreter, which sets `window.vega`. It is a part of vl_convert."""
    snippet = BUNDLE.format(vega=vl_convert.get_vega_version(), interpreter=INTERPRETER)
    return vl_convert.javascript_bundle(snippet).replace("</script", "<\\/script")


@cache
def chart_specs() -> dict[str, Spec]:
    """Return the Vega specification of each kind of chart, by its name."""
    charts = {
        "curves": curve_chart("linear", "linear"),
        "curves-x": curve_chart("log", "linear"),
        "curves-y": curve_chart("linear", "log"),
        "curves-xy": curve_chart("log", "log"),
        "differences": difference_chart(),
        "cost": cost_chart(),
        "tuned": tuned_chart("ordinal"),
        "tuned-many": tuned_chart("quantitative"),
        "effect": effect_chart("ordinal"),
        "effect-many": effect_chart("quantitative"),
        "heat": heat_chart(),
        "parallel": parallel_chart(),
        "slices": slice_chart(),
    }
    return {name: vega_spec(chart) for name, chart in charts.items()}


def as_svg(spec: Spec) -> str:
    """Return a chart with its data as SVG."""
    return vl_convert.vega_to_svg(spec)


def as_pdf(spec: Spec) -> bytes:
    """Return a chart with its data as PDF."""
    return vl_convert.vega_to_pdf(spec)


def vega_spec(chart: AnyChart) -> Spec:
    """Compile a chart to Vega, as wide as its place on the page, with the page's colors and a legend whose entries can be clicked."""
    axis = alt.AxisConfig(
        labelColor="@quiet",
        titleColor="@ink",
        gridColor="@faint",
        domainColor="@quiet",
        tickColor="@quiet",
        titleFontWeight="normal",
        labelLimit=150,
    )
    # Descriptions of single marks for screen readers would double the time that a chart takes.
    config = alt.Config(
        aria=False,
        background="@page",
        font=PAGE_FONT,
        axis=axis,
        view=alt.ViewConfig(stroke="@faint"),
        legend=alt.LegendConfig(labelColor="@ink", titleColor="@ink"),
    )
    return with_clickable_legend(
        vl_convert.vegalite_to_vega(chart.properties(width="container", config=config).to_dict())
    )


def with_clickable_legend(spec: Spec) -> Spec:
    """Name the parts of the legend as the selection `hidden` expects, and fade the entries that it hides."""
    faded = {"test": "hidden.group && indexof(hidden.group, datum.value) >= 0", "value": 0.25}
    has_groups = any(signal["name"] == "hidden" for signal in spec["signals"])
    for legend in spec.get("legends", []) if has_groups else []:
        for part in ("symbols", "labels"):
            opacity = {"opacity": [faded, {"value": 1}], "cursor": {"value": "pointer"}}
            legend.setdefault("encode", {})[part] = {
                "name": f"{LEGEND}_{part}",
                "interactive": True,
                "update": opacity,
            }
    return spec


def hidden_groups() -> alt.Parameter:
    """Return the selection of groups that are hidden: those whose legend entries were clicked."""
    return alt.selection_point(name="hidden", fields=["group"], bind="legend", toggle="true", empty=False)


def zoomed_axes() -> alt.Parameter:
    """Return the selection of the visible part of both axes: drag, Ctrl and the wheel, double click to reset."""
    return alt.selection_interval(name="zoom", bind="scales", zoom="wheel![event.ctrlKey || event.metaKey]")


def group_color(shape: str = "stroke", columns: int = 2) -> alt.Color:
    """Return the color by group, with a legend below the chart."""
    legend = alt.Legend(
        title=None, orient="bottom", columns=columns, labelLimit=300, symbolType=shape, symbolStrokeWidth=3
    )
    return alt.Color("group:N", scale=alt.Scale(domain=[GROUPS], range=[COLORS]), legend=legend)


def quantity_axis() -> alt.Axis:
    """Return an axis of steps, tokens or FLOPs: plain numbers up to 10,000, then with k, M, G."""
    expression = "format(datum.value, datum.value < 1e4 ? '~r' : '~s')"
    return alt.Axis(labelExpr=expression, labelOverlap="greedy", labelSeparation=6)


def named(data: str) -> alt.Chart:
    return alt.Chart(alt.NamedData(data))


def curve_chart(x_scale: Literal["linear", "log"], y_scale: Literal["linear", "log"]) -> AnyChart:
    """Return the chart of losses: bands, lines, and the point under the mouse. `yrange` is the range of the losses."""
    hidden, y_range = hidden_groups(), alt.param(name="yrange", value=[0.5, 1])
    x = alt.X("x:Q", title=X_TITLE, axis=quantity_axis(), scale=alt.Scale(type=x_scale, nice=False))
    y_of = alt.Scale(type=y_scale, domain=alt.ExprRef("yrange"), zero=False, nice=False)
    shown = named("curves").transform_filter(~hidden)
    band = (
        shown.transform_filter("isValid(datum.low)")
        .mark_area(opacity=0.16, clip=True)
        .encode(x=x, y=alt.Y("low:Q", title=Y_TITLE, scale=y_of), y2="high:Q", color=group_color())
        .encode(detail="key:N")
    )
    width = alt.StrokeWidth("width:Q", scale=None)
    line = (
        shown.mark_line(clip=True)
        .encode(x=x, y=alt.Y("y:Q", title=Y_TITLE, scale=y_of), color=group_color(), strokeWidth=width)
        .encode(detail="key:N")
        .add_params(hidden, zoomed_axes())
    )
    point = (
        named("hover").mark_point(filled=True, size=50, clip=True).encode(x=x, y="y:Q", color=group_color())
    )
    return alt.layer(band, line, point).add_params(y_range).properties(height=CHART_HEIGHT)


def difference_chart() -> AnyChart:
    """Return the chart of each variant's difference from the baseline, with its interval."""
    base = named("differences").encode(
        y=alt.Y("name:N", sort=None, title=None, axis=alt.Axis(labelLimit=240))
    )
    kinds = alt.Scale(domain=["better", "worse", "unclear"], range=["@better", "@worse", "@quiet"])
    color = alt.Color("kind:N", scale=kinds, legend=None)
    interval = base.mark_rule(strokeWidth=2, clip=True).encode(
        x=alt.X("low:Q", title=X_TITLE, scale=alt.Scale(zero=True)), x2="high:Q", color=color
    )
    tooltip = ["name:N", alt.Tooltip("difference:Q", format="+.4~f"), "interval:N", "verdict:N"]
    dot = base.mark_circle(size=70, opacity=1).encode(x="difference:Q", color=color, tooltip=tooltip)
    zero = named("zero").mark_rule(strokeDash=[3, 3], color="@ink").encode(x="x:Q")
    return alt.layer(interval, dot, zero).properties(height=alt.Step(22))


def cost_chart() -> AnyChart:
    """Return the chart of the loss of each variant against a cost, such as its FLOPs."""
    hidden = hidden_groups()
    base = named("costs").transform_filter(~hidden).encode(color=group_color("circle"))
    x = alt.X(
        "cost:Q",
        title=X_TITLE,
        axis=quantity_axis(),
        scale=alt.Scale(type="log", nice=False, padding=20),
    )
    y = alt.Scale(zero=False)
    interval = base.mark_rule().encode(x=x, y=alt.Y("low:Q", title=Y_TITLE, scale=y), y2="high:Q")
    tooltip = ["name:N", alt.Tooltip("cost:Q", format=".3~s"), alt.Tooltip("loss:Q", format=".4~f")]
    dot = base.mark_circle(size=70, opacity=1).encode(
        x=x, y=alt.Y("loss:Q", title=Y_TITLE, scale=y), tooltip=tooltip
    )
    return alt.layer(interval, dot.add_params(hidden, zoomed_axes())).properties(height=CHART_HEIGHT)


def field_axis(kind: Literal["ordinal", "quantitative"]) -> alt.X:
    """Return the axis of a field's values: evenly spaced labels in their order, or numbers on a scale."""
    if kind == "ordinal":
        return alt.X(
            "at:O",
            sort=None,
            title=X_TITLE,
            axis=alt.Axis(labelAngle=0, labelOverlap="greedy", labelLimit=110),
        )
    return alt.X("at:Q", title=X_TITLE, scale=alt.Scale(type="symlog", zero=False, nice=False))


def tuned_chart(kind: Literal["ordinal", "quantitative"]) -> AnyChart:
    """Return the chart of the mean loss over the values of the tuned field: a line for each variant."""
    hidden, y = hidden_groups(), alt.Scale(zero=False, domain=alt.ExprRef("yrange"), nice=False)
    base = named("tuned").transform_filter(~hidden).encode(x=field_axis(kind), color=group_color(columns=1))
    rule = base.mark_rule(clip=True).encode(
        y=alt.Y("low:Q", title=Y_TITLE, scale=y), y2="high:Q", detail="name:N"
    )
    width = alt.StrokeWidth("width:Q", scale=None)
    line = base.mark_line(clip=True).encode(
        y=alt.Y("loss:Q", scale=y, title=Y_TITLE), detail="name:N", strokeWidth=width
    )
    tooltip = ["name:N", "at:N", alt.Tooltip("loss:Q", format=".4~f")]
    dot = (
        base.mark_circle(size=40, opacity=1, clip=True).encode(y="loss:Q", tooltip=tooltip).add_params(hidden)
    )
    y_range = alt.param(name="yrange", value=[0, 1])
    return alt.layer(rule, line, dot).add_params(y_range).properties(height=CHART_HEIGHT - 60)


def effect_chart(kind: Literal["ordinal", "quantitative"]) -> AnyChart:
    """Return the chart of the loss over the values of a field: a dot for each run, and the lowest mean at each value."""
    y = alt.Y("loss:Q", title=Y_TITLE, scale=alt.Scale(zero=False, domain=alt.ExprRef("yrange"), nice=False))
    tooltip = ["run:N", "at:N", alt.Tooltip("loss:Q", format=".4~f")]
    dots = named("dots").mark_circle(color="@other", size=22, opacity=0.8, clip=True)
    dots = dots.encode(x=field_axis(kind), y=y, tooltip=tooltip)
    if kind == "ordinal":
        dots = dots.encode(xOffset=alt.XOffset("spread:Q", scale=alt.Scale(domain=[-1, 1])))
    best = named("best").encode(x=field_axis(kind), y=y)
    line = best.mark_line(color="@accent", clip=True).encode(opacity=alt.Opacity("joined:Q", scale=None))
    point = best.mark_circle(color="@accent", size=60, opacity=1, clip=True).encode(
        tooltip=["at:N", "loss:Q"]
    )
    y_range = alt.param(name="yrange", value=[0, 1])
    return alt.layer(dots, line, point).add_params(y_range).properties(height=CHART_HEIGHT - 60)


def heat_chart() -> AnyChart:
    """Return the heat map of the mean loss at each pair of values of two fields."""
    base = named("heat").encode(
        x=alt.X("a:O", sort=None, title=X_TITLE, axis=alt.Axis(labelAngle=0)),
        y=alt.Y("b:O", sort=None, title=Y_TITLE),
    )
    scale = alt.Scale(range=["@low", "@high"], zero=False)
    color = alt.Color("loss:Q", scale=scale, legend=alt.Legend(title=None, orient="right"))
    tooltip = ["a:N", "b:N", alt.Tooltip("loss:Q", format=".4~f"), "runs:Q"]
    rect = base.mark_rect().encode(color=color, tooltip=tooltip)
    text = base.mark_text(fontSize=11).encode(text=alt.Text("loss:Q", format=".3~f"), color=alt.value("@ink"))
    return alt.layer(rect, text.transform_filter("isValid(datum.loss)")).properties(height=alt.Step(30))


def parallel_chart() -> AnyChart:
    """Return the parallel coordinates of all runs: a line for each, through its values of all fields."""
    x = alt.X(
        "axis:N", sort=None, title=None, axis=alt.Axis(labelAngle=0, labelFontWeight="bold", orient="top")
    )
    y = alt.Y("at:Q", axis=None, scale=alt.Scale(domain=[-0.05, 1.05]))
    scale = alt.Scale(range=["@accent", "@faint"])
    color = alt.Color("rank:Q", scale=scale, legend=None)
    line = named("parallel").mark_line(opacity=0.6).encode(x=x, y=y, detail="run:N", color=color)
    label = named("labels").encode(x=x, y=y)
    tick = label.mark_tick(color="@ink", width=10)
    text = label.mark_text(align="left", dx=7, color="@ink", limit=130).encode(text="label:N")
    return alt.layer(line, tick, text).properties(height=CHART_HEIGHT)


def slice_chart() -> AnyChart:
    """Return the chart of the accuracy by slice of the samples, with the range of the training samples shaded."""
    hidden, scale = hidden_groups(), alt.Scale(domain=[0, 1.02])
    x = alt.X("x:Q", title=X_TITLE, scale=alt.Scale(zero=False, nice=False))
    trained = named("trained").mark_rect(opacity=0.35, color="@other").encode(x="low:Q", x2="high:Q")
    base = named("slices").transform_filter(~hidden).encode(x=x, color=group_color(), detail="name:N")
    band = base.mark_area(opacity=0.16).encode(y=alt.Y("low:Q", title=Y_TITLE, scale=scale), y2="high:Q")
    band = band.transform_filter("isValid(datum.low)")
    line = base.mark_line().encode(y=alt.Y("accuracy:Q", title=Y_TITLE, scale=scale))
    tooltip = ["name:N", "x:Q", alt.Tooltip("accuracy:Q", format=".3~%")]
    dot = base.mark_circle(size=30, opacity=1).encode(y=alt.Y("accuracy:Q", scale=scale), tooltip=tooltip)
    return alt.layer(trained, band, line, dot.add_params(hidden)).properties(height=CHART_HEIGHT - 40)


# Figures that need no page around them. Their font is a part of vl_convert, so that texts have the same width on any machine.
FIGURE_FONT = "Liberation Sans, Arial, Helvetica, sans-serif"
PANEL_WIDTHS = {1: 460, 2: 250, 3: 160}  # pixels of a panel without its labels, by the number of panels
PANEL_HEIGHT = 190
ROW_HEIGHT = 26
# Colors that people with any kind of color vision tell apart (Okabe and Ito 2008, "Color Universal Design").
SERIES_COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b58900", "#56b4e9", "#1b1f24", "#7a5195"]
MORE_COLORS = "#b4bcc8"  # of series beyond these
QUIET, INK, FAINT = "#57606a", "#1f2328", "#e4e7eb"
# Small and large numbers as 2e-5 and 20k.
NUMBER_LABEL = (
    "datum.value == 0 || abs(datum.value) >= 1e-3 && abs(datum.value) < 1e4 ? format(datum.value, '~r') : "
    "format(datum.value, abs(datum.value) < 1 ? '~e' : '~s')"
)
SVG_TAG, LONG_NUMBER, CLIP_NAME = re.compile("<[^>]+>"), re.compile(r"\d+\.\d{3,}"), re.compile(r"clip\d+")
# Parts of Vega's SVG that change nothing in a picture: they are half of its bytes.
UNSEEN = re.compile(
    r'<path class="(?:back|fore)ground"[^>]*/>| (?:class|role|aria-[a-z]+|pointer-events|font-family)="[^"]*"| opacity="1"'
)
ChartRow = dict[str, Any]  # of the data of a chart
ValueRange = tuple[float, float]
AxisScale = Literal["linear", "log", "symlog"]


class FigurePanel(NamedTuple):
    """A panel of a figure: values of some series at numbers, or in rows that have names.

    A point has `series`, `at` and `value`, and some have `mean`, `shape` or, on a curve, `run`. In place of the value, a band
    or an area has its ends `low` and `high`.
    """

    kind: Literal["curves", "lines", "dots"]
    title: str  # of the axis of `at`
    value_title: str
    points: Sequence[ChartRow]
    bands: Sequence[ChartRow]  # where claims expect single points
    domain: ValueRange  # of the values
    value_scale: AxisScale = "linear"
    at_scale: AxisScale = "linear"
    ticks: Sequence[float] = ()  # of the axis of `at`; none: round numbers
    areas: Sequence[ChartRow] = ()  # where claims expect a line
    limits: Sequence[float] = ()  # values that claims wait for

    @property
    def series(self) -> list[str]:
        return list(dict.fromkeys(point["series"] for point in self.points))

    @property
    def names(self) -> list[str | float]:
        return list(dict.fromkeys(point["at"] for point in self.points))


def panels_as_svg(panels: Sequence[FigurePanel]) -> str:
    """Return panels side by side as the text of an SVG file. Equal panels give the same text on any machine."""
    width = PANEL_WIDTHS[len(panels)]
    charts = [
        panel_chart(panel, width, has_names=i == 0 or panel.names != panels[i - 1].names)
        for i, panel in enumerate(panels)
    ]
    note = alt.TitleParams("; ".join(notes_below(panels)), orient="bottom", anchor="start")
    figure = alt.hconcat(*charts, title=note, spacing=28, config=figure_config())
    own = figure.resolve_scale(color="independent", yOffset="independent")
    svg = vl_convert.vegalite_to_svg(own.to_dict())
    return small_svg(svg).replace("<svg", f'<svg font-family="{FIGURE_FONT}"', 1) + "\n"


def notes_below(panels: Sequence[FigurePanel]) -> Iterator[str]:
    """Yield what the marks below a figure mean, if it has them."""
    if any(panel.bands or panel.areas for panel in panels):
        yield "shaded: values that the claims expect"
    if any("triangle" in str(point.get("shape")) for panel in panels for point in panel.points):
        yield "triangles: runs that diverged"


def small_svg(svg: str) -> str:
    """Return an SVG of Vega without what nobody sees, with numbers of one decimal, and with clip paths counted from 0."""
    svg = SVG_TAG.sub(lambda tag: LONG_NUMBER.sub(lambda number: f"{float(number[0]):.1f}", tag[0]), svg)
    clips: dict[str, str] = {}
    return CLIP_NAME.sub(lambda name: clips.setdefault(name[0], f"c{len(clips)}"), UNSEEN.sub("", svg))


def figure_config() -> alt.Config:
    axis = alt.AxisConfig(
        labelColor=QUIET,
        titleColor=INK,
        titleFontWeight="normal",
        titlePadding=10,
        labelPadding=6,
        labelLimit=300,
        gridColor=FAINT,
        domainColor=QUIET,
        tickColor=QUIET,
        tickSize=4,
    )
    legend = alt.LegendConfig(orient="bottom", title=None, labelColor=INK, labelLimit=400, symbolOpacity=1)
    title = alt.TitleConfig(color=QUIET, fontSize=10, fontWeight="normal", offset=12)
    view = alt.ViewConfig(stroke=None)
    return alt.Config(
        aria=False,
        background="white",
        font=FIGURE_FONT,
        axis=axis,
        legend=legend,
        title=title,
        view=view,
        padding=10,
    )


def panel_chart(panel: FigurePanel, width: int, has_names: bool) -> AnyChart:
    """Return the chart of a panel. `has_names` is False for a panel whose rows are named by the panel on its left."""
    own = encodings_of(panel, width, has_names)
    is_dots = panel.kind == "dots"
    high = {"x2" if is_dots else "y2": "high:Q"}
    bar: dict[str, Any] = {"orient": "horizontal"} if is_dots else {"orient": "vertical", "size": 14}
    points = rows_chart(panel.points).encode(**own)
    seeds, means = points.transform_filter("!datum.mean"), points.transform_filter("datum.mean")
    layers = [
        rows_chart(panel.areas).mark_area(opacity=0.15).encode(**own, **high),
        rows_chart(panel.bands).mark_bar(opacity=0.2, **bar).encode(**own, **high),
        rows_chart([{"value": value} for value in panel.limits])
        .mark_rule(strokeDash=[5, 4], color=QUIET)
        .encode(y="value:Q"),
    ]
    layers = [
        layer for layer, rows in zip(layers, (panel.areas, panel.bands, panel.limits), strict=True) if rows
    ]
    if panel.kind == "curves":
        layers.append(seeds.mark_line(strokeWidth=1, opacity=0.4, clip=True).encode(detail="run:N"))
    else:
        size = alt.condition("datum.shape == 'circle'", alt.value(18), alt.value(50))
        shape = alt.Shape("shape:N", scale=None)
        layers.append(seeds.mark_point(filled=True, opacity=0.5).encode(shape=shape, size=size))
        layers.append(means.mark_point(filled=True, size=60, opacity=1))
    if not is_dots:
        layers.append(means.mark_line(strokeWidth=2, clip=True))
    step = alt.Step(ROW_HEIGHT if len(panel.series) == 1 else 0.7 * ROW_HEIGHT)
    return alt.layer(*layers).properties(width=width, height=step if is_dots else PANEL_HEIGHT)


def rows_chart(rows: Sequence[ChartRow]) -> alt.Chart:
    """Return a chart of rows. The value of a band is its lower end."""
    return alt.Chart(alt.InlineData([{"value": row.get("low"), **row} for row in rows]))


def encodings_of(panel: FigurePanel, width: int, has_names: bool) -> dict[str, Any]:
    """Return the encodings that the marks of a panel share: both axes and the color."""
    ticks: dict[str, Any] = {"tickCount": 5}
    if panel.value_scale == "log":
        ticks = {"values": log_ticks(panel.domain)}
    value: dict[str, Any] = {
        "title": panel.value_title,
        "scale": alt.Scale(type=panel.value_scale, domain=panel.domain, nice=False, zero=False),
        "axis": alt.Axis(labelExpr=NUMBER_LABEL, labelOverlap=True, **ticks),
    }
    color = series_color(panel, width)
    if panel.kind == "dots":
        names = alt.Axis(ticks=False, domain=False, labels=has_names)
        y = alt.Y("at:N", sort=[*map(str, panel.names)], title=None, axis=names)
        offset = alt.YOffset("series:N", sort=panel.series)
        return {"x": alt.X("value:Q", **value), "y": y, "yOffset": offset, "color": color}
    return {"x": number_axis(panel), "y": alt.Y("value:Q", **value), "color": color}


def number_axis(panel: FigurePanel) -> alt.X:
    """Return the x axis of a panel: a field, a measured number, or steps."""
    numbers = [float(at) for at in panel.names]
    smallest = min((number for number in numbers if number > 0), default=1.0)
    constant: dict[str, Any] = {"constant": smallest} if panel.at_scale == "symlog" else {}
    scale = alt.Scale(type=panel.at_scale, nice=False, zero=False, padding=14, **constant)
    ticks: dict[str, Any] = {"values": list(panel.ticks)} if panel.ticks else {"tickCount": 5}
    if panel.at_scale == "log" and not panel.ticks:
        ticks = {"values": log_ticks((min(numbers), max(numbers)))}
    axis = alt.Axis(grid=False, labelExpr=NUMBER_LABEL, labelOverlap=True, **ticks)
    return alt.X("at:Q", title=panel.title, scale=scale, axis=axis)


def log_ticks(domain: ValueRange) -> list[float]:
    """Return the powers of ten inside a range, with 2 and 5 times these if there are few."""
    powers = range(math.floor(math.log10(domain[0])), math.ceil(math.log10(domain[1])) + 1)
    factors = (1, 2, 5) if math.log10(domain[1] / domain[0]) < 2.5 else (1,)
    ticks = [factor * 10.0**power for power in powers for factor in factors]
    return [tick for tick in ticks if domain[0] <= tick <= domain[1]]


def series_color(panel: FigurePanel, width: int) -> alt.Color:
    """Return the color by series, with a legend below the panel if there are several."""
    colors = [*SERIES_COLORS, *[MORE_COLORS] * len(panel.series)][: len(panel.series)]
    columns = max(1, width // (40 + 6 * max(map(len, panel.series))))
    kind = "stroke" if panel.kind == "curves" else "circle"
    legend = alt.Legend(columns=columns, symbolType=kind, symbolStrokeWidth=2) if any(panel.series) else None
    return alt.Color("series:N", scale=alt.Scale(domain=panel.series, range=colors), legend=legend)
