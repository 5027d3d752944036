"""Scores of embeddings: which of several will transfer best, without training on each."""

from sktransfer.ranking.hscore import h_score
from sktransfer.ranking.logits import leep_score, nce_score
from sktransfer.ranking.logme import logme_score
from sktransfer.ranking.probe import linear_probe_score
from sktransfer.ranking.scorers import embedding_scorer

__all__ = ["embedding_scorer", "h_score", "leep_score", "linear_probe_score", "logme_score", "nce_score"]
