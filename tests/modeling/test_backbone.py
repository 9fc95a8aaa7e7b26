from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage


def test_every_trainable_parameter_gets_a_gradient(tiny_cfg, batched_inputs):
    """Or training in several processes stops: DistributedDataParallel waits for all of them."""
    model = build_model(tiny_cfg("MODEL.ROI_HEADS.NAME", "EQLROIHeads"))
    with EventStorage():
        sum(model(batched_inputs).values()).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
