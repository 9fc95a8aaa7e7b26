"""`eql-d2 evaluate` on files, against the APIs of LVIS and COCO."""

import argparse
import csv
import importlib.util
import io
import json
import re
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest

from eql_d2.cli import main
from eql_d2.cli.evaluate import add_arguments, run
from eql_d2.errors import InputError

spec = importlib.util.spec_from_file_location(
    "lvis_cases", Path(__file__).parents[1] / "evaluation" / "test_lvis_metrics.py"
)
cases = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cases)


def evaluate(*argv):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    run(parser.parse_args([str(argument) for argument in argv]))


@pytest.fixture
def files(tmp_path):
    """LVIS's annotations with every special case, and results of a tenth of unknown categories at most."""
    truth, results = cases.random_case(1, masks=True)
    results = [r for i, r in enumerate(results) if r["category_id"] != 1000 or i % 4 == 0]
    for category in truth["categories"]:
        category["name"] = f"name {category['id']}"
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "results.json").write_text(json.dumps(results))
    return tmp_path, truth, results


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_lvis_metrics_are_the_api_s(files, capsys, iou_type):
    folder, truth, results = files
    out = folder / "out.json"
    evaluate(folder / "results.json", folder / "truth.json", "--iou-type", iou_type, "--json", out)
    content = json.loads(out.read_text())
    for name, value in cases.lvis_api(truth, results, iou_type, 300).get_results().items():
        assert content["results"][0]["metrics"][name] == pytest.approx(100 * value, abs=1e-10)
    assert content["annotation_format"] == "lvis" and content["max_dets"] == 300
    shown = capsys.readouterr()
    assert "LVIS format, 12 images" in shown.out and "| AP " in shown.out
    unknown = sum(r["category_id"] == 1000 for r in results)
    assert f"{unknown} of {len(results)} detections have a `category_id`" in shown.err
    assert content["results"][0]["unknown"] == {"image_id": 0, "category_id": unknown}


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_coco_metrics_are_the_api_s(files, iou_type):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    folder, truth, results = files
    for image in truth["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    for i, annotation in enumerate(truth["annotations"]):
        annotation |= {"iscrowd": int(i % 9 == 0), "id": i + 1}
    results = [r for r in results if r["category_id"] != 1000 and r["bbox"][2] > 0]
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "results.json").write_text(json.dumps(results))
    with redirect_stdout(io.StringIO()):
        api = COCO(str(folder / "truth.json"))
        if iou_type == "segm":
            for result in results:
                del result["bbox"]
        evaluation = COCOeval(api, api.loadRes(results), iou_type)
        evaluation.evaluate(), evaluation.accumulate(), evaluation.summarize()
    evaluate(folder / "results.json", folder / "truth.json", "--iou-type", iou_type, "--json", folder / "out.json")
    content = json.loads((folder / "out.json").read_text())
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR@1", "AR@10", "AR@100", "ARs@100", "ARm@100", "ARl@100")
    ours = [content["results"][0]["metrics"][name] for name in names]
    assert content["annotation_format"] == "coco"
    np.testing.assert_allclose(ours, 100 * np.array(evaluation.stats), rtol=0, atol=1e-10)


def test_images_of_a_list(files):
    folder, truth, results = files
    chosen = sorted(image["id"] for image in truth["images"])[::2]
    less = truth | {
        "images": [i for i in truth["images"] if i["id"] in chosen],
        "annotations": [a for a in truth["annotations"] if a["image_id"] in chosen],
    }
    expected = cases.lvis_api(less, [r for r in results if r["image_id"] in chosen], "bbox", 300).get_results()["AP"]
    lists = {"ids.txt": "\n".join(map(str, chosen)), "ids.json": json.dumps(chosen), "less.json": json.dumps(less)}
    for name, text in lists.items():
        (folder / name).write_text(text)
        arguments = ["--image-ids", folder / name, "--json", folder / "out.json"]
        evaluate(folder / "results.json", folder / "truth.json", *arguments)
        result = json.loads((folder / "out.json").read_text())["results"][0]
        assert result["metrics"]["AP"] == pytest.approx(100 * expected, abs=1e-10)
        assert result["unknown"]["image_id"] == 0
    (folder / "ids.txt").write_text("12345")
    with pytest.raises(InputError, match="lists 1 of 1 images that"):
        evaluate(folder / "results.json", folder / "truth.json", "--image-ids", folder / "ids.txt")


