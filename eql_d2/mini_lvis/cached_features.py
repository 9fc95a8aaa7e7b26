"""A detector whose backbone and proposals are frozen, and so are computed once for each image and kept in files.

A method for the long tail acts on the classifier. Where only the box head and its predictor are trained, an iteration
takes a fifth of its time, and the files serve all methods alike.
"""

import hashlib
import json
import math
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from detectron2.data.detection_utils import read_image
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.structures import Boxes, BoxMode, Instances

from eql_d2.data.registration import datasets_root
from eql_d2.errors import InputError

FOLDER = "mini_lvis_features"  # below the datasets' root
FROZEN = ("backbone", "proposal_generator")


class Outputs(NamedTuple):
    """What the frozen part gives for an image."""

    features: dict[str, torch.Tensor]  # level of the pyramid -> (1, C, H, W), of fp16's numbers
    proposals: Instances  # best first


@META_ARCH_REGISTRY.register()
class CachedFeaturesRCNN(GeneralizedRCNN):
    """GeneralizedRCNN from the features on; the part before them runs only for images that have no file yet.

    Needs ``MODEL.FREEZE: ["backbone", "proposal_generator"]``, and images that are not augmented nor resized: the
    picture is read by this model, when it has no file of features, and known by its name, size and time. These files
    lie in ``$DETECTRON2_DATASETS/mini_lvis_features/<hash of the frozen part>``, 0.1 MB
    each for MiniLVIS. Several processes may fill and read them at once, and all of them may be deleted.

    Deviations from ``GeneralizedRCNN``: features are kept in fp16, which moves them by up to 0.05 %; and the frozen
    part is in evaluation mode also in training, so there is one set of proposals, of ``RPN.POST_NMS_TOPK_TEST``.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._folder: Path | None = None  # of the weights that are loaded now
        self.register_load_state_dict_post_hook(lambda model, _: setattr(model, "_folder", None))

    @classmethod
    def from_config(cls, cfg):
        given, augmented = cfg.INPUT, cfg.INPUT.LSJ.SIZE or cfg.INPUT.COPY_PASTE.MAX_OBJECTS
        if given.RANDOM_FLIP != "none" or given.CROP.ENABLED or augmented or cfg.MODEL.MASK_ON:
            raise InputError(
                "CachedFeaturesRCNN has one set of features for each image, and boxes only: set INPUT.RANDOM_FLIP "
                "none, INPUT.CROP.ENABLED False, INPUT.LSJ.SIZE and INPUT.COPY_PASTE.MAX_OBJECTS 0 and MODEL.MASK_ON "
                "False, or MODEL.META_ARCHITECTURE GeneralizedRCNN"
            )
        return super().from_config(cfg)

    @staticmethod
    def training_mapper(_cfg):
        """In the place of Detectron2's, which reads the picture."""
        return objects_of_image

    def train(self, mode: bool = True):
        """As ever, but for the frozen part, which stays in evaluation mode.

        Raises:
            InputError: the backbone or the proposal generator is to be trained.
        """
        super().train(mode)
        for name in FROZEN:
            part = getattr(self, name).eval()
            if mode and any(p.requires_grad for p in part.parameters()):
                raise InputError(
                    f"CachedFeaturesRCNN computes {' and '.join(FROZEN)} once for each image, but {name} is trained: "
                    f"set MODEL.FREEZE {list(FROZEN)}, or MODEL.META_ARCHITECTURE GeneralizedRCNN"
                )
        return self

    def forward(self, batched_inputs: list[dict]):
        """As of ``GeneralizedRCNN``; in training the losses are those of the ROI heads."""
        if not self.training:
            return self.inference(batched_inputs)
        features, proposals = self._outputs(batched_inputs)
        targets = [x["instances"].to(self.device) for x in batched_inputs]
        _, losses = self.roi_heads(None, features, proposals, targets)  # the head looks at no image
        return losses

    def inference(self, batched_inputs: list[dict], detected_instances=None, do_postprocess: bool = True):
        """As of ``GeneralizedRCNN``, but for boxes that are given."""
        if detected_instances is not None:
            raise InputError("CachedFeaturesRCNN finds its own boxes: for given ones take GeneralizedRCNN")
        features, proposals = self._outputs(batched_inputs)
        results, _ = self.roi_heads(None, features, proposals, None)
        if not do_postprocess:
            return results
        return self._postprocess(results, batched_inputs, [p.image_size for p in proposals])

    @torch.no_grad()
    def _outputs(self, batched_inputs: list[dict]) -> tuple[dict[str, torch.Tensor], list[Instances]]:
        """What the ROI heads are given for a batch of images of one size."""
        each = [self._recall(x) for x in batched_inputs]
        features = {
            level: torch.cat([e.features[level] for e in each]).to(self.device, torch.float32)
            for level in self.roi_heads.in_features
        }
        return features, [e.proposals.to(self.device) for e in each]

    def _recall(self, image: dict) -> Outputs:
        path = self._file(image)
        try:
            return read(path)
        except FileNotFoundError:
            write(path, self._compute(image))
            return read(path)

    def _compute(self, image: dict) -> Outputs:
        pixels = read_image(image["file_name"], self.input_format)
        pixels = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        images = self.preprocess_image([{"image": pixels}])
        features = self.backbone(images.tensor)
        (proposals,), _ = self.proposal_generator(images, features, None)
        return Outputs({level: features[level].half() for level in self.roi_heads.in_features}, proposals)

    def _file(self, image: dict) -> Path:
        """Another picture under the same name has another file."""
        if "image" in image and image["image"].shape[1:] != (image["height"], image["width"]):
            raise InputError(
                f"{image['file_name']} is resized to {tuple(image['image'].shape[1:])}, and CachedFeaturesRCNN takes "
                f"pictures as they are: set INPUT.MIN_SIZE_TEST {min(image['height'], image['width'])}"
            )
        if self._folder is None:
            self._folder = datasets_root() / FOLDER / self._hash_of_frozen_part()
            self._folder.mkdir(parents=True, exist_ok=True)
        source = os.path.abspath(image["file_name"])
        stat = os.stat(source)
        key = repr((source, stat.st_size, stat.st_mtime_ns))
        return self._folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.features"

    def _hash_of_frozen_part(self) -> str:
        digest = hashlib.sha256()
        for name in FROZEN:
            part = getattr(self, name)
            digest.update(repr(part).encode())
            for key, value in part.state_dict().items():
                digest.update(key.encode() + value.cpu().numpy().tobytes())
        rpn = self.proposal_generator
        settings = [rpn.pre_nms_topk, rpn.post_nms_topk, rpn.nms_thresh, rpn.min_box_size, self.roi_heads.in_features]
        settings += [a.tolist() for a in rpn.anchor_generator.cell_anchors]
        settings += [self.pixel_mean.tolist(), self.pixel_std.tolist(), self.input_format]
        digest.update(repr(settings).encode())
        return digest.hexdigest()[:12]


