"""Training steps of a loss that keeps a state, beside those of a reference that was written from the formula."""

import pytest
import torch


def steps_equal_to(reference, loss, batches, rel: float, rtol: float, atol: float = 1e-16):
    """Take the steps of both, and yield after each, so that the states can be compared too.

    Args:
        reference: its ``step(logits, gt_classes)`` returns value and gradient.
        rel: tolerance of the value.
        rtol, atol: of the gradient.
    """
    for logits, gt_classes in batches:
        expected, expected_gradient = reference.step(logits.detach(), gt_classes)
        value = loss(logits, gt_classes)
        value.backward()
        assert value.item() == pytest.approx(expected, rel=rel)
        torch.testing.assert_close(logits.grad, expected_gradient, rtol=rtol, atol=atol)
        yield
