import json

import pytest

from eql_d2.evaluation.compare import compare_runs


def make_run(folder, seed, loss, scores, datasets=("val",)):
    """A run's folder; with several test sets, `scores` are of each of them."""
    folder.mkdir()
    config = {"SEED": seed, "OUTPUT_DIR": str(folder), "LOSS": loss, "DATASETS": {"TEST": list(datasets)}}
    (folder / "config.yaml").write_text(json.dumps(config))
    lines = [{"iteration": 1, "total_loss": 2.0}]
    of_each = {"bbox/": scores} if len(datasets) == 1 else {f"{d}/bbox/": scores[d] for d in datasets}
    lines += [{f"{prefix}{k}": v for prefix, of in of_each.items() for k, v in of.items()}] if scores else []
    (folder / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
    return folder


def scores(ap):
    return {"AP": ap, "APr": ap - 1, "APc": ap, "APf": ap + 1}


def table(*args, **kwargs):
    """The cells below the header, row by row."""
    rows = compare_runs(*args, **kwargs).splitlines()[2:]
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]


def test_seeds_are_one_row(tmp_path):
    runs = [
        make_run(tmp_path / "eql_0", 0, "eql", scores(10.0)),
        make_run(tmp_path / "softmax_0", 0, "softmax", scores(7.0)),
        make_run(tmp_path / "eql_1", 1, "eql", scores(12.0)),
    ]
    eql, softmax = table(runs)
    assert eql == ["eql_0", "2", "11.0 ± 1.4", "10.0 ± 1.4", "11.0 ± 1.4", "12.0 ± 1.4"]
    assert softmax[:3] == ["softmax_0", "1", "7.0"]


def test_a_group_without_a_category_has_empty_cells(tmp_path):
    """COCO's format: no APr in the file, or a NaN of Detectron2's."""
    runs = [
        make_run(tmp_path / "eql_0", 0, "eql", {"AP": 10.0, "APc": float("nan"), "APf": 11.0}),
        make_run(tmp_path / "eql_1", 1, "eql", {"AP": 12.0, "APc": 3.0, "APf": 13.0}),
    ]
    assert table(runs) == [["eql_0", "2", "11.0 ± 1.4", "", "3.0", "12.0 ± 1.4"]]


def test_of_several_test_sets_one_is_chosen(tmp_path):
    runs = [make_run(tmp_path / "eql", 0, "eql", {"val": scores(10.0), "minival": scores(20.0)}, ("val", "minival"))]
    with pytest.raises(ValueError, match="eql was evaluated on val, minival: choose one by --dataset"):
        compare_runs(runs)
    assert table(runs, dataset="val") == [["eql", "1", "10.0", "9.0", "10.0", "11.0"]]
    assert table(runs, dataset="minival") == [["eql", "1", "20.0", "19.0", "20.0", "21.0"]]
    alone = make_run(tmp_path / "softmax", 0, "softmax", scores(7.0))
    assert table([*runs, alone], dataset="val")[1] == ["softmax", "1", "7.0", "6.0", "7.0", "8.0"]
    with pytest.raises(ValueError, match="softmax was not evaluated on minival, but on val"):
        compare_runs([*runs, alone], dataset="minival")


def test_the_config_of_a_lazy_run_names_no_test_set(tmp_path):
    run = make_run(tmp_path / "lazy", 0, "eql", scores(10.0))
    (run / "config.yaml").write_text("train: {}")
    assert table([run]) == [["lazy", "1", "10.0", "9.0", "10.0", "11.0"]]


def test_folders_that_are_no_finished_runs(tmp_path):
    unfinished = make_run(tmp_path / "run", 0, "eql", None)
    with pytest.raises(ValueError, match="no bbox results"):
        compare_runs([unfinished])
    with pytest.raises(ValueError, match="no config.yaml"):
        compare_runs([tmp_path])


def test_an_unfinished_run_is_said_and_left_out_unless_asked_for(tmp_path):
    """Killed in its last evaluation, it has the scores of one in the middle."""
    runs = [make_run(tmp_path / f"eql_{seed}", seed, "eql", scores(10.0 + 10 * seed)) for seed in (0, 1)]
    for run, iteration in zip(runs, (39, 60)):
        config = json.loads((run / "config.yaml").read_text())
        (run / "config.yaml").write_text(json.dumps({**config, "SOLVER": {"MAX_ITER": 60}}))
        lines = [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()]
        lines[-1]["iteration"] = iteration
        (run / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
    *_, row, said = compare_runs(runs).splitlines()
    assert [cell.strip() for cell in row.split("|")[1:4]] == ["eql_1", "1", "20.0"]
    assert said.startswith(f"{runs[0]} is left out: its last evaluation is of iteration 40 of 60.")
    assert table(runs, unfinished=True)[0][1:3] == ["2", "15.0 ± 7.1"]
    with pytest.raises(ValueError, match="iteration 40 of 60.*--resume.*--unfinished"):
        compare_runs(runs[:1])
