"""Checkpoints: written whole or not at all, resumed from the newest that is whole, fitted to the classifier's width."""

import glob
import logging
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from contextlib import nullcontext, suppress
from fnmatch import fnmatch
from urllib.parse import urlparse

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from detectron2.utils.file_io import Detectron2Handler, PathManager
from iopath.common.file_io import get_cache_dir

from eql_d2.data.whole_files import UNFINISHED, written_whole
from eql_d2.engine.output_errors import OutputError, cannot_write
from eql_d2.errors import InputError, one_line, printable
from eql_d2.losses import keeping_state
from eql_d2.modeling.normed_linear import NormedLinear
from eql_d2.modeling.predictors import Predictor

logger = logging.getLogger(__name__)

# What others wrap a model in: DistributedDataParallel, torch.compile, Lightning's modules.
WRAPPERS = re.compile(r"((module|_orig_mod|model)\.)+")
NUMBERED = f"model_{7 * '[0-9]'}.pth"  # the checkpoint of an iteration, as a glob


class CheckpointError(OutputError):
    """A checkpoint that cannot be written, or none that can be read; the message says what is left and what to do."""


class LongTailCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, for runs that may be killed and classifiers that may change.

    Files are written under another name and then renamed, so a run that is killed at any moment, or whose disk is full,
    keeps its last checkpoint. To resume takes the newest checkpoint that is whole.

    A softmax model has K + 1 rows in ``cls_score``, a sigmoid model K. Detectron2 would drop the whole layer with a
    log line; here the background row is dropped or a new one appended, and any other width is an error.

    Args:
        model, save_dir, checkpointables: as of ``DetectionCheckpointer``.
        weights_to_save: by name, in the place of the model's own.
        new_classifier: leave the classifier out of the weights that a new run starts from, whatever its width. A
            resumed run goes on with its own.
        thing_classes: the names of the model's classes, to be saved with it; None saves none.
    """

    def __init__(
        self,
        model,
        save_dir="",
        *,
        new_classifier: bool = False,
        weights_to_save: dict[str, torch.Tensor] | None = None,
        thing_classes: list[str] | None = None,
        **checkpointables,
    ):
        super().__init__(model, save_dir, **checkpointables)
        self.weights_to_save = {} if weights_to_save is None else weights_to_save
        self.new_classifier = new_classifier
        self.thing_classes = thing_classes
        self.whole_model = False  # whether weights that leave a part of the model random are an error
        self.resumes = False  # whether the weights must be of this very model
        self.saved_iteration: int | None = None  # of the last checkpoint that this object has saved

    def save(self, name, **kwargs):
        """As Detectron2's.

        Raises:
            CheckpointError: the file cannot be written; ``last_checkpoint`` names the one before.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data["model"].update(self.weights_to_save)
        data.update({key: value.state_dict() for key, value in self.checkpointables.items()})
        if self.thing_classes is not None:
            data["thing_classes"] = self.thing_classes
        data.update(kwargs)
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        try:
            with written_whole(path, "wb") as file:
                torch.save(data, file)
            self.tag_last_checkpoint(os.path.basename(path))
        except (OSError, RuntimeError) as error:  # the latter is torch's where a write fails
            reason = getattr(error, "strerror", None) or one_line(error)
            raise CheckpointError(cannot_write(f"the checkpoint {path}", reason, self, "one")) from error
        self.saved_iteration = kwargs.get("iteration")

    def tag_last_checkpoint(self, last_filename_basename):
        with written_whole(os.path.join(self.save_dir, "last_checkpoint"), "w") as file:
            file.write(last_filename_basename)

    def resume_or_load(self, path, *, resume=True):
        """As Detectron2's, but where the last checkpoint is not whole the newest before it that is stands in.

        A training that does not resume starts with losses of their own state, not that in ``path``.

        Raises:
            CheckpointError: there are checkpoints to resume from, but none is whole.
        """
        trains = "trainer" in self.checkpointables
        if trains:  # else another process may be writing here
            self._remove_unfinished()
        newest = self._newest_whole() if resume else None
        if trains and not resume:
            self._tell_of_an_earlier_training()
        self.resumes = newest is not None
        self.whole_model = self.resumes or not trains  # a new training may start from a backbone alone
        if newest is None:
            with keeping_state(self.model) if trains else nullcontext():
                return self.load(path, checkpointables=[])
        self.new_classifier = False
        return self.load(newest)

    def _tell_of_an_earlier_training(self) -> None:
        if self.has_checkpoint():
            logger.warning(
                "%s has checkpoints of an earlier training, %s last: this one starts anew, writes over them and "
                "adds to metrics.json and log.txt. To go on with that one, stop and give --resume; to keep it, set "
                "OUTPUT_DIR (in a LazyConfig train.output_dir) to another folder",
                self.save_dir,
                os.path.basename(self.get_checkpoint_file()),
            )

    def _remove_unfinished(self) -> None:
        """Remove what processes that were killed have left."""
        for path in glob.glob(os.path.join(glob.escape(self.save_dir), f"*{UNFINISHED}")) if self.save_to_disk else ():
            if re.fullmatch(r"(.*\.pth|last_checkpoint)", os.path.basename(path)[: -len(UNFINISHED)]):
                logger.info("removing %s, which was never finished", path)
                os.unlink(path)

    def get_checkpoint_file(self) -> str:
        """The file that ``last_checkpoint`` names, "" without that; what is no name of a file in the folder is none."""
        tag = os.path.join(self.save_dir, "last_checkpoint")
        if not os.path.isfile(tag):
            return ""
        with open(tag, "rb") as file:
            name = file.read(1000).decode("utf-8", errors="replace").strip()
        if not name.isprintable() or os.path.basename(name) != name or len(name) > 255:
            logger.warning("%s holds %r, which is no name of a file beside it", tag, printable(name))
            name = ""
        return os.path.join(self.save_dir, name)

    def _newest_whole(self) -> str | None:
        """The checkpoint to resume from, in all processes that which the main one finds, or None if there is none."""
        found = self._find_newest_whole() if comm.is_main_process() else None
        return comm.all_gather(found)[0]

    def _find_newest_whole(self) -> str | None:
        earlier = sorted(glob.glob(os.path.join(glob.escape(self.save_dir), NUMBERED)), reverse=True)
        if not self.has_checkpoint():
            if earlier:
                logger.warning(
                    "%s is there, but no file last_checkpoint with the name of the one to resume from: training "
                    "starts anew. If that is not meant, stop, and write the name into that file",
                    earlier[0],
                )
            else:
                logger.warning("there is no checkpoint in %s to resume from: the run starts anew", self.save_dir)
            return None
        last = self.get_checkpoint_file()
        before = [path for path in earlier if path < last or not fnmatch(os.path.basename(last), NUMBERED)]
        for path in [last, *before]:
            reason = what_is_broken(path)
            if reason is None:
                return path
            logger.warning("the checkpoint %s cannot be used (%s): taking the one before it", path, reason)
        raise CheckpointError(
            f"no checkpoint in {self.save_dir} is whole: {', '.join([last, *before])}. Start without --resume, or "
            f"restore one of them and write its name into {os.path.join(self.save_dir, 'last_checkpoint')}"
        )

    def load(self, path, *args, **kwargs):
        if path:
            require_file(path)
        return super().load(path, *args, **kwargs)

    def _load_file(self, filename):
        if filename.endswith(".pkl"):
            require_plain_pickle(filename)
        if filename.endswith(".pyth"):
            self._torch_load(filename)  # Detectron2's reading would run what is in it
        loaded = super()._load_file(filename)
        require_weights(loaded["model"], filename)
        for name in loaded:
            if "ema" in name.lower():
                logger.warning("%s has weights under model and under %s: the former are read", filename, name)
        return loaded

    def _torch_load(self, f):
        return load_plain(f)

    def _load_model(self, checkpoint):
        weights = checkpoint["model"] = unwrapped(checkpoint["model"], self.model)
        if self.new_classifier:
            drop_classifier(weights)
        for name, module in self.model.named_modules():
            if isinstance(module, Predictor) and not self.resumes:
                classifier = f"{name}.{module.cls_score_name}" if name else module.cls_score_name
                for parameter in ("weight", "bias"):
                    fit_cls_score(weights, f"{classifier}.{parameter}", module)
        names = list(weights)
        incompatible = super()._load_model(checkpoint)
        self._require_fit(names, incompatible)
        return incompatible

    def _require_fit(self, names: list[str], incompatible) -> None:
        """The weights ``names`` must not leave the model random: not nearly all of it, nor what will not train."""
        parameters = [name for name, _ in self.model.named_parameters()]
        unset = {*incompatible.missing_keys, *(name for name, *_ in incompatible.incorrect_shapes)}
        missing = [
            name for name in parameters if name in unset and not (self.new_classifier and is_of_classifier(name))
        ]
        used = len(names) - len(incompatible.unexpected_keys) - len(incompatible.incorrect_shapes)
        hardly_any = len(parameters) - len(missing) <= len(parameters) // 10 and used <= len(names) // 10
        if not missing or not (self.whole_model or hardly_any):
            return
        if self.resumes:
            raise InputError(self._other_model(missing, incompatible))
        foreign = any(name.startswith(("roi_head.", "neck.", "bbox_head.", "layer1.0.")) for name in names)
        convert = ". These are names of mmdetection or of a ResNet: convert them by `eql-d2 convert`"
        raise InputError(
            f"the weights do not fit the model: {len(missing)} of its {len(parameters)} parameters are not among their "
            f"{len(names)} names, or have another shape there: {', '.join(missing[:3])}, ... (theirs: "
            f"{', '.join(names[:3])}, ...)"
            f"{convert if foreign else ''}. Choose the "
            f"config that they were trained with, or other MODEL.WEIGHTS (in a LazyConfig train.init_checkpoint)"
        )

    def _other_model(self, missing: list[str], incompatible) -> str:
        shapes = {name: (tuple(theirs), tuple(ours)) for name, theirs, ours in incompatible.incorrect_shapes}
        examples = [
            f"{name} of shape {shapes[name][0]} there and {shapes[name][1]} here" if name in shapes else f"no {name}"
            for name in missing[:2]
        ]
        return (
            f"the checkpoint to resume from, in {self.save_dir}, is of another model: it has {', '.join(examples)}"
            f"{', ...' if len(missing) > 2 else ''}. Resume with the config that it was trained with, or start a new "
            f"run, without --resume and in another output folder"
        )


