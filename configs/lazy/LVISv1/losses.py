"""What the recipes here take for their classification loss: `long_tail(model, loss=eql)`."""

from detectron2.config import LazyCall as L

from eql_d2 import ClassFrequencies
from eql_d2.losses import (
    EqualizationLoss,
    EqualizationLossV2,
    FederatedLoss,
    SeesawLoss,
)

frequencies = L(ClassFrequencies.from_dataset)(name="lvis_v1_train")  # the package has these counts

federated = L(FederatedLoss)(frequencies=frequencies)  # sigmoid cross-entropy on 50 categories a step: the baseline
eql = L(EqualizationLoss)(frequencies=frequencies)
eqlv2 = L(EqualizationLossV2)()
seesaw = L(SeesawLoss)()  # its authors normalise the classifier: long_tail(model, loss=seesaw, cls_temperature=20.0)
