import json

import pytest

from eql_d2.evaluation.compare import compare_runs


def make_run(folder, seed, loss, scores):
    folder.mkdir()
    (folder / "config.yaml").write_text(f"SEED: {seed}\nOUTPUT_DIR: {folder}\nLOSS: {loss}\n")
    lines = [{"iteration": 1, "total_loss": 2.0}]
    lines += [{f"bbox/{k}": v for k, v in scores.items()}] if scores else []
    (folder / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
    return folder


def scores(ap):
    return {"AP": ap, "APr": ap - 1, "APc": ap, "APf": ap + 1}


def test_seeds_are_one_row(tmp_path):
    runs = [
        make_run(tmp_path / "eql_0", 0, "eql", scores(10.0)),
        make_run(tmp_path / "softmax_0", 0, "softmax", scores(7.0)),
        make_run(tmp_path / "eql_1", 1, "eql", scores(12.0)),
    ]
    header, _, eql, softmax = compare_runs(runs).splitlines()
    spread = ["11.0 ± 1.4", "10.0 ± 1.4", "11.0 ± 1.4", "12.0 ± 1.4"]
    assert [c.strip() for c in eql.split("|")[1:-1]] == ["eql_0", "2", *spread]
    assert [c.strip() for c in softmax.split("|")[1:4]] == ["softmax_0", "1", "7.0"]


def test_folders_that_are_no_finished_runs(tmp_path):
    unfinished = make_run(tmp_path / "run", 0, "eql", None)
    with pytest.raises(ValueError, match="no bbox results"):
        compare_runs([unfinished])
    with pytest.raises(ValueError, match="no config.yaml"):
        compare_runs([tmp_path])