def require_writable(folder: str) -> None:
    """Write and remove a small file, so that a run whose output cannot be written ends before it starts."""
    if not folder or folder.startswith("~") or "?" in folder:  # which begins a query in Detectron2's paths
        raise CheckpointError(
            f"{folder!r} is no folder ('~' stands for nothing here, and '?' cannot be in a name): set OUTPUT_DIR (in a "
            f"LazyConfig train.output_dir) to another"
        )
    probe = os.path.join(folder, f"writable{UNFINISHED}")
    try:
        os.makedirs(folder, exist_ok=True)
        with open(probe, "wb") as file:
            file.write(bytes(2**16))  # a log's worth
        os.unlink(probe)
    except OSError as error:
        with suppress(OSError):
            os.unlink(probe)
        raise CheckpointError(
            f"cannot write to {folder}: {error.strerror}. Make room or the folder writable, or set OUTPUT_DIR (in a "
            f"LazyConfig train.output_dir) to another one"
        ) from error


def plain_dtype(*args) -> np.dtype:
    """``numpy.dtype(*args)``, of numbers or text only."""
    dtype = np.dtype(*args)
    if dtype.kind not in "biufcSU":
        raise pickle.UnpicklingError(f"it has an array of {dtype}")
    return dtype


class PlainUnpickler(pickle._Unpickler):
    """Reads numpy arrays and plain Python, as the files of model zoos hold, and refuses to call anything else.

    It is pickle's Python form, since in C the states that objects are given cannot be looked at: a dtype with a crafted
    one lets numpy read and write anywhere.
    """

    PLAIN = frozenset(
        {
            ("_codecs", "encode"),
            ("builtins", "bytearray"),
            ("collections", "OrderedDict"),
            ("numpy", "ndarray"),
            *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
            *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
        }
    )
    dispatch = dict(pickle._Unpickler.dispatch)  # noqa: RUF012

    def find_class(self, module, name):
        if (module, name) == ("numpy", "dtype"):
            return plain_dtype
        if (module, name) not in self.PLAIN:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)

    def load_build(self):
        state, target = self.stack[-1], self.stack[-2]  # type: ignore[attr-defined]
        if isinstance(target, np.dtype):
            require_plain_state(target, state)
        elif not isinstance(target, (np.ndarray, OrderedDict)):
            raise pickle.UnpicklingError(f"it gives a state to a {type(target).__name__}")
        super().load_build()  # type: ignore[misc]

    dispatch[pickle.BUILD[0]] = load_build  # type: ignore[assignment]


