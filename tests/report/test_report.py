"""The report shows what the files of the runs say, escapes all of it, and leaves out what cannot be read."""

import csv
import json
import re
import shutil
import tempfile
from html.parser import HTMLParser

import pytest

pytest.importorskip("plotly")
pytest.importorskip("jinja2")

from eql_d2.cli import main
from eql_d2.report import read_runs, write_report
from eql_d2.report.calibration import score_calibration
from eql_d2.report.changes import biggest_changes
from eql_d2.report.confusion import confusions
from eql_d2.report.curves import training_curves
from eql_d2.report.examples import rare_examples
from eql_d2.report.frequency import ap_by_frequency
from eql_d2.report.gradients import gradient_ratios
from eql_d2.report.page import SECTIONS
from eql_d2.report.results import results_columns
from eql_d2.report.style import new_plot, set_log_ticks

HOSTILE = "<script>alert('x')</script>"
DATASET = "eql_d2_test_report_val"


def rows_of(folder):
    with open(folder / "inference" / DATASET / "categories_bbox.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def folders(runs):
    """Two seeds of one configuration and one run of another."""
    return [
        runs.make("soft_0", seed=0),
        runs.make("soft_1", seed=1, ap=(20.0, None, 30.0, 50.0, 70.5)),
        runs.make("eql", head="EQLROIHeads", ap=(40.0, 5.0, 25.0, None, 60.0)),
    ]


@pytest.fixture
def comparison(folders):
    return read_runs(folders)


def test_runs_of_one_configuration_are_one(comparison):
    assert [(c.label, len(c.runs)) for c in comparison.configurations] == [("soft", 2), ("eql", 1)]
    assert not comparison.skipped


def test_results_are_mean_and_spread_over_seeds(comparison):
    columns = {column.metric: column for column in results_columns(comparison)}
    assert columns["AP"].cells == ["38.1 ± 0.7", "37.6"] and columns["AP"].best == 0
    assert "AP75" not in columns and "AP-fixed" not in columns


def test_ap_figure_equals_the_evaluators_file(comparison, folders):
    (figure,) = ap_by_frequency(comparison).figures
    points = {trace.name: trace for trace in figure.plot.data if trace.mode == "markers"}
    for label, of_label in (("soft", folders[:2]), ("eql", folders[2:])):
        expected = {}
        for folder in of_label:
            for row in rows_of(folder):
                if row["AP"]:
                    expected.setdefault(float(row["train_images"]), []).append(float(row["AP"]))
        drawn = dict(zip(points[label].x, points[label].y))
        assert drawn == {images: sum(ap) / len(ap) for images, ap in expected.items()}
    trend = [trace for trace in figure.plot.data if trace.mode == "lines"]
    assert [list(t.x) for t in trend] == [[2.0], [2.0]] and [list(t.y) for t in trend] == [[10.0], [10.0]]
    assert figure.plot.layout.xaxis.type == "log"


def test_gradient_figure_equals_the_hooks_file(comparison, folders):
    (figure,) = gradient_ratios(comparison).figures
    sums = [json.loads((f / "gradient_balance.json").read_text())["stages"] for f in folders[:2]]
    expected = {}
    for j, row in enumerate(rows_of(folders[0])):
        positive, negative = (sum(s[key][j] for stages in sums for s in stages) for key in ("positive", "negative"))
        if positive > 0:
            expected[float(row["train_images"])] = positive / negative
    assert dict(zip(figure.plot.data[0].x, figure.plot.data[0].y)) == pytest.approx(expected)
    assert "2 points of categories that were never sampled" in figure.caption


def test_calibration_figure_equals_the_evaluators_file(comparison):
    everything, rare = score_calibration(comparison).figures
    assert list(rare.plot.data[0].x) == pytest.approx([0.02, 0.97])
    assert list(rare.plot.data[0].y) == pytest.approx([0.1, 0.8])
    assert list(everything.plot.data[0].customdata) == [180, 20]  # both seeds
    assert "soft 4.0 ± 0.0 %; eql 4.0 %" in everything.caption


def test_scores_too_low_for_a_calibration_error_are_drawn(folders):
    path = folders[2] / "inference" / DATASET / "analysis_bbox.json"
    analysis = json.loads(path.read_text())
    analysis["calibration"]["groups"]["r"].update(ece=None, detections=0)
    path.write_text(json.dumps(analysis))
    _, rare = score_calibration(read_runs(folders)).figures
    assert len(rare.plot.data) == 2 and "eql none (no detection scores" in rare.caption


def test_confusion_figure_equals_the_evaluators_file(comparison):
    (figure,) = confusions(comparison).figures
    assert {bar.name: list(bar.x) for bar in figure.plot.data} == {
        "right": [50.0, 50.0],
        "as rare": [0.0, 0.0],
        "as common": [5.0, 5.0],
        "as frequent": [20.0, 20.0],
        "missed": [25.0, 25.0],
    }


def test_changes_are_between_means_most_gained_first(comparison):
    (figure,) = biggest_changes(comparison).figures
    bars = {
        y: (x, before, after)
        for trace in figure.plot.data
        for y, x, (_, before, after, _) in zip(trace.y, trace.x, trace.customdata)
    }
    assert bars == {0: (25.0, 15.0, 40.0), 1: (-5.0, 30.0, 25.0), 2: (-5.5, 65.5, 60.0)}


def test_curves_are_those_of_metrics_json(comparison):
    section = training_curves(comparison)
    loss, ratio, *_ = section.figures
    assert list(loss.plot.data[0].x) == [19, 39] and list(loss.plot.data[0].y) == [2 - 19 / 40, 2 - 39 / 40]
    assert len(ratio.plot.data) == 6 and list(ratio.plot.data[0].y) == [0.1, 0.05]
    assert len(section.figures) == 5


def test_examples_are_of_the_rarest_objects_with_words(comparison):
    (example,) = rare_examples(comparison).examples
    assert [panel.title for panel in example.panels] == ["ground truth", "soft", "eql"]
    assert example.panels[0].description.startswith(f"Objects: {HOSTILE}, a, ")
    # At the place of two detections the better one, and as many places as there are objects.
    assert example.panels[1].description.startswith("Predictions: zebra 0.90, a, ")
    assert HOSTILE not in example.panels[1].description
    assert all(panel.source.startswith("data:image/jpeg;base64,") for panel in example.panels)


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))


