"""Convert weights of mmdetection (Mask R-CNN, Seesaw), eqlv2, BAGS, or a ResNet of torchvision or timm to Detectron2's.

    eql-d2 convert mask_rcnn_r50_fpn_seesaw_lvis.pth seesaw.pth
    eql-d2 convert resnet50-11ad3fa6.pth backbone.pth
    eql-d2 convert gs_mask_rcnn_r50_fpn_1x_lvis.pth bags.pth --counts lvis_v0.5_train

It prints the config keys that the weights need (docs/coming_from.md).
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("weights", help="their file, .pth")
    parser.add_argument("output", help="file to write, .pth")
    parser.add_argument("--num-classes", type=int, help="K, where the weights do not say it")
    parser.add_argument("--counts", help="of BAGS: a counts file of `eql-d2 counts`, or lvis_v0.5_train, lvis_v1_train")


def run(args: argparse.Namespace) -> None:
    import torch

    from eql_d2.cli.data import read_frequencies
    from eql_d2.data.whole_files import written_whole
    from eql_d2.engine.checkpoint import read_state_dict
    from eql_d2.engine.foreign_weights import convert

    frequencies = read_frequencies(args.counts) if args.counts else None
    converted = convert(read_state_dict(args.weights), args.num_classes, frequencies)
    with written_whole(args.output, "wb") as file:
        torch.save({"model": converted.weights}, file)
    keys = f"{converted.keys} MODEL.WEIGHTS {args.output}"
    if converted.losses:
        print(f"wrote {args.output}: {len(converted.weights)} tensors, {converted.num_classes} categories")
        loss = converted.losses[0]
        print(f"the loss is {' or '.join(converted.losses)}: MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME {loss} {keys}")
    else:
        print(f"wrote {args.output}: {len(converted.weights)} tensors of a backbone; train from it with {keys}")