def require_plain_state(dtype: np.dtype, state) -> None:
    """A dtype's state: version, byte order, no fields, the sizes and flags that it has anyway; or an error."""
    _, _, subarray, names, fields, size, alignment, *flags = state
    if (
        (subarray, names, fields) != (None, None, None)
        or size not in (-1, dtype.itemsize)
        or alignment not in (-1, dtype.alignment)
        or any(flag not in (0, dtype.flags) for flag in flags)
    ):
        raise pickle.UnpicklingError("it has a numpy.dtype with a state that numpy does not write")


def require_plain_pickle(path: str) -> None:
    """A pickle may hold nothing but arrays and plain Python."""
    with PathManager.open(path, "rb") as file:
        try:
            loaded = PlainUnpickler(file, encoding="latin1").load()
        except Exception as error:  # whatever a broken or crafted file gives rise to, MemoryError too
            raise not_plain(path, error) from error
    if not isinstance(loaded, dict) or not isinstance(loaded.get("blobs", {}), dict):
        raise no_weights(path, type(loaded).__name__)


def require_uncompressed(path: str) -> None:
    """torch compresses no members of its zip files, and a small file of such ones may fill the memory."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as file:
        compressed = [member.filename for member in file.infolist() if member.compress_type != zipfile.ZIP_STORED]
    if compressed:
        raise InputError(
            f"{path} is a zip file with compressed members ({compressed[0]!r}), which torch.save does not write: "
            f"unpack it if it is an archive, else do not trust it"
        )


def load_plain(path: str) -> dict:
    """What ``torch.save`` wrote, on the CPU. Tensors and plain Python only: other objects could run any code."""
    try:
        require_uncompressed(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise not_plain(path, error) from error
    except InputError:
        raise
    except Exception as error:  # whatever a broken file gives rise to
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(f"{path} is no file of torch.save, or damaged ({reason})") from error
    if not isinstance(loaded, dict):
        raise no_weights(path, type(loaded).__name__)
    if "model" not in loaded and isinstance(loaded.get("state_dict"), dict):
        return {"model": loaded["state_dict"]}  # as mmengine and Lightning save it
    return loaded


def read_state_dict(path: str) -> dict[str, torch.Tensor]:
    """The weights in a .pth file: bare, or under `model` or `state_dict`."""
    require_file(path)
    loaded = load_plain(path)
    return require_weights(loaded.get("model", loaded), path)


def require_weights(weights, path: str) -> dict:
    """``weights``, if they are tensors or arrays of real numbers by name; NaN and infinite ones get a line."""
    if not isinstance(weights, dict) or not weights:
        raise no_weights(path, "nothing" if isinstance(weights, dict) else type(weights).__name__)
    for name, value in weights.items():
        if not isinstance(name, str) or not is_of_numbers(value):
            raise no_weights(path, f"{type(value).__name__} {name!r}")
    odd = [name for name, value in weights.items() if not bool(torch.as_tensor(value).isfinite().all())]
    if odd:
        logger.warning("%s has NaN or infinite values in %d of its tensors, %s first", path, len(odd), odd[0])
    return weights


def is_of_numbers(value) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biuf"
    return torch.is_tensor(value) and value.layout is torch.strided and not (value.is_meta or value.is_complex())


def no_weights(path: str, found: str) -> InputError:
    return InputError(
        f"{path} holds no weights: expected tensors of numbers by name, bare or under model or state_dict, got {found}"
    )


def not_plain(path: str, error: Exception) -> InputError:
    return InputError(
        f"{path} is no checkpoint of tensors and plain Python ({one_line(error) or type(error).__name__}), and could "
        f"run any code when it is read. Ask for one with the weights alone, {{'model': model.state_dict()}}"
    )


def what_is_broken(path: str) -> str | None:
    """Why a checkpoint file cannot be read, or None; torch's zip files carry checksums."""
    try:
        require_uncompressed(path)
        if not zipfile.is_zipfile(path):  # truncated, or of torch before 1.6
            torch.load(path, map_location="cpu", weights_only=True)
            return None
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
        return damaged and f"checksum of {damaged}"
    except Exception as error:  # whatever a broken file gives rise to
        return f"{type(error).__name__}: {one_line(error)}"