def objects_of_image(image: dict) -> dict:
    """A dataset dict as the model takes it in training: Detectron2's ``instances``, without the picture."""
    objects = [a for a in image["annotations"] if not a.get("iscrowd", 0)]
    boxes = torch.tensor([a["bbox"] for a in objects], dtype=torch.float64).view(-1, 4)
    if objects:
        boxes = BoxMode.convert(boxes, objects[0]["bbox_mode"], BoxMode.XYXY_ABS)
    targets = Instances((image["height"], image["width"]))
    targets.gt_boxes = Boxes(boxes.float())
    targets.gt_classes = torch.tensor([a["category_id"] for a in objects], dtype=torch.int64)
    kept = {key: value for key, value in image.items() if key != "annotations"}
    return {**kept, "instances": targets}


def write(path: Path, outputs: Outputs) -> None:
    """A line of JSON that says what follows, then the arrays' bytes: read in a tenth of the time of numpy's own format.

    The file is there whole or not at all; of two processes that write it the last one's stays.
    """
    proposals = outputs.proposals
    levels = {level: list(features.shape) for level, features in outputs.features.items()}
    header = {"levels": levels, "image_size": proposals.image_size, "proposals": len(proposals)}
    arrays = [*outputs.features.values(), proposals.proposal_boxes.tensor, proposals.objectness_logits]
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(unfinished, "wb") as file:
        file.write(json.dumps(header).encode() + b"\n")
        for array in arrays:
            file.write(array.cpu().numpy().tobytes())
    os.replace(unfinished, path)


def read(path: Path) -> Outputs:
    """What :func:`write` wrote."""
    with open(path, "rb") as file:
        header = json.loads(file.readline())
        content = bytearray(file.read())
    place = 0

    def take(dtype: torch.dtype, *shape: int) -> torch.Tensor:
        nonlocal place
        size = math.prod(shape)  # torch cannot take 0 numbers from a buffer
        array = (
            torch.frombuffer(content, dtype=dtype, count=size, offset=place) if size else torch.empty(0, dtype=dtype)
        )
        place += array.nbytes
        return array.view(shape)

    features = {level: take(torch.float16, *shape) for level, shape in header["levels"].items()}
    proposals = Instances(tuple(header["image_size"]))
    proposals.proposal_boxes = Boxes(take(torch.float32, header["proposals"], 4))
    proposals.objectness_logits = take(torch.float32, header["proposals"])
    return Outputs(features, proposals)