def test_the_page_is_one_file_and_no_name_becomes_html(comparison, tmp_path):
    comparison.skipped["<img src=x onerror=alert(2)>"] = "<b>why</b>"
    write_report(comparison, tmp_path / "out" / "report.html")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["report.html"]
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    without_plotly = text.replace(re.search(r"<script>/\*\*.*?</script>", text, re.DOTALL).group(), "")
    tags = Tags(without_plotly).tags
    assert "alert('x')" not in re.sub(r"<script>.*?</script>", "", without_plotly, flags=re.DOTALL)
    assert HOSTILE not in without_plotly and "<b>bold" not in without_plotly
    assert not any(attributes.get("onerror") for _, attributes in tags) and "<b>why" not in text
    for tag, attributes in tags:  # nothing is loaded from elsewhere
        for key in ("src", "href"):
            assert attributes.get(key, "#").startswith(("#", "data:")), (tag, attributes)
    assert any(a.get("content", "").startswith("default-src 'none'") for _, a in tags)
    assert all(a["alt"] for tag, a in tags if tag == "img")


def test_text_that_plotly_would_read_as_html_is_escaped(comparison):
    (figure,) = ap_by_frequency(comparison).figures
    names = [name for name, _ in figure.plot.data[0].customdata]
    assert names[0] == "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;"


@pytest.mark.parametrize("largest, tick", [(300, "D2"), (1e60, 8)])
def test_a_logarithmic_axis_has_few_ticks(largest, tick):
    plot = new_plot("x", "y", log_x=True)
    plot.add_scatter(x=[0, 1, largest], y=[1, 2, 3])
    set_log_ticks(plot)
    assert plot.layout.xaxis.dtick == tick and plot.layout.yaxis.dtick is None


def test_bare_runs_say_why_there_is_nothing(runs):
    """Runs of before these files: what is missing is said, no plot is empty, and the results are there."""
    folders = [runs.make(name, head=name, categories=False, analysis=False, gradients=False) for name in ("one", "two")]
    comparison = read_runs(folders)
    assert [column.cells for column in results_columns(comparison)][0] == ["37.6", "37.6"]
    for make in SECTIONS:
        section = make(comparison)
        assert all(figure.plot.data for figure in section.figures)
        assert section.figures or "No run has" in section.missing, section
    assert "no counts of training images" in rare_examples(comparison).missing


def test_a_run_with_files_beside_one_without(runs):
    comparison = read_runs([runs.make("old", head="a", categories=False, gradients=False), runs.make("new", head="b")])
    for make in (ap_by_frequency, gradient_ratios):
        (figure,) = make(comparison).figures
        assert {trace.name for trace in figure.plot.data if trace.mode == "markers"} == {"new"}


