"""Detectron2's test-time augmentation with the post-processing of :mod:`eql_d2.modeling.inference`."""

import torch
from detectron2.modeling import GeneralizedRCNNWithTTA

from eql_d2.modeling.inference import fast_rcnn_inference_single_image

SCORE_THRESH = 1e-8  # Detectron2's: the model's own has been applied to each augmented image


class LongTailRCNNWithTTA(GeneralizedRCNNWithTTA):
    """GeneralizedRCNNWithTTA that merges the detections of the augmented images fast; they are the same."""

    def _merge_detections(self, all_boxes, all_scores, all_classes, shape_hw):
        """
        Args:
            all_boxes: (N, 4) of all augmented images, in the coordinates of the original.
            all_scores: N scalar tensors.
            all_classes: N scalar int64 tensors in [0, K).
            shape_hw: (height, width) of the original image.

        Returns:
            Instances.
        """
        # Detectron2 fills its matrix number by number; + 1 for the background column.
        scores = all_boxes.new_zeros(len(all_boxes), self.cfg.MODEL.ROI_HEADS.NUM_CLASSES + 1, dtype=torch.float32)
        if len(all_boxes):
            scores.scatter_(1, torch.stack(all_classes)[:, None], torch.stack(all_scores)[:, None].float())
        instances, _ = fast_rcnn_inference_single_image(
            all_boxes,
            scores,
            shape_hw,
            SCORE_THRESH,
            self.cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
            self.cfg.TEST.DETECTIONS_PER_IMAGE,
        )
        return instances
