"""LVIS's LazyConfig recipes made small enough for a CPU, by depth, width, image size, batch, and the data set.

docs/modern.md has the table of what is changed.
"""

from detectron2.config import LazyCall as L
from detectron2.evaluation import LVISEvaluator

from eql_d2.modeling.long_tail import box_predictor_nodes

SIZE = 128
SMALL = {
    "ViT": {
        "img_size": SIZE,
        "embed_dim": 48,
        "depth": 2,
        "num_heads": 2,
        "window_size": 4,
        "window_block_indexes": [0],
    },
    "SwinTransformer": {"depths": [1, 1, 1, 1], "embed_dim": 24, "num_heads": [1, 2, 2, 4]},
    "MViT": {"embed_dim": 24, "depth": 4, "last_block_indexes": (0, 1, 2, 3)},
}


def small(cfg, datasets, output_dir, classes):
    """The recipe on another data set, on the CPU."""
    backbone = cfg.model.backbone
    body = backbone.get("net") or backbone.bottom_up
    body.update(SMALL.get(body._target_.__name__, {}))
    if "square_pad" in backbone:
        backbone.square_pad = SIZE
    narrow_heads(cfg.model, classes)
    loader = cfg.dataloader
    loader.train.update(total_batch_size=2, num_workers=0)
    loader.test.num_workers = 0
    for augmentation in (*loader.train.mapper.augmentations, *loader.test.mapper.augmentations):
        for key, value in (("crop_size", (SIZE, SIZE)), ("target_height", SIZE), ("target_width", SIZE)):
            if key in augmentation:
                augmentation[key] = value
        if "short_edge_length" in augmentation:
            augmentation.update(short_edge_length=SIZE, max_size=SIZE)
    loader.train.dataset.names, loader.test.dataset.names = datasets
    if loader.evaluator._target_ is not LVISEvaluator:  # a COCO recipe
        loader.evaluator = L(LVISEvaluator)(dataset_name=datasets[1])
    cfg.train.update(max_iter=2, init_checkpoint="", output_dir=str(output_dir), device="cpu", seed=0)
    cfg.train.amp.enabled = False  # fp16 needs a GPU
    return cfg


def narrow_heads(model, classes):
    """Fewer channels, proposals and RoIs: on a CPU the heads take most of the time."""
    model.proposal_generator.update(pre_nms_topk=(100, 100), post_nms_topk=(50, 20))
    head = model.roi_heads
    head.update(num_classes=classes, batch_size_per_image=16)
    for box_head in head.get("box_heads") or [head.box_head]:
        box_head.update(conv_dims=[32 for _ in box_head.conv_dims], fc_dims=[64 for _ in box_head.fc_dims])
    for predictor in box_predictor_nodes(model):
        predictor.input_shape.channels = 64
        predictor.update(num_classes=classes, test_topk_per_image=10)
    head.mask_head.update(num_classes=classes, conv_dims=[32 for _ in head.mask_head.conv_dims])