@pytest.mark.parametrize(
    "file, content, reason",
    [
        ("config.yaml", None, "no config.yaml"),
        ("config.yaml", "MODEL: [", "not a YAML file"),
        ("config.yaml", "VERSION: 2\nDATASETS:", "evaluated on|not evaluated on"),
        (f"inference/{DATASET}/analysis_bbox.json", '{"metrics": {"AP": 1}}', "lacks .'frequency_bins'"),
        ("gradient_balance.json", '{"stages": [{"pos', "is not a JSON file"),
        ("gradient_balance.json", '{"stages": [{"positive": [1, 2], "negative": [1, 2]}]}', "has 2 categories"),
        (f"inference/{DATASET}/analysis_bbox.json", '{"metrics"', "is not a JSON file"),
        (f"inference/{DATASET}/categories_bbox.csv", "index,name,AP\n0,cat,1\n1,do", "a line is cut off"),
        (f"inference/{DATASET}/categories_bbox.csv", "index,name,AP\n0,cat,1\n", "no columns .'group', 'train_images'"),
    ],
)
def test_a_half_written_run_is_named_and_skipped(folders, file, content, reason):
    if content is None:
        (folders[1] / file).unlink()
    else:
        (folders[1] / file).write_text(content)
    comparison = read_runs([folders[0], folders[1], folders[2], folders[0].parent / "missing"])
    assert [(c.label, len(c.runs)) for c in comparison.configurations] == [("soft_0", 1), ("eql", 1)]
    assert re.search(reason, comparison.skipped[str(folders[1])])
    assert "no config.yaml" in comparison.skipped[str(folders[0].parent / "missing")]


def test_a_run_that_was_not_evaluated_is_skipped_and_a_cut_line_is_not_read(folders):
    shutil.rmtree(folders[1] / "inference")
    lines = (folders[1] / "metrics.json").read_text().splitlines()
    (folders[1] / "metrics.json").write_text("\n".join([*lines[:2], lines[2][:30]]))
    comparison = read_runs(folders)
    assert "no bbox results" in comparison.skipped[str(folders[1])]


def test_other_categories_are_not_compared(folders):
    path = folders[2] / "inference" / DATASET / "categories_bbox.csv"
    path.write_text(path.read_text().replace("zebra", "horse"))
    assert "other categories" in read_runs(folders).skipped[str(folders[2])]


def test_the_tool(folders, tmp_path, capsys):
    output = tmp_path / "page.html"
    assert main(["report", *map(str, folders), "/nowhere", "--output", str(output)]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == f"report: {output}" and output.stat().st_size > 3e6
    assert "skipped /nowhere: /nowhere is no output folder" in err
    assert main(["report", "/nowhere", "--output", str(output)]) == 1
    assert "error: no run could be read (/nowhere: " in capsys.readouterr().err


# ---- in a browser ----

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture
def browser():
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("no chromium and chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}", "--window-size=1300,1000"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        yield chrome
        chrome.quit()


def test_the_page_in_a_browser(browser, comparison, folders, tmp_path):
    from selenium.webdriver import ActionChains

    write_report(comparison, tmp_path / "report.html")
    browser.get((tmp_path / "report.html").as_uri())
    plots = browser.execute_script("return [...document.querySelectorAll('.js-plotly-plot')].map(p => p.id)")
    assert len(plots) == len(browser.find_elements("css selector", ".plotly-graph-div")) >= 10
    # The points on the screen are those of the evaluator's file.
    drawn = browser.execute_script("return document.getElementById('plot-1-1').data.map(t => [t.name, t.x, t.y])")
    of_eql = {float(row["train_images"]): float(row["AP"]) for row in rows_of(folders[2]) if row["AP"]}
    assert [dict(zip(x, y)) for name, x, y in drawn if name == "eql"] == [of_eql]
    # Hovering shows the name as text.
    browser.execute_script("document.getElementById('plot-1-1').scrollIntoView({block: 'center'})")
    point = browser.find_element("css selector", "#plot-1-1 .scatterlayer .trace .point")
    ActionChains(browser).move_to_element(point).perform()
    hover = browser.find_element("css selector", "#plot-1-1 .hoverlayer")
    assert HOSTILE in hover.text and "AP" in hover.text
    assert browser.get_log("browser") == []
    assert beyond_their_cards(browser) == []  # as loaded: the first of a row is drawn when it has the row for itself
    for width in (400, 1300):
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        assert beyond_their_cards(browser) == []
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert browser.get_log("browser") == []


def beyond_their_cards(browser) -> list:
    """Ids of the plots that are wider than the card that they are in, once a frame has been drawn."""
    return browser.execute_async_script(
        """
        const done = arguments[0];
        const right = element => element.getBoundingClientRect().right;
        const look = () => [...document.querySelectorAll(".js-plotly-plot")]
            .filter(plot => right(plot.querySelector(".main-svg")) > right(plot.closest(".card"))).map(plot => plot.id);
        requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(() => done(look()), 100)));
        """
    )
