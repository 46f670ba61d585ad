"""Operators that freeze everything they touch, each with its reason."""

from __future__ import annotations

from prunecli.dependency.registry import barrier
from prunecli.operators import MICROSOFT, named

NO_KERNEL = "onnxruntime has no CPU kernel to prove a cut with"
QUANTISED = "quantised weights are not cut: prune the floating-point model, then quantise it"
REASONS: dict[str, dict[str, str]] = {
    "": {
        "the bodies of control flow run on whole tensors": "If Loop Scan SequenceMap",
        "a sequence holds tensors whose shapes are not followed": """
            ConcatFromSequence SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength
            SplitToSequence""",
        "an optional value may be absent": "Optional OptionalGetElement OptionalHasElement",
        "text has no channels": "RegexFullMatch StringConcat StringNormalizer StringSplit TfIdfVectorizer",
        "an image is decoded from a file": "ImageDecoder",
        "the number of results depends on data": "Compress NonMaxSuppression NonZero Unique",
        "the random numbers that a position gets depend on the shape": """
            Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike""",
        QUANTISED: "DynamicQuantizeLinear QuantizeLinear",
        "a loss compares classes that stay": "NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss",
        "its positions are numbered": "EyeLike Range",
        "the indices of MaxPool number all channels": "MaxUnpool",
        "coordinates of a sampling grid": "AffineGrid",
        "a window or filter bank made from its length": "BlackmanWindow HammingWindow HannWindow MelWeightMatrix",
        "its state couples all positions of a head": "LinearAttention",
        "a constant in a form that is not followed": "Constant",
    },
    MICROSOFT: {
        QUANTISED: """
            MatMulInteger16 QLinearAdd QLinearAveragePool QLinearConcat QLinearGlobalAveragePool QLinearLeakyRelu
            QLinearMul QLinearReduceMean QLinearSigmoid QLinearSoftmax QLinearWhere QuantizeLinear""",
    },
    "ai.onnx.preview": {"its bodies may compute anything": "FlexAttention"},
    "ai.onnx.preview.training": {"training operators are not pruned": "Adagrad Adam Gradient Momentum"},
    "ai.onnx.ml": {
        "classical machine learning keeps its parameters in attributes": """
            ArrayFeatureExtractor Binarizer CastMap CategoryMapper DictVectorizer FeatureVectorizer Imputer LabelEncoder
            LinearClassifier LinearRegressor Normalizer OneHotEncoder SVMClassifier SVMRegressor Scaler TreeEnsemble
            TreeEnsembleClassifier TreeEnsembleRegressor ZipMap""",
    },
}
"""Domain -> reason -> operators, but for those of which `operators` says that they are quantised, or on no CPU."""

for _domain, _reasons in REASONS.items():
    for _reason, _ops in _reasons.items():
        barrier(_reason, *_ops.split(), domain=_domain)
for _domain in REASONS:
    barrier(QUANTISED, *named(lambda operator: operator.quantised, _domain), domain=_domain)
    barrier(NO_KERNEL, *named(lambda operator: not operator.on_cpu, _domain), domain=_domain)
