"""Transferability scores of arrays: the papers' equations, written down slowly, and the laws that follow from them."""

import pickle
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.covariance import ledoit_wolf
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, cross_val_predict, cross_val_score
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from sktransfer import h_score, leep_score, linear_probe_score, logme_score, nce_score
from sktransfer.ranking import embedding_scorer, logme, spectra
from sktransfer.ranking.evidence import NOISE, maximise
from sktransfer.ranking.inputs import read_features

SCORES = {"logme": logme_score, "h": h_score, "leep": leep_score, "nce": nce_score, "probe": linear_probe_score}
ARRAY_SCORES = {"logme": logme_score, "h": h_score, "original h": lambda X, y: h_score(X, y, shrinkage=0)}


def make_task(n, d, n_classes, seed=0):
    """Embeddings that tell something of the labels, all of which occur."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d)) * rng.uniform(0.5, 2, d) + rng.standard_normal(d)
    y = (X @ rng.standard_normal((d, n_classes)) / np.sqrt(d) + rng.standard_normal((n, n_classes))).argmax(axis=1)
    y[:n_classes] = np.arange(n_classes)
    return X, y


def spoil(X, y, kind):
    """Return a variant of a task that is hard to compute with."""
    X, y = X.copy(), y.copy()
    if kind == "one-sample classes":
        y[-2:] = y.max() + 1, y.max() + 2
    elif kind == "constant columns":
        X[:, 0], X[:, -1] = 7.0, 0.0
    elif kind == "duplicated columns":
        X[:, 1:3] = X[:, :1]
    return X, y


SHAPES = [(80, 6, 3), (20, 3, 2), (20, 50, 4), (30, 30, 3), (60, 10, 25), (25, 1, 2)]
KINDS = ["plain", "one-sample classes", "constant columns", "duplicated columns"]


@pytest.fixture(
    params=[(shape, kind) for shape in SHAPES for kind in KINDS if kind == "plain" or shape[1] > 2], ids=str
)
def task(request):
    shape, kind = request.param
    return spoil(*make_task(*shape), kind)


def log_evidence(log_alpha, log_beta, X, y):
    """log N(y | 0, I/β + XXᵀ/α): equation 1 of LogME with the weights integrated out."""
    covariance = np.eye(len(y)) / np.exp(log_beta) + X @ X.T / np.exp(log_alpha)
    determinant = np.linalg.slogdet(covariance)[1]
    return -0.5 * (len(y) * np.log(2 * np.pi) + determinant + y @ np.linalg.solve(covariance, y))


def slow_evidence(X, y):
    """The largest evidence of one column of values, by a general-purpose optimiser from several points."""

    def miss(at):
        return -log_evidence(*np.clip(at, -15, 15), X, y) / len(y)

    starts = [(alpha, beta) for alpha in (-3, 0, 3, 6) for beta in (0, 3)]
    best = min(starts, key=miss)
    options = {"xatol": 1e-6, "fatol": 1e-12, "maxiter": 1000}
    return -scipy.optimize.minimize(miss, best, method="Nelder-Mead", options=options).fun


def test_logme_is_the_evidence_that_an_optimiser_finds(task):
    X, y = task
    slow = np.mean([slow_evidence(X, (y == label).astype(float)) for label in np.unique(y)[:4]])
    few = np.isin(y, np.unique(y)[:4])
    marks = np.column_stack([y == label for label in np.unique(y)[:4]]).astype(float)
    assert few.any()
