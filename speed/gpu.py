#!/usr/bin/env python
"""Run and time on a GPU what was written for one, in one command: at most 10 minutes, 8 GiB, no network.

    python speed/gpu.py --output gpu.json
    python speed/gpu.py --device cpu --quick --output gpu.json

Sections:
  sync       a training step of each loss never makes the host wait: no copy to the host in the profiler's record, and
             none that torch's own debug mode sees
  losses     losses beside the authors' formulas and fvcore, in fp32, bf16 and fp16: eager, compiled, as a CUDA graph
  inference  post-processing of boxes beside Detectron2's, on the same device, and whether the detections are equal
  masks      from the mask head's scores to RLEs, the same
  training   EQL on MiniLVIS from random weights, in fp32, bf16 and fp16 with its scaler: finite, and falling
  nccl       one process under DistributedDataParallel (NCCL; gloo on a CPU) equals the same without

What cannot be run on the device is a row that says why, not a row less. The exit status is 1 where something that ran
is wrong: a wait, other detections, a loss that is not finite.
"""

import argparse
import functools
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torchvision
from tabulate import tabulate
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import Timer

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler prints when it starts and stops
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `python speed/gpu.py`

from eql_d2 import CLS_LOSS_REGISTRY
from speed.cases import inference_variants, random_scores, trained_scores
from speed.losses import BCE, FLOOR, OURS, frequencies_of, make_loss, make_steps, peak_bytes
from speed.masks import masks_variants

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
COPY_TO_HOST = "DtoH"  # in the names that CUDA's profiler gives to copies
NO_CUDA = "not run: it needs a CUDA device"


def milliseconds(call, seconds: float) -> float:
    """Median time of a call, the device's work included; ``seconds`` is how long to repeat it."""
    return 1e3 * Timer("call()", globals={"call": call}).blocked_autorange(min_run_time=seconds).median


def peak_mib(call, device: torch.device) -> float:
    """What torch hands out at most during a call, above what is there before."""
    if device.type != "cuda":
        return peak_bytes(call) / 2**20
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def in_words(error: Exception) -> str:
    return f"failed: {type(error).__name__}: {str(error).strip().splitlines()[0][:120] if str(error).strip() else ''}"


def sync_rows(device: torch.device, _quick: bool) -> list[dict]:
    """A row for each loss: waits that were seen in a step, forward and backward."""
    rows = []
    steps = make_steps(64, 90, torch.float32)
    for (loss, implementation), step in steps.items():
        if implementation != OURS:
            continue
        row = {"loss": loss}
        if device.type != "cuda":
            rows.append({**row, "status": NO_CUDA})
            continue
        step()  # whatever a first step makes
        torch.cuda.synchronize()
        try:
            torch.cuda.set_sync_debug_mode("error")
            with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as record:
                step()
            torch.cuda.set_sync_debug_mode("default")
            torch.cuda.synchronize()
        except RuntimeError as error:
            torch.cuda.set_sync_debug_mode("default")
            rows.append({**row, "status": in_words(error), "wrong": True})
            continue
        copies = sum(COPY_TO_HOST in event.name for event in record.events())
        kernels = sum(event.device_type == torch.autograd.DeviceType.CUDA for event in record.events())
        rows.append({**row, "copies to the host": copies, "kernels": kernels, "wrong": copies > 0, "status": "ok"})
    return rows


