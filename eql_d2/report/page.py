"""One HTML page that holds a whole report: its figures, pictures and plotly.js are inside, and it loads nothing."""

from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly import io as plotly_io
from plotly.offline import get_plotlyjs

from eql_d2.data.whole_files import written_whole
from eql_d2.report.calibration import score_calibration
from eql_d2.report.changes import biggest_changes
from eql_d2.report.confusion import confusions
from eql_d2.report.curves import training_curves
from eql_d2.report.examples import rare_examples
from eql_d2.report.frequency import ap_by_frequency
from eql_d2.report.gradients import gradient_ratios
from eql_d2.report.results import config_differences, results_columns
from eql_d2.report.runs import Comparison
from eql_d2.report.style import Figure, Section, looks, set_log_ticks

SECTIONS = (ap_by_frequency, biggest_changes, gradient_ratios, training_curves, score_calibration, confusions)
PLOT_CONFIG = {"displayModeBar": False}  # its buttons would cover the legend on a phone


def write_report(comparison: Comparison, path: Path, num_images: int = 6, progress: Callable = iter) -> None:
    """Write the report; a file that was there is replaced when the new one is complete.

    Args:
        path: the HTML file.
        num_images: example images.
        progress: wraps lists of sections and of images, as tqdm does.
    """
    sections = [make(comparison) for make in progress(list(SECTIONS))]
    html = render(comparison, sections, rare_examples(comparison, num_images, progress))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as file:
        file.write(html)


def render(comparison: Comparison, sections: list[Section], examples) -> str:
    """The page's HTML. The template escapes every text; only plotly's own output is let through as it is."""
    environment = Environment(
        loader=PackageLoader("eql_d2.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["plot_html"] = plot_html
    return environment.get_template("page.html").render(
        comparison=comparison,
        looks=looks(comparison.configurations),
        columns=results_columns(comparison),
        differences=config_differences(comparison),
        sections=sections,
        examples=examples,
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        plotly_js=Markup(get_plotlyjs()),
    )


def plot_html(figure: Figure, name: str) -> Markup:
    """The plot as a <div> with its script; plotly escapes `<`, `>` and `/` in the data."""
    set_log_ticks(figure.plot)
    return Markup(
        plotly_io.to_html(
            figure.plot,
            config=PLOT_CONFIG,
            include_plotlyjs=False,
            full_html=False,
            div_id=name,
            default_height=f"{figure.plot.layout.height}px",
        )
    )
