"""scikit-learn's callbacks, which came with 1.9: one task an epoch, and nothing with older releases."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Stand-in for scikit-learn 1.8, which knows no callbacks."""

    def with_callbacks(method: Any) -> Any:
        """Return the method as it is."""
        return method


__all__ = ["CallbackSupportMixin", "EpochTasks", "find_stacklevel", "with_callbacks"]


def find_stacklevel() -> int:
    """Return the ``stacklevel`` of who called this package, for a warning where this is called."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and frame.f_globals.get("__name__", "").startswith(("sktransfer.", "sklearn.callback.")):
        frame, level = frame.f_back, level + 1
    return level


class EpochTasks:
    """The tasks of one fit, as its callbacks see them: the fit itself, and every epoch in it.

    Parameters
    ----------
    estimator : CallbackSupportMixin
        In a method under ``with_callbacks``.
    X, y : array-like
        What it is fitted on.
    sample_weight : ndarray or None
    max_epochs : int
    """

    def __init__(self, estimator: Any, X: Any, y: Any, sample_weight: Any, max_epochs: int) -> None:
        self._facts = {
            "estimator": estimator,
            "X": X,
            "y": y,
            "metadata": None if sample_weight is None else {"sample_weight": sample_weight},
        }
        self._epoch: Any = None
        self._fit: Any = None
        # the one name with an underscore, and documented: what every estimator with callbacks has to call
        if hasattr(estimator, "_init_callback_context"):
            self._fit = estimator._init_callback_context(max_subtasks=max_epochs)
            self._fit.call_on_fit_task_begin(**self._facts)

    def begin(self) -> None:
        """Begin an epoch, unless one is running."""
        if self._fit is not None and self._epoch is None:
            self._epoch = self._fit.subcontext(task_name="epoch")
            self._epoch.call_on_fit_task_begin(**self._facts)

    def end(self, attributes: Callable[[], dict[str, Any]]) -> bool:
        """End the running epoch; True if a callback asks to stop.

        Parameters
        ----------
        attributes : callable
            Returns the fitted attributes as they are now, for callbacks that predict.
        """
        if self._epoch is None:
            return False
        epoch, self._epoch = self._epoch, None
        return bool(epoch.call_on_fit_task_end(**self._facts, reconstruction_attributes=attributes))

    def close(self) -> None:
        """End the fit, and an epoch that came to nothing."""
        if self._epoch is not None:
            self._epoch.call_on_fit_task_end(estimator=self._facts["estimator"])
        if self._fit is not None:
            self._fit.call_on_fit_task_end(**self._facts, reconstruction_attributes=dict)
