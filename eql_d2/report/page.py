"""One HTML page that holds a whole report: its figures, pictures and plotly.js are inside, and it loads nothing."""

from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly import io as plotly_io
from plotly.offline import get_plotlyjs

from eql_d2.data.whole_files import make_folder, written_whole
from eql_d2.report.calibration import score_calibration
from eql_d2.report.changes import biggest_changes
from eql_d2.report.confusion import confusions
from eql_d2.report.curves import training_curves
from eql_d2.report.frequency import ap_by_frequency
from eql_d2.report.gradients import gradient_ratios
from eql_d2.report.intervals import intervals
from eql_d2.report.results import results_columns
from eql_d2.report.runs import Comparison, differing_keys
from eql_d2.report.style import Figure, Section, looks, set_log_ticks

SECTIONS = (ap_by_frequency, biggest_changes, gradient_ratios, training_curves, score_calibration, confusions)
OF_RESULTS = (ap_by_frequency, biggest_changes, score_calibration, confusions)  # those that need no training
PLOT_CONFIG = {"displayModeBar": False}  # its buttons would cover the legend on a phone


def write_report(comparison: Comparison, path: Path, num_images: int = 6, progress: Callable = iter) -> None:
    """Write the report; a file that was there is replaced when the new one is complete.

    Args:
        path: the HTML file.
        num_images: example images.
        progress: wraps lists of sections and of images, as tqdm does.
    """
    from eql_d2.report.examples import rare_examples  # here: the images of datasets need torch and Detectron2

    sections = [make(comparison) for make in progress(list(SECTIONS))]
    write_page(path, render(comparison, sections, rare_examples(comparison, num_images, progress)))


def write_results_report(comparison: Comparison, path, drawings: dict | None = None) -> None:
    """Write the report of results files, without what only training knows.

    Args:
        path: the HTML file.
        drawings: intervals, as :func:`eql_d2.evaluation.files.resampled` gives them.
    """
    sections = [make(comparison) for make in OF_RESULTS]
    if drawings is not None:
        sections.insert(0, intervals(comparison, drawings))
    write_page(path, render(comparison, sections, None))


def write_page(path, html: str) -> None:
    make_folder(Path(path).parent)
    with written_whole(path) as file:
        file.write(html)


def render(comparison: Comparison, sections: list[Section], examples) -> str:
    """The page's HTML, without examples if they are None.

    The template escapes every text; only plotly's own output is let through as it is.
    """
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
        differences=differing_keys(comparison.configurations),
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
