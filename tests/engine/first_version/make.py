"""Keeps of a run's folder what is small; of its checkpoint the layout: every name and plain value, no tensor.

The files beside this one are of commit 862c63d, the first version (its tools/proofs made the data):

    cd $(mktemp -d) && python - <<END
    import subprocess, sys
    from pathlib import Path
    sys.path.insert(0, "$FIRST/tools")
    from proofs.runs import CONFIG, Run
    period = ["SOLVER.CHECKPOINT_PERIOD", "3", "TEST.EVAL_PERIOD", "3", "DATALOADER.NUM_WORKERS", "0"]
    run = [sys.executable, "$FIRST/tools/train_net.py", "--config-file", CONFIG]
    subprocess.run(run + Run(Path("run"), Path("data"), 6).options + period, check=True)
    END
    python tests/engine/first_version/make.py run
"""

import json
import shutil
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent
CHECKPOINT = "model_0000002.pth"
KEPT = ("config.yaml", "metrics.json", "gradient_balance.json", "class_counts_proof_train.json")
OF_EVALUATION = ("analysis_bbox.json", "categories_bbox.csv")


def layout(value):
    """A tensor by its type and shape, all else as it is; a dict as pairs, since its keys may be numbers."""
    if isinstance(value, torch.Tensor):
        return {"tensor": str(value.dtype).removeprefix("torch."), "shape": list(value.shape)}
    if isinstance(value, dict):
        return {"dict": [[key, layout(x)] for key, x in value.items()]}
    return [layout(x) for x in value] if isinstance(value, (list, tuple)) else value


def restored(value, generator: torch.Generator):
    """What :func:`layout` was made of, with random tensors: counts of 0 to 9, other numbers of 0 to 0.1."""
    if isinstance(value, list):
        return [restored(x, generator) for x in value]
    if not isinstance(value, dict):
        return value
    if "dict" in value:
        return {key: restored(x, generator) for key, x in value["dict"]}
    dtype = getattr(torch, value["tensor"])
    if dtype.is_floating_point:
        return torch.rand(value["shape"], generator=generator, dtype=dtype) / 10
    return torch.randint(10, value["shape"], generator=generator, dtype=dtype)


if __name__ == "__main__":
    run = Path(sys.argv[1])
    checkpoint = torch.load(run / CHECKPOINT, weights_only=True)
    (HERE / "layout.json").write_text(json.dumps(layout(checkpoint)) + "\n")
    for path in [run / name for name in KEPT] + [run / "inference" / "proof_val" / name for name in OF_EVALUATION]:
        shutil.copy(path, HERE / path.name)
