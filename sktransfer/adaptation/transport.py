"""Source rows carried to where the target's are."""

from __future__ import annotations

import warnings
from numbers import Integral, Real
from typing import Any

import numpy as np

from sktransfer._optional import import_optional
from sktransfer.adaptation.adapters import Adapter, Array, find_domains

NORMS = ("max", "median", "log", "loglog")
LOOSE = 1e-2  # how far from 1 the coupling may sum


class OptimalTransport(Adapter):
    r"""Optimal transport with class regularisation: source rows are carried onto target rows.

    .. math:: \min_\gamma \; \langle \gamma, M \rangle + \mathrm{reg} \sum \gamma \log \gamma
              + \mathrm{reg\_class} \sum_j \sum_c \|\gamma_{I_c j}\|_1^{1/2}

    over couplings γ of source and target rows with uniform margins and M their squared distances; the second term sends
    rows of one class to the same target rows (left out in a regression). A source row becomes the mean of target rows
    under its share of γ; target rows stay. Several source domains are carried each by itself. The coupling has n_S n_T
    entries, and the class term as many for each class: 10,000 by 10,000 rows take 0.8 GB a class. Needs POT:
    ``pip install "sktransfer[adaptation]"``.

    Parameters
    ----------
    reg : float, default=0.1
        Of the entropy, in units of the norm that `norm` divides distances by.
    reg_class : float, default=0.1
        Of the classes.
    norm : {"max", "median", "log", "loglog"} or None, default="median"
        What squared distances are divided by, so that `reg` means the same whatever the features.
    max_iter : int, default=10
        Of the outer loop over the class term.

    Attributes
    ----------
    plans_ : dict of domain -> fitted transport of ``ot.da``

    References
    ----------
    .. [1] N. Courty, R. Flamary, D. Tuia and A. Rakotomamonjy, "Optimal transport for domain adaptation", IEEE TPAMI
       39 (2017), arXiv:1507.00504, section 4.2 and eq. 13-15.
    """

    def __init__(self, reg=0.1, reg_class=0.1, norm="median", max_iter=10):
        self.reg = reg
        self.reg_class = reg_class
        self.norm = norm
        self.max_iter = max_iter

    def fit(self, X, y, sample_domain):
        """Find the coupling of every source domain with the target."""
        self._check_parameters()
        target = sample_domain < 0
        self.plans_ = {}
        for domain in find_domains(sample_domain)[:-1]:
            rows = sample_domain == domain
            plan = self._make_plan(y)
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what went wrong shows in the coupling
                if np.issubdtype(y.dtype, np.integer):
                    known = np.where(np.isin(y[target], y[rows]), y[target], -1)  # others would have nowhere to be from
                    plan.fit(Xs=X[rows], ys=y[rows], Xt=X[target], yt=known)
                else:
                    plan.fit(Xs=X[rows], Xt=X[target])
            coupling = plan.coupling_
            if not np.isfinite(coupling).all() or abs(coupling.sum() - 1) > LOOSE:
                raise ValueError(f"reg must be larger for the coupling to converge here. Got {self.reg!r} instead.")
            plan.cost_ = None  # as large as the coupling, and not needed again
            self.plans_[domain] = plan
        return self

    def _check_parameters(self):
        for name, rule, right in (
            ("reg", "above 0", isinstance(self.reg, Real) and 0 < self.reg < np.inf),
            ("reg_class", "at least 0", isinstance(self.reg_class, Real) and 0 <= self.reg_class < np.inf),
            ("norm", '"max", "median", "log", "loglog" or None', self.norm is None or self.norm in NORMS),
            ("max_iter", "an integer >= 1", isinstance(self.max_iter, Integral) and self.max_iter >= 1),
        ):
            if not right:
                raise ValueError(f"{name} must be {rule}. Got {getattr(self, name)!r} instead.")

    def _make_plan(self, y: Array) -> Any:
        methods = import_optional("ot.da", "adaptation")
        if np.issubdtype(y.dtype, np.integer):
            return methods.SinkhornLpl1Transport(
                reg_e=self.reg, reg_cl=self.reg_class, norm=self.norm, max_iter=self.max_iter
            )
        return methods.SinkhornTransport(reg_e=self.reg, norm=self.norm)

    def transform(self, X, sample_domain):
        """Carry source rows; target rows stay."""
        out = X.copy()
        for domain in find_domains(sample_domain)[:-1]:
            rows = sample_domain == domain
            out[rows] = self.plans_[domain].transform(Xs=X[rows])
        return out