def test_names_for_ids(files, capsys):
    """As ultralytics names images, open-vocabulary detectors categories, and lists of splits images."""
    folder, truth, results = files
    results = [r for r in results if r["category_id"] != 1000]
    for image in truth["images"]:
        image["file_name"] = f"val2017/{image['id']:012}.jpg"
    (folder / "truth.json").write_text(json.dumps(truth))
    named = [r | {"image_id": f"{r['image_id']:012}", "category_id": f"name {r['category_id']}"} for r in results]
    texts = [{k: str(v) if k != "bbox" else v for k, v in r.items()} for r in results]
    chosen = truth["images"][::2]
    (folder / "ids.txt").write_text("\n".join("./images/" + image["file_name"] for image in chosen))
    (folder / "ids.json").write_text(json.dumps([image["id"] for image in chosen]))
    for listed in ((), ("--image-ids", folder / "ids.txt"), ("--image-ids", folder / "ids.json")):
        ap = []
        for content in (results, named, texts):
            (folder / "results.json").write_text(json.dumps(content))
            evaluate(folder / "results.json", folder / "truth.json", *listed, "--json", folder / "out.json")
            ap.append(json.loads((folder / "out.json").read_text())["results"][0]["metrics"])
        assert repr(ap[0]) == repr(ap[1]) == repr(ap[2])
    shown = capsys.readouterr().err
    assert "results.json calls each image by its file: '0000" in shown and "each category by its name: 'name " in shown


def test_a_list_without_images(files):
    folder, _, _ = files
    (folder / "ids.txt").write_text("\n")
    with pytest.raises(InputError, match="lists no image"):
        evaluate(folder / "results.json", folder / "truth.json", "--image-ids", folder / "ids.txt")


def test_a_file_that_is_lvis_s_but_for_an_image_is_said_to_be_none(files, caplog, capsys):
    folder, truth, _ = files
    del truth["images"][3]["neg_category_ids"]
    (folder / "truth.json").write_text(json.dumps(truth))
    evaluate(folder / "results.json", folder / "truth.json")
    assert "1 of 12 images lack neg_category_ids" in caplog.text
    assert "COCO format" in capsys.readouterr().out


