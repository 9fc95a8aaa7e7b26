"""Names that configs had before 0.2.0, and the file and overrides that say the same now."""

import re
from pathlib import Path

RFS = "DATALOADER.SAMPLER_TRAIN RepeatFactorTrainingSampler DATALOADER.REPEAT_THRESHOLD"
SCHEDULE_2X = 'SOLVER.STEPS "(120000, 160000)" SOLVER.MAX_ITER 180000'
LVIS_V05 = (
    "MODEL.ROI_HEADS.NUM_CLASSES 1230 DATASETS.TRAIN \"('lvis_v0.5_train',)\" DATASETS.TEST \"('lvis_v0.5_val',)\""
)
LVIS = re.compile(
    r"(LVISv0\.5|LVISv1)/(eql|sigmoid|softmax)_mask_rcnn_(R_50|R_101|X_101_32x8d)_FPN_(RFS_)?([12])x\.yaml$"
)
COCO = re.compile(r"COCO/(sigmoid|softmax)_mask_rcnn_R_50_FPN_1x\.yaml$")
COCO_LOSS = {"sigmoid": "SigmoidCrossEntropy", "softmax": "SoftmaxCrossEntropy"}


def replacement(path: str | Path) -> str:
    """What stands for a removed config, as words of a command line; "" if ``path`` never was one of the package's."""
    path = Path(path).as_posix()
    if match := COCO.search(path):
        loss = COCO_LOSS[match[1]]
        name = "COCO/eql_mask_rcnn_R_50_FPN_1x.yaml"
        return f"{name} MODEL.ROI_HEADS.NAME LongTailROIHeads MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME {loss}"
    if match := LVIS.search(path):
        return " ".join(lvis_words(*match.groups()))
    return ""


def lvis_words(folder: str, loss: str, backbone: str, rfs: str | None, schedule: str) -> list[str]:
    """The LVIS config of a loss and a backbone, then what adds the data set, the sampler and the schedule."""
    kept = folder == "LVISv1" or backbone == "R_50" or (loss, backbone) == ("eql", "R_101")
    words = [f"{folder if kept else 'LVISv1'}/{loss}_mask_rcnn_{backbone}_FPN_1x.yaml"]
    if not kept:
        words.append(LVIS_V05)
    if rfs:
        authors = (folder, loss) == ("LVISv0.5", "eql")
        words.append(f"{RFS} {0.0005 if authors else 0.001}")
    if schedule == "2":
        words.append(SCHEDULE_2X)
    return words
