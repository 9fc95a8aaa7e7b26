"""LVIS's metrics through the LVIS API, on today's numpy."""

from contextlib import contextmanager

import numpy as np
from detectron2.evaluation import LVISEvaluator as D2LVISEvaluator


class LVISEvaluator(D2LVISEvaluator):
    """Detectron2's LVISEvaluator: AP, AP50, AP75, APs/m/l, and APr/c/f, in percent; nan where there is no object.

    Cured here: the ``lvis`` package uses ``np.float``, which numpy removed in 1.24 (it fails after the whole
    evaluation has run), and the API's -1 for a group without objects came out as an AP of -100.
    """

    def evaluate(self):
        with numpy_of_lvis_api():
            results = super().evaluate()
        if results is None:  # not the main process
            return None
        return {
            task: {name: score if score >= 0 else float("nan") for name, score in scores.items()}
            for task, scores in results.items()
        }


class _NumpyWithFloat:
    """numpy as the LVIS API expects it, without touching the one everybody else uses."""

    float = float

    def __getattr__(self, name):
        return getattr(np, name)


@contextmanager
def numpy_of_lvis_api():
    """Within this context the LVIS API's evaluation finds ``np.float``."""
    import lvis.eval  # here, since it imports matplotlib and OpenCV

    lvis.eval.np = _NumpyWithFloat()
    try:
        yield
    finally:
        lvis.eval.np = np
