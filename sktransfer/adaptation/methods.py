"""Methods by name."""

from __future__ import annotations

from typing import Any

from sklearn.base import clone

from sktransfer.adaptation.adapters import Adapter
from sktransfer.adaptation.importance import ImportanceWeighting
from sktransfer.adaptation.moments import Coral, Standardize
from sktransfer.adaptation.selftraining import SelfTraining
from sktransfer.adaptation.subspaces import SubspaceAlignment
from sktransfer.adaptation.transport import OptimalTransport

METHODS: dict[str, type[Adapter]] = {
    "standardize": Standardize,
    "coral": Coral,
    "subspace": SubspaceAlignment,
    "importance": ImportanceWeighting,
    "ot": OptimalTransport,
    "pseudo": SelfTraining,
}
AUTO = {"classifier": ["standardize", "subspace", "pseudo"], "regressor": ["standardize", "subspace"]}
HOOKS = ("fit", "transform", "source_weight", "train")


def choose_adapters(method: Any, kind: str) -> list[Adapter]:
    """Return new adapters for "auto", a name, an adapter, or a list of names and adapters.

    Parameters
    ----------
    kind : {"classifier", "regressor"}
        What "auto" is for.
    """
    if isinstance(method, str) and method == "auto":
        method = AUTO[kind]
    wanted = list(method) if isinstance(method, (list, tuple)) else [method]
    if not wanted:
        raise ValueError("method must name at least one method. Got an empty list instead.")
    adapters = [_make_adapter(one) for one in wanted]
    for adapter in adapters[:-1]:
        if isinstance(adapter, SelfTraining):
            raise ValueError('"pseudo" must be the last method of a list, on top of the others.')
    return adapters


def _make_adapter(method: Any) -> Adapter:
    if isinstance(method, str) and method in METHODS:
        return METHODS[method]()
    if not isinstance(method, (str, type)) and all(callable(getattr(method, hook, None)) for hook in HOOKS):
        made: Adapter = clone(method)
        return made
    names = ", ".join(f'"{name}"' for name in ("auto", *METHODS))
    raise ValueError(f"method must be one of {names}, an Adapter, or a list of these. Got {method!r} instead.")