def graphed(step):
    """The step captured as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    step.logits.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = step.loss(step.logits, step.gt_classes)
        value.backward()
    return graph.replay


def loss_rows(device: torch.device, quick: bool) -> list[dict]:
    """A row for each implementation of each loss that there is another code of, in each case and precision."""
    rows, seconds = [], 0.02 if quick else 0.3
    sizes = ((64, 90),) if quick else ((512, 1203), (4096, 1203))
    for (R, K), (precision, dtype) in ((size, each) for size in sizes for each in PRECISIONS.items()):
        torch.manual_seed(0)
        steps = make_steps(R, K, dtype)
        compared = {loss for loss, implementation in steps if implementation != OURS} | {BCE[0], FLOOR[0]}
        for (loss, implementation), step in steps.items():
            if loss not in compared:
                continue
            ways = {"eager": lambda step=step: step}
            if loss != FLOOR[0] and not quick:
                ways["torch.compile"] = functools.partial(torch_compiled, step)
                ways["CUDA graph"] = functools.partial(graphed, step)
            for way, make in ways.items():
                row = {"case": f"{R} x {K}, {precision}", "loss": loss, "implementation": implementation, "way": way}
                if way == "CUDA graph" and device.type != "cuda":
                    rows.append({**row, "status": NO_CUDA})
                    continue
                try:
                    call = make()
                    call()
                    row |= {"ms": milliseconds(call, seconds), "MiB": peak_mib(call, device), "status": "ok"}
                    if loss != FLOOR[0]:
                        row["wrong"] = not bool(torch.isfinite(step()).item())
                except Exception as error:  # a compiler or a capture that fails is a finding, not the end
                    row["status"] = in_words(error)
                rows.append(row)
    return rows


def torch_compiled(step):
    """The loss in torch.compile; its step is measured whole."""
    torch._dynamo.reset()
    compiled = type(step)(torch.compile(step.loss), step.logits, step.gt_classes)
    compiled()
    return compiled


def beside(variants: dict, same, device: torch.device, seconds: float) -> dict:
    """Columns of a comparison: stock's and our milliseconds and memory, and whether the results are the same."""
    (_, stock), (_, ours) = variants.items()
    equal = same(stock(), ours())
    return {
        "detectron2 ms": milliseconds(stock, seconds),
        "eql_d2 ms": milliseconds(ours, seconds),
        "detectron2 MiB": peak_mib(stock, device),
        "eql_d2 MiB": peak_mib(ours, device),
        "equal": equal,
        "wrong": not equal,
        "status": "ok",
    }


def same_detections(stock, ours) -> bool:
    (a,), (b,) = stock[0], ours[0]
    pairs = ((a.pred_boxes.tensor, b.pred_boxes.tensor), (a.scores, b.scores), (a.pred_classes, b.pred_classes))
    return all(torch.equal(x, y) for x, y in pairs)


def inference_rows(device: torch.device, quick: bool) -> list[dict]:
    rows = []
    for R, K in ((50, 40),) if quick else ((1000, 1203), (1000, 80)):
        for kind, make_scores in (("trained", trained_scores), ("random", random_scores)):
            for boxes, C in (("K boxes", K), ("1 box", 1)):
                with torch.device("cpu"):  # where the draws are made
                    variants = inference_variants(make_scores, R, K, C, str(device))
                row = {"case": f"{R} x {K}, {kind} scores, {boxes}"}
                rows.append({**row, **beside(variants, same_detections, device, 0.02 if quick else 0.5)})
    return rows


def same_rles(stock, ours) -> bool:
    return [rle["counts"].decode("ascii") for rle in stock] == [rle["counts"] for rle in ours]


def mask_rows(device: torch.device, quick: bool) -> list[dict]:
    rows = []
    for low, high in ((0.1, 1),) if quick else ((0.1, 1), (1, 5), (5, 30)):
        with torch.device("cpu"):
            variants = masks_variants(low / 100, high / 100, str(device))
        row = {"case": f"300 masks of {low} to {high} % of the image"}
        rows.append({**row, **beside(variants, same_rles, device, 0.02 if quick else 0.5)})
    return rows


