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
AUTO: dict[str, list[list[Any]]] = {  # of which the best score is taken
    "classifier": [["standardize", "subspace", "pseudo"], ["standardize", "subspace"], []],
    "regressor": [[Standardize(onto="source")], []],
}
HOOKS = ("fit", "transform", "source_weight", "train")


def is_auto(method: Any) -> bool:
    """Whether the method is to be chosen."""
    return isinstance(method, str) and method == "auto"


def choose_candidates(method: Any, kind: str) -> list[list[Adapter]]:
    """Return lists of new adapters to choose from, for "auto", a name, an adapter, or a list of these.

    Parameters
    ----------
    kind : {"classifier", "regressor"}
        What "auto" is for.
    """
    if is_auto(method):
        return [[_make_adapter(name) for name in names] for names in AUTO[kind]]
    return [_make_adapters(method)]


def _make_adapters(method: Any) -> list[Adapter]:
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
