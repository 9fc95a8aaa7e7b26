"""Balanced group softmax (BAGS)."""

import itertools

import torch
from torch.nn import functional as F

from eql_d2.data.frequencies import Counts
from eql_d2.errors import InputError
from eql_d2.losses import functional
from eql_d2.losses.base import ClassificationLoss, at_least_fp32
from eql_d2.losses.build import CLS_LOSS_REGISTRY
from eql_d2.losses.statistics import sum_over_processes, world_size


@CLS_LOSS_REGISTRY.register()
class BalancedGroupSoftmaxLoss(ClassificationLoss):
    """Categories compete only with those that are about as frequent: a softmax for each group, and one for background.

    L = sum_g (1 / N_g) sum_{i kept in g} -log softmax(z_i over group g and its "others")_{y_ig}

    Group 0 is {background, others}, that is, background or object. Groups 1, 2, ... hold the categories with fewer than
    ``bounds[0]`` objects, than ``bounds[1]``, ..., and the rest; each has a logit more, "others", which is the label of
    RoIs of any other group, background included. From "Overcoming Classifier Imbalance for Long-tail Object Detection
    with Balanced Group Softmax" (Li et al., CVPR 2020, arXiv:2006.10408).

    Group 0 keeps all RoIs. Of the RoIs that are "others" to group g > 0 only a random part is kept, on average
    ``others_ratio`` times as many as there are RoIs of its categories; without any of those the group takes no part.
    N_g is the number of RoIs of the group plus that average. With several processes both numbers are the joined
    batch's, so that processes together train what one would. The authors' code has a mean in each process: a group that
    only one of eight has weighs an eighth there.

    The classifier has K + 1 + G outputs for G groups, group 0 among them: the K categories and background as in a
    softmax model, then "others" of group 0 (object), 1, 2, ... A category's score is its softmax in its group times
    softmax(z in group 0)_object. These scores, in [0, 1], need not sum to 1. The authors train it as a second stage:
    the classifier alone, from a trained baseline.

    State: the group of each category is kept in checkpoints, as part of what the logits mean, so that a trained model
    scores without any counts.

    Deviations from the authors' code, beside that: groups are counted from any dataset instead of three prepared files;
    "others" are kept each by a draw of its own, where theirs keeps exactly ``others_ratio`` times the number, drawn by
    NumPy on the host.

    Args:
        num_classes: K.
        frequencies: counts of the training set, K categories, with instance counts.
        bounds: ascending numbers of objects that part the groups (default of the authors' code). A group may be empty.
        others_ratio: >= 0, RoIs of other groups for each of a group (beta of the paper; default of the authors' code).
    """

    group: torch.Tensor  # (K + 1,) int64, of each class; in checkpoints
    columns: torch.Tensor  # the others: see _lay_out
    _trained_otherwise = ""  # why a checkpoint that was loaded can be scored with, but not trained on
    labels: torch.Tensor
    places: torch.Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        frequencies: Counts,
        bounds: tuple[int, ...] = (10, 100, 1000),
        others_ratio: float = 8.0,
    ):
        super().__init__(num_classes)
        if any(low >= high for low, high in itertools.pairwise(bounds)):
            raise InputError(f"bounds must ascend, got {bounds}")
        if not 0 <= others_ratio < float("inf"):
            raise InputError(f"others_ratio must be in [0, inf), got {others_ratio}")
        self.num_groups = 2 + len(bounds)
        self.others_ratio = others_ratio

        def group(frequencies):
            counts = frequencies.require_instance_count()
            groups = 1 + torch.bucketize(counts, torch.tensor(bounds), right=True)
            return F.pad(groups, (0, 1))

        with torch.device("cpu"):  # also for a model without data (meta), since the layout depends on the counts
            self.register_derived("group", frequencies, group)
            self.groups_known = self.group is not None
            if not self.groups_known:  # until a checkpoint is loaded
                self.group = torch.zeros(num_classes + 1, dtype=torch.int64)
            self.register_buffer("group", self.group)
            self._lay_out()
        self.to(torch.get_default_device())

    @property
    def num_logits(self) -> int:
        return self.num_classes + 1 + self.num_groups

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        loaded = state_dict.get(f"{prefix}group")
        if loaded is not None:
            self._check_groups(loaded)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if loaded is not None and self.group.device.type != "meta":
            self.groups_known = True
            self._lay_out()

    def _check_groups(self, loaded: torch.Tensor) -> None:
        """What a checkpoint says of the groups must be possible; to train on, also what this loss's own counts say."""
        name, G = type(self).__name__, self.num_groups
        if loaded.shape != self.group.shape or loaded.device.type == "meta":
            return  # torch has its own error for the former
        categories = loaded[:-1]
        if loaded[-1] != 0 or not ((categories >= 1) & (categories < G)).all():
            raise InputError(
                f"the checkpoint's groups of categories are {sorted(set(loaded.tolist()))}, but {name} with bounds of "
                f"{G - 2} numbers has the groups 1 to {G - 1}, and 0 for background: set `bounds` (BOUNDS) as it was "
                f"trained"
            )
        if self.groups_known and self.group.device.type != "meta" and not torch.equal(loaded.cpu(), self.group.cpu()):
            differing = int((loaded.cpu() != self.group.cpu()).sum())
            self._trained_otherwise = (
                f"{differing} of {len(categories)} categories are in another group in the checkpoint than by the "
                f"counts and bounds of this {name}: give the counts and `bounds` (BOUNDS) that it was trained with"
            )

    def _lay_out(self) -> None:
        """Derive where the logits of each group are.

        ``columns``: all logits, group by group, "others" last in each; ``sizes``: how many each group has; ``labels``:
        (G, K + 1) the label of each class in each group, counted from the group's first column; ``places``: (K + 1,) of
        each class among the classes as ``columns`` orders them.
        """
        order = self.group.argsort(stable=True)
        members = [order[self.group[order] == g] for g in range(self.num_groups)]
        columns, labels = [], []
        for g, classes in enumerate(members):
            columns += [classes, classes.new_tensor([self.num_classes + 1 + g])]
            label = torch.arange(len(classes), device=classes.device)
            labels += [torch.full_like(self.group, len(classes)).scatter(0, classes, label)]
        self.sizes = [len(classes) + 1 for classes in members]
        self.register_buffer("columns", torch.cat(columns), persistent=False)
        self.register_buffer("labels", torch.stack(labels), persistent=False)
        self.register_buffer("places", order.argsort(), persistent=False)

    def by_group(self, logits) -> tuple[torch.Tensor, ...]:
        """(R, K + 1 + G) logits -> those of each group, "others" last."""
        return logits.index_select(1, self.columns).split(self.sizes, dim=1)

    def probs(self, logits) -> torch.Tensor:
        """
        Raises:
            InputError: the groups are not known, from counts or from a checkpoint.
        """
        if not self.groups_known:
            raise InputError(
                f"BalancedGroupSoftmaxLoss scores by groups of categories: load a checkpoint of a model trained with "
                f"it, which holds them, or give the counts. {self._no_frequencies}"
            )
        groups = [z.softmax(dim=1) for z in self.by_group(at_least_fp32(self.checked_width(logits)))]
        scores = torch.cat([p[:, :-1] for p in groups], dim=1).index_select(1, self.places)
        categories, background = scores.split([self.num_classes, 1], dim=1)
        is_object = groups[0][:, -1:]
        return torch.cat([categories * is_object, background], dim=1)

    def compute(self, logits, rois):
        if self._trained_otherwise:
            raise InputError(self._trained_otherwise)
        weights = self.draw_weights(rois.gt_classes, rois.generator).to(logits.dtype)
        labels = self.labels[:, rois.gt_classes]
        losses = [
            F.cross_entropy(z, label, reduction="none") * weight
            for z, label, weight in zip(self.by_group(logits), labels, weights.T)
        ]
        return len(logits) * torch.stack(losses).sum(dim=0)

    def without_rois(self):
        self.draw_weights(self.group.new_zeros(0))

    def draw_weights(self, gt_classes, generator=None) -> torch.Tensor:
        """(R, G) float64, 1 / N_g where the RoI is kept in the group, else 0; a new draw."""
        groups = torch.arange(self.num_groups, device=gt_classes.device)
        in_group = self.group[gt_classes, None] == groups
        members = sum_over_processes(in_group.sum(dim=0).double()) / world_size()
        others = members.sum() - members
        chance = (self.others_ratio * members / others).clamp(max=1).masked_fill(groups == 0, 1)
        kept = in_group | (functional.rand(*in_group.shape, device=chance.device, generator=generator) < chance)
        return torch.where(kept, 1 / (members + chance * others), 0)
