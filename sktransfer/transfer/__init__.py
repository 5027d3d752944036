"""Heads that start from a source: parameter and structure transfer between fitted estimators."""

from sktransfer.transfer.logistic import TransferLogisticRegression
from sktransfer.transfer.perceptron_classifier import TransferMLPClassifier
from sktransfer.transfer.perceptron_regressor import TransferMLPRegressor
from sktransfer.transfer.ridge import TransferRidge

__all__ = ["TransferLogisticRegression", "TransferMLPClassifier", "TransferMLPRegressor", "TransferRidge"]
