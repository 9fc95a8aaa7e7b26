"""Which evaluator a dataset has: by the ``evaluator_type`` in its metadata."""

from fvcore.common.registry import Registry

EVALUATOR_REGISTRY = Registry("EVALUATOR")
EVALUATOR_REGISTRY.__doc__ = """
Functions that make a dataset's evaluator, each by the name of the ``evaluator_type`` that it is for. Called as
``obj(dataset_name, **settings)`` with

    output_dir: folder for what it writes.
    max_dets_per_image: the best so many detections of an image count, -1 for all.
    analysis: a :class:`~eql_d2.evaluation.tail_analysis.TailAnalysis` of the training set's counts and the loss's tail.
    fixed_ap: whether fixed AP is asked for, and the model keeps all the detections that it needs.
    backend: ``TEST.LVIS_BACKEND``.

one takes those that it goes by, and the others as ``**_``.
"""
