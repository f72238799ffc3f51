"""Charts of a report as Vega specifications, with their data by name. No other file imports altair and vl_convert.

Texts in a specification that begin with @ are placeholders. The page fills in colors, names of groups and titles of axes. So
a specification is the same for all reports, and no text of a run is part of one.
"""

from functools import cache
from typing import Any, Literal

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
    return alt.layer(rect, text).properties(height=alt.Step(30))


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
