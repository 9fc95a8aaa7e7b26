"""A LazyConfig's run is a YAML's: the same bits in weights and files, the same tools, and Detectron2's own recipes."""

import copy
import filecmp
import json
from pathlib import Path

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig
from detectron2.data import build_detection_train_loader
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.engine import default_argument_parser
from detectron2.evaluation import LVISEvaluator as Detectron2LVISEvaluator
from detectron2.utils.env import seed_all_rng

from eql_d2 import ClassFrequencies, get_config_file
from eql_d2.data.train_loader import TrainLoader
from eql_d2.engine import Trainer, load_config, settings_of
from eql_d2.engine.evaluators import build_evaluator
from eql_d2.engine.setup import load_lazy_config, setup
from eql_d2.engine.sweep import Sweep
from eql_d2.errors import InputError
from eql_d2.evaluation.compare import compare_runs
from eql_d2.evaluation.run_folder import configuration_key, read_run_config
from eql_d2.losses import EqualizationLoss
from eql_d2.modeling import long_tail
from eql_d2.report.runs import read_runs

CONFIG = get_config_file("lazy/mini_lvis_eql.py")
RECIPES = Path(CONFIG).parent / "LVISv1"


def on_dataset(cfg, datasets, output_dir, iterations):
    """A LazyConfig with another data set of seven categories, for a few iterations."""
    cfg.dataloader.train.dataset.names, cfg.dataloader.test.dataset.names = datasets
    cfg.dataloader.evaluator.dataset_name = datasets[1]
    cfg.model.roi_heads.num_classes = 7
    cfg.train.update(max_iter=iterations, init_checkpoint="", output_dir=str(output_dir), device="cpu", seed=0)
    return cfg


@pytest.fixture
def lazy_cfg(datasets, tmp_path):
    cfg = on_dataset(LazyConfig.load(CONFIG), datasets, tmp_path / "lazy", 4)
    cfg.model.roi_heads.box_predictor.cls_loss.frequencies.name = datasets[0]
    cfg.lr_multiplier.warmup_length = 2 / 4
    return cfg


def yaml_cfg(datasets, output_dir):
    cfg = load_config(get_config_file("MiniLVIS/eql_faster_rcnn.yaml"))
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (datasets[0],), (datasets[1],)
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.ROI_HEADS.NUM_CLASSES", 7])
    cfg.merge_from_list(["SOLVER.MAX_ITER", 4, "SOLVER.WARMUP_ITERS", 2, "OUTPUT_DIR", str(output_dir)])
    return cfg


def train(cfg, resume=False):
    run = settings_of(cfg)
    Path(run.output_dir).mkdir(exist_ok=True)
    seed_all_rng(0)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume)
    return trainer, trainer.train()


def model_of(folder):
    return torch.load(Path(folder) / "model_final.pth", weights_only=True)["model"]


def assert_same_weights(folder, other):
    a, b = model_of(folder), model_of(other)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def test_the_same_bits_as_the_yaml(lazy_cfg, datasets, tmp_path):
    _, of_lazy = train(lazy_cfg)
    _, of_yaml = train(yaml_cfg(datasets, tmp_path / "yaml"))
    assert list(of_lazy) == ["bbox"] and str(of_lazy) == str(of_yaml)
    assert_same_weights(tmp_path / "lazy", tmp_path / "yaml")
    files = {p.relative_to(tmp_path / "yaml") for p in (tmp_path / "yaml").rglob("*") if p.is_file()}
    assert files - {p.relative_to(tmp_path / "lazy") for p in (tmp_path / "lazy").rglob("*")} == {
        f for f in files if "events" in f.name
    }
    with_times_or_paths = ("metrics.json", "model_final.pth", "analysis_bbox.json")
    same = [f for f in files if "events" not in f.name and f.name not in with_times_or_paths]
    assert len(same) == 7
    assert [f for f in same if not filecmp.cmp(tmp_path / "yaml" / f, tmp_path / "lazy" / f, shallow=False)] == []
    analyses = [json.loads(p.read_text()) for p in sorted(tmp_path.rglob("analysis_bbox.json"))]
    assert len({str({**a, "train_counts": None}) for a in analyses}) == 1


