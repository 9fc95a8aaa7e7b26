"""Pages that are made of the code: config keys, the notebook, and the lists of what the API pages show."""

import inspect
import json
import re
from pathlib import Path

from detectron2.config import CfgNode, get_cfg

import eql_d2.config
from eql_d2 import CLS_LOSS_REGISTRY, add_eql_config
from eql_d2.losses.hyper_parameters import NODE

NOTEBOOK = Path(__file__).parents[1] / "docs" / "examples" / "your_first_tail.ipynb"
KEYS_INTRO = """# Config keys

The keys that eql_d2 adds to [Detectron2's](https://detectron2.readthedocs.io/en/latest/modules/config.html), with their
defaults. LazyConfigs have arguments instead: [modern recipes](modern.md).
"""


def config_keys() -> str:
    """Every key of `add_eql_config`, its default, and the comment that stands above it in config.py."""
    stock, cfg = get_cfg(), get_cfg()
    add_eql_config(cfg)
    meanings = comments(inspect.getsource(eql_d2.config))
    by_meaning: dict[str, list] = {}
    of_losses: dict[str, list] = {}
    for key, default in added(cfg, stock).items():
        loss = key.removeprefix(f"{NODE}.").partition(".")[0] if key.startswith(f"{NODE}.") else None
        if loss in CLS_LOSS_REGISTRY:
            of_losses.setdefault(loss, []).append((key.removeprefix(f"{NODE}.{loss}."), default))
        elif key in meanings:
            by_meaning.setdefault(meanings[key], []).append((key, default))
        else:
            raise KeyError(f"config.py has no comment above {key}")
    parts = [KEYS_INTRO, *(item(keys, meaning) for meaning, keys in by_meaning.items())]
    parts.append(f"\n## Losses\n\nBelow `{NODE}`, a node for each loss.\n")
    for loss, keys in of_losses.items():
        explained = arguments(inspect.getdoc(CLS_LOSS_REGISTRY.get(loss)))
        by_argument: dict[str, list] = {}
        for key, default in keys:
            by_argument.setdefault(key.partition(".")[0].lower(), []).append((key, default))
        parts.append(f"\n### {loss}\n")
        parts += [item(keys, explained[name]) for name, keys in by_argument.items()]
    return "\n".join(parts)


def item(keys: list, meaning: str) -> str:
    names = ", ".join(f"`{key}` = `{default!r}`" for key, default in keys)
    return f"- {names}: {meaning}"


def added(cfg, stock, prefix: str = "") -> dict:
    """Key -> default, of what ``cfg`` has and ``stock`` lacks."""
    keys = {}
    for name, value in cfg.items():
        if isinstance(value, CfgNode):
            keys |= added(value, stock.get(name, {}), f"{prefix}{name}.")
        elif name not in stock:
            keys[f"{prefix}{name}"] = value
    return keys


def comments(source: str) -> dict[str, str]:
    """Key -> the comment above its assignment; assignments without one of their own share the one before."""
    meanings: dict[str, str] = {}
    nodes: dict[str, str] = {}  # names of nodes, as `losses` in `losses = cfg.MODEL... = CfgNode()`
    comment: list[str] = []
    ended = True
    for line in map(str.strip, source.splitlines()):
        if line.startswith("#"):
            comment = [line.lstrip("# ")] if ended else [*comment, line.lstrip("# ")]
        elif assigned := re.match(r"((?:[\w.]+ = )+)", line):
            name, *same = assigned[1].removesuffix(" = ").split(" = ")
            if same:
                nodes[name] = same[0]
            root, _, rest = name.partition(".")
            meanings[f"{nodes.get(root, root)}.{rest}".removeprefix("cfg.")] = " ".join(comment)
        ended = not line.startswith("#")
    return meanings


def arguments(docstring: str) -> dict[str, str]:
    """Argument -> what the section `Args` says of it."""
    section = re.search(r"^Args:\n((?:    .*\n?|\n)+)", docstring, re.MULTILINE)
    found = re.findall(r"^    (\w+): ((?:.*\n?)(?:^     .*\n?)*)", section[1] if section else "", re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def notebook() -> str:
    """The notebook's cells, with the outputs that are stored in it."""
    parts = []
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            if "text" in output:
                parts.append(f"```text\n{''.join(output['text'])}```")
            elif "image/png" in output.get("data", {}):
                parts.append(f"![Figure](data:image/png;base64,{output['data']['image/png'].strip()})")
    return "\n\n".join(parts)


def losses_page() -> str:
    """Each registered loss of the package, in the order of the files that docs/losses.md follows."""
    names = [loss for _, loss in CLS_LOSS_REGISTRY if loss.__module__.startswith("eql_d2.")]
    base = ["eql_d2.losses.ClassificationLoss", "eql_d2.losses.build_cls_loss", "eql_d2.data.frequencies.TailRule"]
    base += ["eql_d2.data.frequencies.ClassFrequencies"]
    return api("Losses", "What each does, and when to take it: [losses](../losses.md).", [*map(path_of, names)], base)


def path_of(member) -> str:
    return f"{member.__module__}.{member.__qualname__}"


def heads_page() -> str:
    heads = ["LongTailROIHeads", "LongTailCascadeROIHeads", "LongTailRes5ROIHeads"]
    parts = [f"eql_d2.modeling.roi_heads.{name}" for name in heads]
    parts += ["eql_d2.modeling.fast_rcnn.LongTailFastRCNNOutputLayers", "eql_d2.modeling.long_tail.long_tail"]
    dense = ["retinanet.LongTailRetinaNet", "fcos.LongTailFCOS", "criterion.LongTailCriterionMixin"]
    dense += ["torchvision_detectors.LongTailPredictor", "torchvision_detectors.LongTailClassificationHead"]
    calibrations = [f"calibration.{name}" for name in ("LogitAdjustment", "NorCal", "FRACAL", "LogN")]
    parts += [f"eql_d2.modeling.{part}" for part in [*dense, *calibrations]]
    text = "What carries a loss: ROI heads, dense detectors, set criteria, torchvision's; and what corrects scores."
    return api("Heads", text, parts)


def evaluation_page() -> str:
    parts = ["lvis_evaluation.LVISEvaluator", "coco_evaluation.LongTailCOCOEvaluator", "tail_analysis.TailAnalysis"]
    parts += ["files.Dataset", "files.Evaluated", "files.resampled", "lvis_metrics.evaluate_lvis"]
    parts += ["lvis_metrics.GroundTruth", "lvis_metrics.Detections", "lvis_metrics.LVISCurves", "intervals.WeightedAP"]
    paths = [f"eql_d2.evaluation.{part}" for part in parts]
    return api("Evaluation", "What the numbers mean: [evaluation](../evaluation.md).", paths)


def api(title: str, text: str, *groups: list) -> str:
    members = "\n".join(f"::: {path}\n" for group in groups for path in group)
    return f"# API: {title.lower()}\n\n{text}\n\n{members}"


PAGES = {
    "config_keys.md": config_keys,
    "examples/your_first_tail.md": notebook,
    "api/losses.md": losses_page,
    "api/heads.md": heads_page,
    "api/evaluation.md": evaluation_page,
}
