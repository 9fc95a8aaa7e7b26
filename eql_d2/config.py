"""The config keys that this package adds to Detectron2's."""

import importlib

from detectron2.config import CfgNode, get_cfg

from eql_d2.losses import CLS_LOSS_REGISTRY
from eql_d2.losses.hyper_parameters import config_node


def default_config() -> CfgNode:
    """Detectron2's defaults and this package's keys."""
    cfg = get_cfg()
    add_eql_config(cfg)
    return cfg


def add_eql_config(cfg: CfgNode) -> None:
    """Add the keys of eql_d2 to ``cfg``; call it before merging a file or a list.

    Every loss that is registered by now gets a node with its hyper-parameters, so import a loss of your own first.
    """
    importlib.import_module("eql_d2.registration")
    losses = cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS = CfgNode()
    # Registered name of the classification loss. "" is the loss that a named head (EQLROIHeads, ...) stands for,
    # SoftmaxCrossEntropy in the generic LongTail...ROIHeads, and SigmoidFocalLoss in LongTailRetinaNet and
    # LongTailFCOS.
    losses.NAME = ""
    # Category counts written by `eql-d2 counts`; "" counts DATASETS.TRAIN.
    losses.COUNTS_FILE = ""
    # Iterations with plain cross-entropy before the loss takes over: for losses that fine-tune.
    losses.START_ITER = 0
    # Tell a sigmoid loss which categories each training image was checked for (LVIS): the others then take no part.
    losses.IMAGE_LABELS = False
    # Whether a step is compiled (torch.compile): of SigmoidCrossEntropy, SigmoidFocalLoss, EqualizationLoss, DropLoss,
    # and ClassBalancedLoss and ClassWeightedLoss with a sigmoid or focal base; an error with others. A third to a half
    # faster (docs/speed.md). The first step takes 5 to 50 s longer; where nothing can be compiled, it runs as without
    # the key, and says so.
    losses.COMPILE = False
    for name, loss_class in CLS_LOSS_REGISTRY:
        losses[name] = config_node(loss_class)

    # A learnable factor for each logit: learnable weight scaling (LWS).
    cfg.MODEL.ROI_BOX_HEAD.CLS_SCALE = False
    # The normalised (cosine) classifier, with any loss: z = TEMPERATURE cos(x, w) + b, without b if not BIAS. 0 is the
    # plain linear classifier. The authors of Seesaw loss and ECM use 20, those of LDAM 1 without a bias.
    norm = cfg.MODEL.ROI_BOX_HEAD.CLS_NORM = CfgNode()
    norm.TEMPERATURE = 0.0
    norm.BIAS = True
    # A (K, D) .npy of fixed embeddings of the categories, such as CLIP's of their names, in the place of w: features
    # are projected to D numbers, by a layer that is trained. Detic's temperature is 50. "" is a trained w.
    norm.EMBEDDINGS = ""

    # Class weights of a second stage that are learned, by what a step of the classifier does to a class-balanced loss
    # (docs/decoupled_training.md): LR is that of the weights, INNER_LR that of the virtual step.
    meta = cfg.MODEL.ROI_BOX_HEAD.META_REWEIGHT = CfgNode()
    meta.ENABLED = False
    meta.LR = 0.01
    meta.INNER_LR = 0.1

    # Correction of the scores at inference, for a model trained with any loss: "" (none), "LogitAdjustment", "NorCal",
    # "FRACAL" or "LogN" (docs/calibration.md).
    calibration = cfg.MODEL.ROI_BOX_HEAD.CALIBRATION = CfgNode()
    calibration.NAME = ""
    # tau of LogitAdjustment (None: 1.0), gamma of NorCal (None: 0.6), share of FRACAL and LogN (None: 1.0); 0 corrects
    # nothing.
    calibration.STRENGTH = None
    # lambda of FRACAL: how much it counts where objects lie; 0 is nothing.
    calibration.SPACE = 2.0
    # Of LogN: the file of the model's logits that `eql-d2 sweep RUN --calibration LogN` writes into the run's folder.
    calibration.STATISTICS = ""
    # Score that each category must reach to be detected, a file of `eql-d2 thresholds`; "" is none but
    # MODEL.ROI_HEADS.SCORE_THRESH_TEST.
    cfg.MODEL.ROI_BOX_HEAD.THRESHOLDS_FILE = ""

    # FCOS, which Detectron2 has without keys; what they mean, and their defaults, are those of its FCOS and RETINANET.
    fcos = cfg.MODEL.FCOS = CfgNode()
    fcos.NUM_CLASSES = 80
    fcos.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    fcos.NUM_CONVS = 4
    fcos.NORM = "GN"
    fcos.CENTER_SAMPLING_RADIUS = 1.5
    fcos.SCORE_THRESH_TEST = 0.2
    fcos.TOPK_CANDIDATES_TEST = 1000
    fcos.NMS_THRESH_TEST = 0.6

    # Modules or parameters that are not trained, as shell-style patterns of their names: ["backbone", "*.bbox_pred"].
    cfg.MODEL.FREEZE = []
    # Leave the classifier (cls_score, and cls_scale) of MODEL.WEIGHTS out: it starts anew, also with another number of
    # classes.
    cfg.MODEL.NEW_CLASSIFIER = False

    # Exponential moving average of the weights, by the names of d2go: what is evaluated and saved is the average.
    cfg.MODEL_EMA = CfgNode()
    cfg.MODEL_EMA.ENABLED = False
    cfg.MODEL_EMA.DECAY = 0.999

    # Large-scale jitter in the place of MIN_SIZE_TRAIN: images are resized by a random factor of SIZE pixels, in
    # SCALE_RANGE, then cut or padded to SIZE x SIZE. 0 is no LSJ. ViTDet and Detectron2's new_baselines use 1024.
    lsj = cfg.INPUT.LSJ = CfgNode()
    lsj.SIZE = 0
    lsj.SCALE_RANGE = (0.1, 2.0)

    # Objects of other training images, pasted by their masks (docs/sampling.md): how many an image gets is drawn from 0
    # to MAX_OBJECTS (0 is none), each with probability ~ (objects of its category)^-STRENGTH. One that is left with
    # less than MIN_VISIBLE of its pixels is none any more. CACHE_MB of decoded images are kept in each worker.
    paste = cfg.INPUT.COPY_PASTE = CfgNode()
    paste.MAX_OBJECTS = 0
    paste.STRENGTH = 1.0
    paste.MIN_VISIBLE = 0.2
    paste.CACHE_MB = 256.0

    # alpha of DATALOADER.SAMPLER_TRAIN ExponentialRepeatFactorSampler; its threshold is REPEAT_THRESHOLD, as of
    # InstanceAwareRepeatFactorSampler.
    cfg.DATALOADER.REPEAT_ALPHA = 2.0
    # Of SAMPLER_TRAIN MultiDatasetSampler, one a dataset of DATASETS.TRAIN: how often it is drawn from, against the
    # others (empty: all alike), and whether by its own repeat factors (empty: none).
    cfg.DATALOADER.DATASET_RATIO = []
    cfg.DATALOADER.USE_RFS = []

    # Keys of the original EQL project, so that its YAML files still merge and mean what they meant. LAMBDA
    # and PRIOR_PROB are those of the loss's own node; FREQ_INFO was never read there either.
    cfg.MODEL.ROI_HEADS.LAMBDA = None
    cfg.MODEL.ROI_HEADS.PRIOR_PROB = None
    cfg.MODEL.ROI_HEADS.FREQ_INFO = ""

    # Datasets to register: [[name, annotation file, image folder], ...] in COCO or LVIS format.
    cfg.DATASETS.REGISTER = []

    # What computes LVIS's metrics: "eql_d2", or "lvis", the LVIS API, for reference: the same numbers, slower.
    cfg.TEST.LVIS_BACKEND = "eql_d2"

    # Fixed AP beside the standard metrics: of each category the 10,000 highest scores of the whole dataset count,
    # however many are in an image. For that the model keeps so many detections of an image (-1: all above its score
    # threshold); the other metrics, and the files, have the best DETECTIONS_PER_IMAGE of them. 0 is no fixed AP.
    cfg.TEST.FIXED_AP_DETECTIONS_PER_IMAGE = 0

    # Boundary AP for masks; it takes some ten times as long as mask AP, which is fast.
    cfg.TEST.BOUNDARY_AP = False

    # Every how many iterations the loss, gradients, scores and weight norms of rare, common and frequent categories are
    # logged, and whether gradient_balance.json is written at all: 0 does neither.
    cfg.GRADIENT_BALANCE_PERIOD = 20

    # Learning rate of the classifier layer (cls_score), as a multiple of BASE_LR.
    cfg.SOLVER.CLASSIFIER_LR_FACTOR = 1.0

    # Type of the mixed precision that AMP.ENABLED switches on: "bf16", also on a CPU, or "fp16" on a GPU.
    cfg.SOLVER.AMP.PRECISION = "bf16"
    # IMS_PER_BATCH images make one optimizer step; the model sees them in so many parts, one after another.
    cfg.SOLVER.ACCUMULATE_STEPS = 1
