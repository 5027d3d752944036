"""Domain adaptation: source rows that have labels, target rows that look different and have none."""

from sktransfer.adaptation.adapters import Adapter
from sktransfer.adaptation.estimators import AdaptedClassifier, AdaptedRegressor
from sktransfer.adaptation.importance import ImportanceWeighting
from sktransfer.adaptation.moments import Coral, Standardize
from sktransfer.adaptation.report import AdaptationReport
from sktransfer.adaptation.scoring import TargetScorer
from sktransfer.adaptation.selftraining import SelfTraining
from sktransfer.adaptation.subspaces import SubspaceAlignment
from sktransfer.adaptation.transport import OptimalTransport

__all__ = [
    "AdaptationReport",
    "AdaptedClassifier",
    "AdaptedRegressor",
    "Adapter",
    "Coral",
    "ImportanceWeighting",
    "OptimalTransport",
    "SelfTraining",
    "Standardize",
    "SubspaceAlignment",
    "TargetScorer",
]
