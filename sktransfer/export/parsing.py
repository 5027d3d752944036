"""A plain fitted estimator -> ONNX, by skl2onnx and by our own operators for what it has not or not exactly."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import (
    AdaBoostClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    RandomForestRegressor,
    VotingClassifier,
)
from sklearn.pipeline import Pipeline
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from sktransfer.export.inverses import InverseTarget
from sktransfer.export.kernels import KernelClassifier, KernelRegressor
from sktransfer.export.operators import (
    STRING,
    AffineMap,
    Calibration,
    Embedding,
    Imputation,
    Inverse,
    LinearHead,
    MeanOfProbabilities,
    Trees,
    label_array,
)
from sktransfer.export.readers import READ, find_operator, read_calibration
from sktransfer.export.support import TESTED
from sktransfer.extractor import PretrainedFeatureExtractor

_OPERATORS = (
    AffineMap, Calibration, Embedding, Imputation, Inverse, KernelClassifier, KernelRegressor, LinearHead,
    MeanOfProbabilities, Trees,
)  # fmt: skip
_FLOAT32 = (  # what scikit-learn computes from float32, and what onnxruntime has in float32 alone
    AdaBoostClassifier, DecisionTreeClassifier, DecisionTreeRegressor, ExtraTreesRegressor,
    GradientBoostingClassifier, GradientBoostingRegressor, RandomForestRegressor,
)  # fmt: skip

Parser = Callable[..., Any]


def convert_head(estimator: Any, columns: Sequence[tuple[str, str]], extractors: Sequence[Any], opset: int) -> Any:
    """Convert what `make_plain` gave to an ONNX model in which nodes "Embed" stand for the extractors.

    Parameters
    ----------
    estimator : estimator
    columns : sequence of (name, kind)
        Inputs of shape (n, 1), in the order of the estimator's columns; see `columns.find_columns`. Images are a
        float64 input until their networks are there.
    extractors : sequence of PretrainedFeatureExtractor
        Those in the estimator; a node's attribute `number` is a position among them.
    opset : int
    """
    from skl2onnx import convert_sklearn
    from skl2onnx.common import data_types as types

    kinds = {"text": types.StringTensorType, "integer": types.Int64TensorType}
    parsing = _Parsing({id(extractor): number for number, extractor in enumerate(extractors)})
    return convert_sklearn(
        estimator,
        "head",
        [(name, kinds.get(kind, types.DoubleTensorType)([None, 1])) for name, kind in columns],
        target_opset={"": opset, "ai.onnx.ml": 3},
        options=parsing.options,
        custom_parsers=parsing.find_parsers(extractors),
        custom_conversion_functions=dict.fromkeys(_OPERATORS, _write_operator),
        custom_shape_calculators=dict.fromkeys(_OPERATORS, _shape_operator),
        naming="sk_",
    )


def _write_operator(scope: Any, operator: Any, container: Any) -> None:
    inputs = [variable.full_name for variable in operator.inputs]
    outputs = [variable.full_name for variable in operator.outputs]
    operator.raw_operator.write(_Nodes(scope, container), inputs, outputs)


def _shape_operator(operator: Any) -> None:
    width = operator.raw_operator.width
    operator.outputs[-1].type.shape = [None] if width is None else [None, width]
    if len(operator.outputs) == 2:
        operator.outputs[0].type.shape = [None]


class _Nodes:
    """`Nodes` in a container of skl2onnx."""

    def __init__(self, scope: Any, container: Any) -> None:
        self.scope, self.container = scope, container

    def constant(self, values: Any) -> str:
        import onnx

        name: str = self.scope.get_unique_variable_name("constant")
        array = np.asarray(values)
        if array.dtype.kind == "O":
            elem_type, flat = STRING, [text.encode() for text in array.ravel()]
        else:
            elem_type, flat = onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.ravel().tolist()
        self.container.add_initializer(name, elem_type, list(array.shape), flat)
        return name

    def node(self, op_type: str, *inputs: str, output: str | None = None, domain: str = "", **attributes: Any) -> str:
        name: str = output or self.scope.get_unique_variable_name(op_type)
        attributes["name"] = self.scope.get_unique_operator_name(op_type)
        version = {"op_version": 3 if domain == "ai.onnx.ml" else 1} if domain else {}
        self.container.add_node(op_type, list(inputs), [name], op_domain=domain, **version, **attributes)
        return name


class _Parsing:
    """From estimators to skl2onnx's operators and variables."""

    def __init__(self, numbers: dict[int, int]) -> None:
        self.numbers = numbers  # of the extractors, by identity
        self.options: dict[int, dict[str, Any]] = {}  # of skl2onnx, which reads them when everything is parsed

    def find_parsers(self, extractors: Sequence[Any]) -> dict[type, Parser]:
        """A parser for every type of which skl2onnx's own does not serve."""
        parsers: dict[type, Parser] = {
            Pipeline: self.parse_pipeline,
            ColumnTransformer: self.parse_columns,
            CalibratedClassifierCV: self.parse_calibrated,
            VotingClassifier: self.parse_voting,
            InverseTarget: self.parse_inverse,
            **dict.fromkeys((type(one) for one in extractors), self.parse_extractor),
            **dict.fromkeys(_FLOAT32, self.parse_float32),
        }
        return {**parsers, **dict.fromkeys(READ, self.parse_own)}

    def parse(self, scope: Any, model: Any, inputs: Any, parsers: Any) -> Any:
        """The outputs of any model: [features], [label, probabilities] or [value]."""
        from skl2onnx._parse import _parse_sklearn, _parse_sklearn_simple_model

        if type(model).__name__ not in TESTED and type(model) not in parsers:  # most converters are made for float32
            inputs = [self._cast(scope, variable, double=False) for variable in inputs]
        if type(model) in parsers or not isinstance(model, ClassifierMixin):
            return _parse_sklearn(scope, model, inputs, custom_parsers=parsers)
        return _parse_sklearn_simple_model(scope, model, inputs, custom_parsers=parsers)  # no ZipMap behind it

    def parse_pipeline(self, scope: Any, model: Any, inputs: Any, custom_parsers: Any = None) -> Any:
        """One step behind the other."""
        for _, step in model.steps:
            inputs = self.parse(scope, step, inputs, custom_parsers)
        return inputs

    def parse_columns(self, scope: Any, model: Any, inputs: Any, custom_parsers: Any = None) -> Any:
        """Columns are whole inputs, or those of the only one."""
        found = []
        for _, part, indices in model.transformers_:
            if (isinstance(part, str) and part == "drop") or not indices:
                continue
            if len(inputs) == model.n_features_in_:
                chosen = [inputs[index] for index in indices]
            else:
                chosen = [self._slice(scope, inputs[0], indices)]
            if isinstance(part, str):
                found += chosen
                continue
            first = part.steps[0][1] if isinstance(part, Pipeline) else part
            apart = isinstance(first, (PretrainedFeatureExtractor, ColumnTransformer)) or hasattr(first, "categories_")
            if len(chosen) > 1 and not apart:
                chosen = [self._join(scope, chosen)]
            found += self.parse(scope, part, chosen, custom_parsers)[:1]
        return [self._join(scope, found)] if len(found) > 1 else found

    def parse_calibrated(self, scope: Any, model: Any, inputs: Any, custom_parsers: Any = None) -> Any:
        """The mean of calibrated classifiers."""
        members = []
        for one in model.calibrated_classifiers_:
            scores, from_probabilities = self._parse_scores(scope, one.estimator, inputs, custom_parsers)
            calibration = read_calibration(one, len(model.classes_), from_probabilities=from_probabilities)
            members += self._declare(scope, calibration, scores)
        return self._declare(scope, MeanOfProbabilities(model.classes_, None), members)

    def parse_voting(self, scope: Any, model: Any, inputs: Any, custom_parsers: Any = None) -> Any:
        """The weighted mean of probabilities."""
        if model.voting != "soft":
            raise ValueError(f'A VotingClassifier must have voting="soft". Got {model.voting!r} instead.')
        members = [self._cast(scope, self.parse(scope, one, inputs, custom_parsers)[1]) for one in model.estimators_]
        weights = None if model.weights is None else np.asarray(model._weights_not_none)
        return self._declare(scope, MeanOfProbabilities(model.classes_, weights), members)

    def _parse_scores(self, scope: Any, model: Any, inputs: Any, parsers: Any) -> tuple[Any, bool]:
        """What a classifier is calibrated on: decision function, or probabilities; of two classes the second's."""
        if isinstance(model, Pipeline):
            for _, step in model.steps[:-1]:
                inputs = self.parse(scope, step, inputs, parsers)
            model = model.steps[-1][1]
        own = find_operator(model)
        if isinstance(own, (LinearHead, KernelClassifier)):
            return self._declare(scope, own.without_labels(), inputs), False
        from_probabilities = not hasattr(model, "decision_function")
        if not from_probabilities:
            self.options[id(model)] = {"raw_scores": True}
            scope.add_options(id(model), self.options[id(model)])
        scores = self.parse(scope, model, inputs, parsers)[1]
        if len(model.classes_) == 2:
            scores = self._slice(scope, scores, [1])
        return [self._cast(scope, scores)], from_probabilities

    def parse_inverse(self, scope: Any, model: Any, inputs: Any, custom_parsers: Any = None) -> Any:
        """A regressor, and the way back."""
        values = [self._cast(scope, self.parse(scope, model.regressor, inputs, custom_parsers)[0])]
        return self._declare(scope, Inverse(model.operations, 1), values)

    def parse_extractor(self, scope: Any, model: Any, inputs: Any, custom_parsers: Any = None) -> Any:  # noqa: ARG002
        """The node that stands for it."""
        width = len(inputs) * (model._n_embedding + bool(model.add_indicator))
        return self._declare(scope, Embedding(self.numbers[id(model)], width), inputs)

    def parse_own(self, scope: Any, model: Any, inputs: Any, custom_parsers: Any = None) -> Any:  # noqa: ARG002
        """Our own operator."""
        return self._declare(scope, find_operator(model), inputs)

    def parse_float32(self, scope: Any, model: Any, inputs: Any, custom_parsers: Any = None) -> Any:
        """skl2onnx's operator on float32."""
        from skl2onnx._parse import _parse_sklearn_simple_model

        features = self._cast(scope, inputs[0], double=False)
        return _parse_sklearn_simple_model(scope, model, [features], custom_parsers=custom_parsers)

    def _cast(self, scope: Any, variable: Any, *, double: bool = True) -> Any:
        from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType

        kind = DoubleTensorType if double else FloatTensorType
        if isinstance(variable.type, kind):
            return variable
        cast = scope.declare_local_operator("SklearnCast")
        cast.inputs = [variable]
        cast.outputs.append(scope.declare_local_variable("cast", kind([None, None])))
        return cast.outputs[0]

    def _declare(self, scope: Any, operator: Any, inputs: Any) -> Any:
        from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType, Int64TensorType, StringTensorType

        declared = scope.declare_local_operator(f"Sktransfer{type(operator).__name__}", operator)
        declared.inputs = [self._cast(scope, one) if isinstance(one.type, FloatTensorType) else one for one in inputs]
        if operator.classes is not None:
            kind = StringTensorType if label_array(operator.classes).dtype.kind == "O" else Int64TensorType
            declared.outputs.append(scope.declare_local_variable("label", kind([None])))
        width = operator.width
        shape = [None] if width is None else [None, width]
        kind = StringTensorType if getattr(operator, "text", False) else DoubleTensorType
        declared.outputs.append(scope.declare_local_variable("values", kind(shape)))
        return declared.outputs

    def _slice(self, scope: Any, variable: Any, indices: Sequence[int]) -> Any:
        extractor = scope.declare_local_operator("SklearnArrayFeatureExtractor")
        extractor.inputs = [variable]
        extractor.column_indices = list(indices)
        extractor.outputs.append(scope.declare_local_variable("columns", copy.copy(variable.type)))
        return extractor.outputs[0]

    def _join(self, scope: Any, variables: Sequence[Any]) -> Any:
        join = scope.declare_local_operator("SklearnConcat")
        join.inputs = list(variables)
        kind = type(variables[0].type)
        join.outputs.append(scope.declare_local_variable("joined", kind([None, None])))
        return join.outputs[0]