def test_the_tools_read_a_lazy_run(lazy_cfg, tmp_path):
    folders = []
    for seed in (0, 1):
        cfg = copy.deepcopy(lazy_cfg)
        cfg.train.update(seed=seed, output_dir=str(tmp_path / f"run_{seed}"))
        train(cfg)
        LazyConfig.save(cfg, str(tmp_path / f"run_{seed}" / "config.yaml"))
        folders.append(tmp_path / f"run_{seed}")
    configs = [read_run_config(folder) for folder in folders]
    assert configuration_key(configs[0]) == configuration_key(configs[1])
    assert "| run_0 |       2 |" in compare_runs(folders)
    comparison = read_runs([str(f) for f in folders])
    assert not comparison.skipped and len(comparison.configurations[0].runs) == 2
    assert comparison.runs[0].analysis and comparison.runs[0].gradients and len(comparison.categories) == 7
    (saved,) = Sweep().rows(folders[0])
    (anew,) = Sweep(strengths=[0]).rows(folders[0])
    assert saved["AP"] == anew["AP"] == pytest.approx(comparison.runs[0].metrics["AP"], nan_ok=True)


def stock_vitdet(datasets, output_dir):
    """Detectron2's own ViTDet recipe for LVIS, as its project has it, with a small model and small images."""
    lsj = LazyConfig.load(str(RECIPES / "mask_rcnn_vitdet_b_100ep.py"))
    cfg = on_dataset(lsj, datasets, output_dir, 2)
    cfg.model = model_zoo.get_config("common/models/mask_rcnn_vitdet.py").model
    cfg.model.roi_heads.num_classes = 7
    small(cfg)
    cfg.dataloader.train._target_ = build_detection_train_loader
    cfg.dataloader.evaluator._target_ = Detectron2LVISEvaluator
    return cfg


def small(cfg):
    """Depth 2, width 48, 128 px."""
    net = cfg.model.backbone.net
    net.update(img_size=128, embed_dim=48, depth=2, num_heads=2, window_block_indexes=[0], window_size=4)
    cfg.model.backbone.update(square_pad=128, out_channels=32)
    heads = cfg.model.roi_heads
    cfg.model.proposal_generator.update(pre_nms_topk=(100, 100), post_nms_topk=(50, 50))
    cfg.model.proposal_generator.head.in_channels = 32
    heads.update(batch_size_per_image=16)
    heads.mask_head.input_shape.channels, heads.mask_head.conv_dims = 32, [32, 32]
    heads.box_head.input_shape.channels = 32
    heads.box_head.update(conv_dims=[32], fc_dims=[64])
    heads.box_predictor.input_shape.channels = 64
    cfg.train.amp.enabled = False
    loader = cfg.dataloader
    loader.train.update(total_batch_size=2, num_workers=0)
    for augmentation in loader.train.mapper.augmentations:
        if "crop_size" in augmentation:
            augmentation.crop_size = (128, 128)
        if "target_height" in augmentation:
            augmentation.update(target_height=128, target_width=128)
    loader.test.mapper.augmentations[0].update(short_edge_length=128, max_size=128)
    loader.test.num_workers = 0


@pytest.mark.parametrize("ours", [False, True])
def test_detectron2s_vitdet_recipe_trains_and_is_evaluated(datasets, tmp_path, ours, caplog):
    """Its sampler goes to our loader, so that it resumes, and its evaluator, which numpy has broken, is ours."""
    cfg = stock_vitdet(datasets, tmp_path / "run")
    if ours:
        long_tail(cfg.model, loss=L(EqualizationLoss)(frequencies=L(ClassFrequencies.from_dataset)(name=datasets[0])))
    with caplog.at_level("INFO"):
        trainer, results = train(cfg)
    assert isinstance(trainer.data_loader, TrainLoader)
    assert isinstance(trainer.data_loader.sampler, RepeatFactorTrainingSampler)
    assert {"bbox", "segm"} <= results.keys()
    assert "in the place of Detectron2's LVISEvaluator" in caplog.text
    assert "TrainLoader in the place of build_detection_train_loader" in caplog.text
    assert (tmp_path / "run" / "gradient_balance.json").exists() == ours


