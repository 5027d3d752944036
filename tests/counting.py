"""An extractor that counts, in whatever process it runs, the rows that reach onnxruntime."""

import os

import onnxruntime as ort

from sktransfer import PretrainedFeatureExtractor

InferenceSession = ort.InferenceSession


class CountingSession(InferenceSession):
    def run(self, outputs, feeds, *args):
        log = os.environ.get("COUNTING_LOG")
        if log:
            with open(log, "a") as file:
                file.write(f"{len(next(iter(feeds.values())))}\n")
        return super().run(outputs, feeds, *args)


class CountingExtractor(PretrainedFeatureExtractor):
    def transform(self, X):
        ort.InferenceSession = CountingSession
        try:
            return super().transform(X)
        finally:
            ort.InferenceSession = InferenceSession
