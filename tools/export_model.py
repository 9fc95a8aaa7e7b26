#!/usr/bin/env python
"""Write a trained detector as TorchScript, which runs without Detectron2 and from C++.

    python tools/export_model.py --config-file configs/MiniLVIS/eql_faster_rcnn.yaml --output model.ts \\
        MODEL.WEIGHTS output/mini_lvis_eql/model_final.pth

Use: boxes, classes, scores = torch.jit.load("model.ts")(image); with a mask head, masks come before scores.
"""

import argparse
import logging

import torch
import torchvision  # noqa: F401  (the operators of the traced model)

from eql_d2.engine import (
    LongTailCheckpointer,
    Trainer,
    check_run,
    load_config,
    one_line_errors,
    use_available_device,
)
from eql_d2.engine.export import detect, trace_detector
from eql_d2.errors import InputError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="config of the model")
    parser.add_argument("--output", required=True, help="TorchScript file to write")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE overrides of the config")
    return parser.parse_args()


def main(args):
    with one_line_errors():
        cfg = load_config(args.config_file, args.opts)
        use_available_device(cfg)
        check_run(cfg, train=False)
        if not cfg.DATASETS.TEST:
            raise InputError("DATASETS.TEST is empty: the model is traced on the first image of a dataset")
        model = Trainer.build_model(cfg).eval()
        LongTailCheckpointer(model).load(cfg.MODEL.WEIGHTS)
        images = Trainer.build_test_loader(cfg, cfg.DATASETS.TEST[0])
    image = next(iter(images))[0]["image"].to(cfg.MODEL.DEVICE)
    traced = trace_detector(model, image)
    torch.jit.save(traced, args.output)
    expected, got = detect(model, image), torch.jit.load(args.output)(image)
    same = all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))
    print(f"wrote {args.output}: {len(got[0])} detections in an image, equal to the model's: {same}")


if __name__ == "__main__":
    logging.getLogger("detectron2").setLevel(logging.ERROR)
    main(parse_args())