def test_a_vitdet_run_goes_on_where_it_stopped(datasets, tmp_path):
    """Repeat factor sampling, jitter, stochastic depth, AdamW and the average of the weights included."""

    def cfg_of(folder, **values):
        cfg = stock_vitdet(datasets, tmp_path / folder)
        cfg.train.update(max_iter=4, model_ema={"enabled": True, "decay": 0.9}, **values)
        cfg.train.checkpointer.period = 2
        return cfg

    train(cfg_of("whole"))
    seed_all_rng(0)
    trainer = Trainer(cfg_of("stopped"))
    trainer.resume_or_load(False)
    trainer.max_iter = 2  # as if killed behind the first checkpoint
    trainer._hooks = [h for h in trainer._hooks if type(h).__name__ != "EvalHook"]
    trainer.train()
    assert train(cfg_of("stopped"), resume=True)[0].start_iter == 2
    assert_same_weights(tmp_path / "whole", tmp_path / "stopped")


def test_a_checkpoint_of_detectron2s_lazy_tool_resumes(lazy_cfg, tmp_path):
    """There, and here before LazyConfigs had this trainer, the state of the step is the trainer's own."""
    lazy_cfg.train.checkpointer.period = 2
    train(lazy_cfg)
    whole = model_of(tmp_path / "lazy")
    path = tmp_path / "lazy" / "model_0000001.pth"
    checkpoint = torch.load(path, weights_only=True)
    trainer = checkpoint["trainer"]
    checkpoint["trainer"] = {**trainer.pop("_trainer"), **trainer}
    torch.save(checkpoint, path)
    (tmp_path / "lazy" / "last_checkpoint").write_text(path.name)
    assert train(lazy_cfg, resume=True)[0].start_iter == 2
    resumed = model_of(tmp_path / "lazy")
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []


def test_an_evaluator_of_ones_own_stays(lazy_cfg, datasets):
    class Own(Detectron2LVISEvaluator):
        def __init__(self, dataset_name):
            self.dataset_name = dataset_name

    lazy_cfg.dataloader.evaluator = L(Own)(dataset_name=datasets[1])
    assert type(build_evaluator(lazy_cfg, datasets[1], "")) is Own


def test_a_loader_with_more_than_ours_has_stays(lazy_cfg, caplog):
    loader = lazy_cfg.dataloader.train
    loader.update(_target_=build_detection_train_loader, collate_fn=len)
    assert not isinstance(Trainer.build_train_loader(lazy_cfg), TrainLoader)
    assert "dataloader.train has ['collate_fn'], which TrainLoader has not" in caplog.text


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"model.roi_heads.num_classes": 8},
            "model.roi_heads.num_classes is 8, but .* has 7 categories: set num_classes 7",
        ),
        ({"dataloader.test.dataset.names": "nothing"}, "dataset 'nothing' of dataloader.test.dataset.names"),
        ({"train.model_ema.enabled": True, "train.model_ema.decay": 2}, "train.model_ema.decay is 2: expected"),
        ({"train.freeze": ["backbone"]}, "train.freeze .* train.init_checkpoint is ''"),
        ({"train.accumulate_steps": 3}, "train.accumulate_steps"),
        ({"test.fixed_ap_detections_per_image": 100}, "test.fixed_ap_detections_per_image is 100, fewer than"),
    ],
)
def test_mistakes_are_said_before_the_first_iteration(lazy_cfg, change, message):
    cfg = LazyConfig.apply_overrides(lazy_cfg, [f"{key}={value}" for key, value in change.items()])
    with pytest.raises(InputError, match=message):
        Trainer(cfg).resume_or_load(False)


def test_a_file_that_is_no_recipe(tmp_path):
    path = tmp_path / "data.py"
    path.write_text("dataloader = dict(train=1)\n")
    with pytest.raises(InputError, match="lacks model, optimizer, lr_multiplier, train"):
        load_lazy_config(str(path))
    with pytest.raises(InputError, match="SEED is no override of a LazyConfig: expected path.key=value"):
        load_lazy_config(CONFIG, ["SEED", "1"])


def test_a_key_that_nothing_reads_is_said(tmp_path):
    opts = [f"train.output_dir={tmp_path}", "train.gradient_balance_perod=3"]
    cfg = setup(default_argument_parser().parse_args(["--config-file", CONFIG, *opts]))
    assert cfg.train.device in ("cpu", "cuda")
    log = (tmp_path / "log.txt").read_text()
    assert "train.gradient_balance_perod is read by nothing here; did you mean gradient_balance_period?" in log
