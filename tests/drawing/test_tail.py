"""`eql-d2 data`: what the table says, and that the picture is drawn."""

import json

import pytest
from PIL import Image

from eql_d2 import ClassFrequencies, TailRule
from eql_d2.cli import main
from eql_d2.drawing.tail import default_rules, describe_data


def row_of(table, rule):
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {rule} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_for_lvis_v05_says_what_the_paper_says():
    frequencies = ClassFrequencies.from_dataset("lvis_v0.5_train")
    table = describe_data(frequencies, [*default_rules(frequencies), TailRule(lambda_=0.00177)])
    assert row_of(table, "share of images < 0.00177")[2:] == ["915 of 1230", "454", "461", "0", "0.0909"]
    assert row_of(table, "image count <= 100")[2:6] == ["915 of 1230", "454", "461", "0"]
    assert row_of(table, "groups 'r'")[2:6] == ["454 of 1230", "454", "0", "0"]
    # The lambda that is proposed selects the same as 100 images.
    proposed = default_rules(frequencies)[-1].mask(frequencies)
    assert proposed.equal(frequencies.image_count <= 100)


def test_shares_need_the_number_of_images(frequencies):
    unknown = ClassFrequencies(image_count=frequencies.image_count)
    table = describe_data(unknown, [*default_rules(unknown), TailRule(lambda_=0.1)])
    assert "the number of annotated images" in row_of(table, "share of images < 0.1")[1]
    assert row_of(table, "image count <= 10")[2] == "3 of 7"


@pytest.mark.parametrize("source", ["counts", "annotations", "counts without images", "registered"])
def test_the_tool(source, frequencies, counts_file, tmp_path, monkeypatch, capsys):
    dataset = counts_file
    if source == "annotations":
        dataset = tmp_path / "annotations.json"
        boxes = [{"id": i, "image_id": i % 3, "category_id": i % 2, "bbox": [0, 0, 1, 1]} for i in range(9)]
        images = [{"id": i, "file_name": f"{i}.jpg", "height": 9, "width": 9} for i in range(3)]
        categories = [{"id": i, "name": str(i)} for i in range(3)]
        dataset.write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    elif source == "counts without images":
        dataset = tmp_path / "bare.json"
        ClassFrequencies(image_count=frequencies.image_count).save(dataset)
    elif source == "registered":
        dataset = "lvis_v1_train"
    picture = tmp_path / "out" / "tail.png"
    assert main(["data", str(dataset), "--output", str(picture), "--lambda", "0.01"]) == 0
    assert Image.open(picture).size[0] > 1000
    assert capsys.readouterr().out.splitlines()[-1] == f"picture: {picture}"

    assert main(["data", "no_such_set", "--output", str(picture)]) == 1
    assert "error: there is no file no_such_set" in capsys.readouterr().err