def test_two_results_with_intervals(files, capsys):
    folder, truth, results = files
    worse = [r | {"score": 0.5} for r in results]
    (folder / "worse.json").write_text(json.dumps(worse))
    options = ["--bootstrap", 50, "--json", folder / "out.json", "--categories", folder / "table.csv"]
    evaluate(folder / "results.json", folder / "worse.json", folder / "truth.json", *options)
    drawn = json.loads((folder / "out.json").read_text())["bootstrap"]
    first, second = (each["AP"]["value"] for each in drawn["intervals"])
    difference = drawn["differences"][0]["AP"]
    assert difference["value"] == pytest.approx(second - first, abs=1e-9)
    assert difference["low"] < difference["value"] < difference["high"]
    assert "worse - results" in capsys.readouterr().out
    with open(folder / "table.worse.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [f"name {c['id']}" for c in truth["categories"]]


def test_groups_of_one_s_own_training_set(files):
    """Letters of the annotation file give way, since one asked for these."""
    folder, truth, _ = files
    ids = [c["id"] for c in truth["categories"]]
    images = [{"id": i + 1, "height": 9, "width": 9, "file_name": "a"} for i in range(120)]
    counts = dict(zip(ids, (5, 50, 120, 1, 10, 11), strict=True))
    pairs = [(i + 1, k) for k, n in counts.items() for i in range(n)]
    annotations = [
        {"id": i + 1, "image_id": image, "category_id": k, "bbox": [0, 0, 5, 5], "area": 25, "iscrowd": 0}
        for i, (image, k) in enumerate(pairs)
    ]
    categories = [{"id": k, "name": str(k)} for k in ids]
    train = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "train.json").write_text(json.dumps(train))
    options = ["--frequencies", folder / "train.json", "--categories", folder / "out.csv"]
    evaluate(folder / "results.json", folder / "truth.json", *options)
    with open(folder / "out.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["group"] for row in rows] == list("rcfrrc")
    assert [int(row["train_images"]) for row in rows] == list(counts.values())


def test_fixed_and_boundary_ap(files):
    folder, _, _ = files
    options = ["--iou-type", "segm", "--fixed-ap", "--boundary", "--json", folder / "out.json"]
    evaluate(folder / "results.json", folder / "truth.json", *options)
    metrics = json.loads((folder / "out.json").read_text())["results"][0]["metrics"]
    assert metrics["AP-fixed"] == pytest.approx(metrics["AP"])  # no limit is reached here
    assert 0 <= metrics["AP-boundary"] <= metrics["AP"]


def test_results_of_another_dataset(files):
    folder, truth, results = files
    order = {c["id"]: i for i, c in enumerate(truth["categories"])}
    contiguous = [r | {"category_id": order[r["category_id"]]} for r in results if r["category_id"] in order]
    (folder / "results.json").write_text(json.dumps(contiguous))
    with pytest.raises(InputError, match="have a `category_id` that .* look like a model's indices, from 0 on"):
        evaluate(folder / "results.json", folder / "truth.json")
    (folder / "results.json").write_text(json.dumps([r | {"image_id": 12345} for r in results]))
    with pytest.raises(InputError, match="have a `image_id` that"):
        evaluate(folder / "results.json", folder / "truth.json")


def test_needs_neither_torch_nor_detectron2(files):
    folder, _, _ = files
    script = (
        "import sys; sys.modules['torch'] = sys.modules['detectron2'] = None; import argparse\n"
        "from eql_d2.cli import evaluate; parser = argparse.ArgumentParser(); evaluate.add_arguments(parser)\n"
        "heavy = {'numpy', 'PIL', 'pycocotools'} & sys.modules.keys(); assert not heavy, heavy\n"
        "evaluate.run(parser.parse_args(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, folder / "results.json", folder / "truth.json", "--bootstrap", "5"]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "95 % intervals" in done.stdout


def test_the_page_shows_what_needs_no_training(files):
    """Without torch and Detectron2, in a process that cannot import them."""
    folder, truth, results = files
    counts = {"image_count": [5, 50, 120, 1, 10, 11], "category_ids": [c["id"] for c in truth["categories"]]}
    (folder / "counts.json").write_text(json.dumps(counts))
    (folder / "<b>.json").write_text(json.dumps([r | {"score": r["score"] / 2} for r in results]))
    script = (
        "import sys; sys.modules['torch'] = sys.modules['detectron2'] = None; from eql_d2.cli import main\n"
        "sys.exit(main(['evaluate', *sys.argv[1:]]))"
    )
    options = ["--bootstrap", "5", "--frequencies", folder / "counts.json", "--report", folder / "page.html"]
    inputs = [folder / "results.json", folder / "<b>.json", folder / "truth.json"]
    command = [sys.executable, "-c", script, *inputs, *options]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (folder / "page.html").read_text()
    titles = re.findall(r'<h2 id="[\w-]+">(.+?)</h2>', page)
    assert titles == ["Results", "Intervals", "AP by frequency", "Gained and lost", "Score calibration", "Confusion"]
    assert "2 results files" in page and "&lt;b&gt;" in page and "<b>.json" not in page
    assert "seeds" not in page.partition("<main>")[2].replace("spread over seeds", "")


def test_a_page_without_its_extra_is_one_line_before_any_work(files, monkeypatch, capsys):
    folder, _, _ = files
    monkeypatch.delitem(sys.modules, "eql_d2.report.page", raising=False)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    inputs = [str(folder / name) for name in ("results.json", "truth.json", "page.html")]
    assert main(["evaluate", *inputs[:2], "--report", inputs[2]]) == 1
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.rstrip().endswith("pip install 'eql_d2[report]'")


def test_the_limit_is_in_the_names(files):
    folder, truth, results = files
    out = folder / "out.json"
    evaluate(folder / "results.json", folder / "truth.json", "--max-dets", 7, "--json", out)
    metrics = json.loads(out.read_text())["results"][0]["metrics"]
    assert metrics["AR@7"] == pytest.approx(100 * cases.lvis_api(truth, results, "bbox", 7).get_results()["AR@300"])
    assert "AR@300" not in metrics
    with pytest.raises(InputError, match="max_dets must be"):
        evaluate(folder / "results.json", folder / "truth.json", "--max-dets", 0)


def test_mistakes_are_one_line_before_any_work(files, capsys):
    folder, _, _ = files
    inputs = [str(folder / "results.json"), str(folder / "truth.json")]
    for arguments, words in (
        ([*inputs, "--bootstrap", "1"], "--bootstrap needs at least 2"),
        ([*inputs, "--boundary"], "--iou-type segm"),
        ([*inputs, "--seed", "-1"], "--seed must be 0 or more"),
        ([*inputs, "--max-unknown", "5"], "--max-unknown is a share"),
        ([inputs[0], *inputs], "is given twice"),
        ([*inputs, "--json", str(folder)], "is a folder: name a file"),
        ([*inputs, "--report", str(folder / "truth.json" / "page.html")], "truth.json: that is a file"),
        (inputs[::-1], "results come first, annotations last"),
    ):
        assert main(["evaluate", *arguments]) == 1
        shown = capsys.readouterr()
        assert shown.out == "" and words in shown.err and len(shown.err.splitlines()) == 1


def test_results_of_one_name_in_two_folders(files, capsys):
    folder, _, results = files
    for name in "ab":
        (folder / name).mkdir()
        (folder / name / "results.json").write_text(json.dumps(results))
    paths = [folder / name / "results.json" for name in "ab"]
    evaluate(*paths, folder / "truth.json", "--categories", folder / "new" / "table.csv")
    assert len(list((folder / "new").glob("table.*_a_results.csv"))) == 1 and len(list((folder / "new").iterdir())) == 2
    assert str(paths[1]) in capsys.readouterr().out
