"""What mypy makes of code that uses the installed package."""

import pytest
from mypy import api

pytestmark = pytest.mark.slow

SNIPPET = """
import torch
from eql_d2 import ClassFrequencies, TailRule
from eql_d2.losses import EqualizationLoss, LateStart, LDAMLoss, SeesawLoss

loss = EqualizationLoss(1203, frequencies=ClassFrequencies.from_dataset("lvis_v1_train"), tail=TailRule(groups="r"))
reveal_type(loss)
reveal_type(loss.prior_prob)
reveal_type(LateStart(loss.plain(), loss, start_iter=1).then)
reveal_type(SeesawLoss(3).parts(torch.zeros(1, 5), torch.zeros(1).long()))
EqualizationLoss(2, frequencies=[3, 4], tail=100)
EqualizationLoss(2, frequencies=torch.tensor([3, 4]), tail="r")
LDAMLoss(2, frequencies=(3, 4))
EqualizationLoss(1203, lambda_=0.1)
"""


def test_losses_have_types(tmp_path):
    (tmp_path / "mine.py").write_text(SNIPPET)
    output, _, _ = api.run(
        ["--strict", "--follow-imports=silent", "--ignore-missing-imports", str(tmp_path / "mine.py")]
    )
    shown = [line.split(": ", 1)[1] for line in output.splitlines()[:-1] if "Missing named argument" not in line]
    assert shown[:4] == [
        'note: Revealed type is "eql_d2.losses.equalization_loss.EqualizationLoss"',
        'note: Revealed type is "float"',
        'note: Revealed type is "eql_d2.losses.base.ClassificationLoss"',
        'note: Revealed type is "dict[str, torch._tensor.Tensor]"',
    ], output
    assert 'Unexpected keyword argument "lambda_" for "EqualizationLoss"' in shown[4]