def training_rows(device: torch.device, quick: bool) -> list[dict]:
    """EQL on MiniLVIS, by the command that a user would type."""
    rows, iterations = [], 4 if quick else 200
    for precision in PRECISIONS:
        with tempfile.TemporaryDirectory() as folder:
            keys = {"MODEL.DEVICE": device.type, "MODEL.WEIGHTS": "", "OUTPUT_DIR": folder, "SEED": 0}
            keys |= {"SOLVER.MAX_ITER": iterations, "TEST.EVAL_PERIOD": 0, "DATASETS.TEST": "()"}
            keys |= {"SOLVER.WARMUP_ITERS": iterations // 4, "SOLVER.STEPS": "()"}
            if precision != "fp32":
                keys |= {"SOLVER.AMP.ENABLED": True, "SOLVER.AMP.PRECISION": precision}
            command = [sys.executable, "-m", "eql_d2", "train", "--config-file", "MiniLVIS/eql_faster_rcnn.yaml"]
            command += [str(word) for pair in keys.items() for word in pair]
            start = time.perf_counter()
            result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            row = {"precision": precision, "iterations": iterations, "seconds": time.perf_counter() - start}
            rows.append({**row, **outcome_of_training(result, Path(folder), precision, device)})
    return rows


def outcome_of_training(result, folder: Path, precision: str, device: torch.device) -> dict:
    last_line = result.stdout.strip().splitlines()[-1] if result.stdout.strip() else ""
    if result.returncode:
        expected = precision == "fp16" and device.type != "cuda"  # it says so itself
        return {"status": last_line[:160], "wrong": not expected}
    records = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    losses = [record["total_loss"] for record in records if "total_loss" in record]
    memory = re.findall(r"max_mem: (\d+)M", result.stdout)
    finite = all(loss == loss and abs(loss) < float("inf") for loss in losses)
    return {
        "first loss": losses[0],
        "last loss": losses[-1],
        "MiB": int(memory[-1]) if memory else None,
        "wrong": not finite or (len(losses) > 2 and losses[-1] >= losses[0]),
        "status": "ok",
    }


def nccl_rows(device: torch.device, _quick: bool) -> list[dict]:
    """The gradient of each loss under DistributedDataParallel in one process is that without."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    R, K, rows = 64, 90, []
    with tempfile.TemporaryDirectory() as folder:
        distributed.init_process_group(backend, init_method=f"file://{folder}/store", world_size=1, rank=0)
        try:
            for name, loss_class in CLS_LOSS_REGISTRY:
                gradients = [gradient_of_layer(loss_class, R, K, device, wrap) for wrap in (False, True)]
                equal = torch.equal(*gradients)
                rows.append({"loss": name, "backend": backend, "equal": equal, "wrong": not equal, "status": "ok"})
        finally:
            distributed.destroy_process_group()
    return rows


class Classifier(torch.nn.Module):
    """A layer with its loss, as a box predictor has it."""

    def __init__(self, loss, width: int, features: int = 16):
        super().__init__()
        self.layer, self.loss = torch.nn.Linear(features, width), loss

    def forward(self, features, gt_classes):
        return self.loss(self.layer(features), gt_classes, features=features)


def gradient_of_layer(loss_class, R: int, K: int, device: torch.device, wrap: bool) -> torch.Tensor:
    torch.manual_seed(0)
    loss = make_loss(loss_class, K, frequencies_of(K))
    classifier = Classifier(loss, loss.num_logits).to(device)
    model = DistributedDataParallel(classifier, broadcast_buffers=False) if wrap else classifier
    features = torch.rand(R, 16)
    gt_classes = torch.where(torch.rand(R) < 0.25, torch.randint(0, K, (R,)), K)
    torch.manual_seed(1)
    model(features, gt_classes).backward()
    return classifier.layer.weight.grad


SECTIONS = {
    "sync": sync_rows,
    "losses": loss_rows,
    "inference": inference_rows,
    "masks": mask_rows,
    "training": training_rows,
    "nccl": nccl_rows,
}


def device_of(name: str) -> torch.device:
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("error: torch sees no CUDA device; --device cpu tries the command without one")
    return torch.device(name)


def words_of(device: torch.device) -> dict:
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": card,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "cuda": torch.version.cuda,
    }


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu, to try the command (default: cuda)")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="default: all")
    parser.add_argument("--quick", action="store_true", help="small sizes and few repeats: does it run?")
    parser.add_argument("--output", help="JSON file to write the rows to, after each section")
    return parser.parse_args()


def main(args: argparse.Namespace) -> int:
    device = device_of(args.device)
    torch.set_default_device(device)
    report = {**words_of(device), "quick": args.quick, "sections": {}}
    print(", ".join(f"{key} {value}" for key, value in report.items() if key != "sections"))
    for name in args.sections:
        start = time.perf_counter()
        try:
            rows = SECTIONS[name](device, args.quick)
        except Exception as error:  # the other sections are worth having
            rows = [{"status": in_words(error), "wrong": True}]
        report["sections"][name] = rows
        print(f"\n{name}, {time.perf_counter() - start:.0f} s", flush=True)
        print(tabulate(rows, headers="keys", floatfmt=".4g"), flush=True)
        if args.output:
            Path(args.output).write_text(json.dumps(report, indent=1))
    wrong = sum(bool(row.get("wrong")) for rows in report["sections"].values() for row in rows)
    missing = sum(row["status"] != "ok" for rows in report["sections"].values() for row in rows)
    print(f"\n{wrong} wrong, {missing} not run" + (f"; rows in {args.output}" if args.output else ""))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(parse_args()))
