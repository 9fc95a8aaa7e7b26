"""Write a trained detector as TorchScript, which runs without Detectron2 and from C++.

    eql-d2 export --config-file MiniLVIS/eql_faster_rcnn --output model.ts \\
        MODEL.WEIGHTS output/mini_lvis_eql/model_final.pth

Use: boxes, classes, scores = torch.jit.load("model.ts")(image); with a mask head, masks come before scores.
"""

import argparse
import logging

from eql_d2.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config-file", required=True, metavar="FILE", help="config of the model")
    parser.add_argument("--output", required=True, help="TorchScript file to write")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE overrides of the config")


def run(args: argparse.Namespace) -> None:
    import torch
    import torchvision  # noqa: F401  (the operators of the traced model)

    from eql_d2.data.whole_files import written_whole
    from eql_d2.engine import LongTailCheckpointer, Trainer, check_run, load_config, use_available_device
    from eql_d2.engine.export import detect, trace_detector

    logging.getLogger("detectron2").setLevel(logging.ERROR)
    cfg = load_config(args.config_file, args.opts)
    use_available_device(cfg)
    check_run(cfg, train=False)
    if not cfg.DATASETS.TEST:
        raise InputError("DATASETS.TEST is empty: the model is traced on the first image of a dataset")
    model = Trainer.build_model(cfg).eval()
    LongTailCheckpointer(model).resume_or_load(cfg.MODEL.WEIGHTS, resume=False)
    images = Trainer.build_test_loader(cfg, cfg.DATASETS.TEST[0])
    image = next(iter(images))[0]["image"].to(cfg.MODEL.DEVICE)
    traced = trace_detector(model, image)
    with written_whole(args.output, "wb") as file:
        torch.jit.save(traced, file)
    expected, got = detect(model, image), torch.jit.load(args.output)(image)
    same = all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))
    print(f"wrote {args.output}: {len(got[0])} detections in an image, equal to the model's: {same}")