def require_file(path: str) -> None:
    """Fetch a checkpoint into the local cache if it is remote.

    Args:
        path: a file, `detectron2://...`, `https://...`; a query (`?matching_heuristics=True`) is no part of the name.
    """
    path = urlparse(path)._replace(query="").geturl()
    try:
        if os.path.isfile(PathManager.get_local_path(path)):
            return
        reason = "that is a folder" if os.path.isdir(path) else "there is no such file"
    except OSError as error:
        reason = f"it cannot be downloaded ({error})"
    cure = "set MODEL.WEIGHTS to a checkpoint, or to '' to start from random weights"
    url = path.replace(Detectron2Handler.PREFIX, Detectron2Handler.S3_DETECTRON2_PREFIX)
    if urlparse(url).scheme in ("http", "https", "ftp"):
        place = os.path.join(get_cache_dir(), urlparse(url).path.lstrip("/"))
        cure = f"download {url} elsewhere and put it at {place} (the folder is $FVCORE_CACHE), or {cure}"
    raise InputError(f"the weights {path} are not here: {reason}. {cure[0].upper()}{cure[1:]}")


def unwrapped(weights: dict, model) -> dict:
    """Weights without a prefix of :data:`WRAPPERS` that all names share, and none of the model's own."""
    prefix = WRAPPERS.match(os.path.commonprefix(list(weights)))
    if prefix is None or any(name.startswith(prefix[0]) for name in model.state_dict()):
        return weights
    return {name[prefix.end() :]: value for name, value in weights.items()}


