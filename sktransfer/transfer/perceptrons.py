"""Multilayer perceptrons that start from a fitted one."""

from sktransfer.transfer.perceptron_classifier import TransferMLPClassifier
from sktransfer.transfer.perceptron_regressor import TransferMLPRegressor

__all__ = ["TransferMLPClassifier", "TransferMLPRegressor"]
