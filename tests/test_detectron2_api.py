"""The Detectron2 that is installed has what this project imports and overrides; after an upgrade: what broke."""

import importlib
import inspect
import pkgutil

import pytest
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import DefaultPredictor, DefaultTrainer, HookBase, SimpleTrainer, hooks
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from detectron2.modeling import GeneralizedRCNNWithTTA, RetinaNet
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.roi_heads import CascadeROIHeads, FastRCNNOutputLayers, ROIHeads
from detectron2.structures import ROIMasks

import eql_d2

# What is overridden of each. A method that is gone there would leave ours without a caller and without an error.
OVERRIDDEN = {
    CascadeROIHeads: "_forward_box forward from_config",
    COCOEvaluator: "_eval_predictions evaluate process reset",
    DatasetEvaluator: "evaluate process reset",
    DefaultPredictor: "__init__",
    DefaultTrainer: "after_train auto_scale_workers build_evaluator build_hooks build_lr_scheduler build_model "
    "build_optimizer build_test_loader build_train_loader build_writers load_state_dict resume_or_load run_step test "
    "train",
    DetectionCheckpointer: "_load_file _load_model _torch_load load resume_or_load save tag_last_checkpoint",
    FCOS: "forward_inference forward_training losses",
    FastRCNNOutputLayers: "forward from_config inference losses predict_boxes predict_boxes_for_gt_classes "
    "predict_probs",
    GeneralizedRCNNWithTTA: "_merge_detections",
    HookBase: "after_step after_train before_step before_train state_dict",
    hooks.PreciseBN: "update_stats",
    ROIHeads: "forward from_config",
    RetinaNet: "forward_inference forward_training from_config losses",
    ROIMasks: "__getitem__ __len__ to to_bitmasks",
    SimpleTrainer: "after_train load_state_dict run_step state_dict",
}


def is_upstream(part) -> bool:
    return part.__module__.split(".")[0] in ("detectron2", "fvcore")


def our_classes() -> list[type]:
    """Those with a base of Detectron2's. Importing every module tries every import."""
    names = [m.name for m in pkgutil.walk_packages(eql_d2.__path__, "eql_d2.") if ".configs" not in m.name]
    classes = {c for name in names for c in vars(importlib.import_module(name)).values() if inspect.isclass(c)}
    return [c for c in classes if c.__module__.startswith("eql_d2") and any(map(is_upstream, c.__mro__))]


@pytest.mark.parametrize("theirs", OVERRIDDEN, ids=lambda cls: cls.__name__)
def test_overridden_methods_are_there(theirs):
    assert [name for name in OVERRIDDEN[theirs].split() if not hasattr(theirs, name)] == []


def test_overrides_take_the_calls_of_what_they_override():
    """The fewest arguments, all in order, all by name."""
    for cls in our_classes():
        for name in set(dir(cls)) - {"__init__"}:  # nobody upstream constructs our classes
            owners = [c for c in cls.__mro__ if name in vars(c)]
            theirs = next(filter(is_upstream, owners), None)
            if theirs in (None, owners[0]):
                continue
            ours, replaced = (getattr(vars(c)[name], "__func__", vars(c)[name]) for c in (owners[0], theirs))
            if not inspect.isfunction(ours):
                continue
            parameters = list(inspect.signature(replaced).parameters.values())
            by_name = {p.name: None for p in parameters if p.kind is p.KEYWORD_ONLY}
            by_place = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
            try:
                inspect.signature(ours).bind(*[None for p in by_place if p.default is p.empty])
                inspect.signature(ours).bind(*[None] * len(by_place), **by_name)
                inspect.signature(ours).bind(None, **{p.name: None for p in by_place[1:]}, **by_name)
            except TypeError as error:
                raise AssertionError(f"{owners[0].__name__}.{name} must take what {theirs.__name__}'s takes") from error