def drop_classifier(weights: dict) -> None:
    """Take ``cls_score`` and ``cls_scale``, the learnt factors of its logits, out of ``weights``, in place."""
    dropped = [name for name in weights if is_of_classifier(name)]
    for name in dropped:
        del weights[name]
    logger.info("MODEL.NEW_CLASSIFIER: %s of the weights are left out", ", ".join(dropped) or "no classifier")


def is_of_classifier(name: str) -> bool:
    return ".cls_score." in name or name.endswith(".cls_scale")


def background_row(rows: torch.Tensor, cls_score: torch.nn.Module) -> torch.Tensor:
    """One row to go below those of each anchor: zeros, or for a normalised classifier, to which zero is no direction,
    its own.

    Args:
        rows: (A, n, ...) of A anchors, 1 in an RoI head.
    """
    if isinstance(cls_score, NormedLinear) and rows.dim() > 2:
        return cls_score.weight[None, -1:].detach().to(rows)
    return torch.zeros_like(rows[:, :1])


def fit_cls_score(weights: dict, name: str, predictor: Predictor) -> None:
    """Give the parameter ``name`` of ``weights`` as many rows as ``predictor.cls_score`` has, in place.

    A dense detector has them for each anchor of a place.
    """
    if name not in weights:
        return
    rows = torch.as_tensor(weights[name])
    K, C, wanted = predictor.num_classes, predictor.cls_loss.num_logits, len(predictor.cls_score.weight)
    A = wanted // C
    if len(rows) == wanted:
        return
    if len(rows) == A * (K + 1) and C == K:
        weights[name] = rows.unflatten(0, (A, K + 1))[:, :K].flatten(0, 1)
        logger.info("%s: dropped the background row, since the loss has %d logits", name, K)
    elif len(rows) == A * K and C == K + 1:
        rows = rows.unflatten(0, (A, K))
        weights[name] = torch.cat([rows, background_row(rows, predictor.cls_score)], dim=1).flatten(0, 1)
        logger.warning("%s has no background row: appended a new one. Train on before you trust the scores.", name)
    else:
        raise InputError(
            f"{name} of the checkpoint has {len(rows)} rows, but the model ({type(predictor.cls_loss).__name__}, "
            f"{K} classes) has {wanted}: set NUM_CLASSES and MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME to what "
            f"the checkpoint was trained with, or start a new classifier from it by MODEL.NEW_CLASSIFIER True"
        )
