"""Operators that freeze everything they touch, each with its reason."""

from __future__ import annotations

from prunecli.dependency.registry import barrier

barrier("the bodies of control flow run on whole tensors", "If", "Loop", "Scan", "SequenceMap")
barrier(
    "a sequence holds tensors whose shapes are not followed",
    "ConcatFromSequence", "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert",
    "SequenceLength", "SplitToSequence",
)  # fmt: skip
barrier("an optional value may be absent", "Optional", "OptionalGetElement", "OptionalHasElement")
barrier(
    "text has no channels",
    "RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer",
)  # fmt: skip
barrier("an image is decoded from a file", "ImageDecoder")
barrier("the number of results depends on data", "Compress", "NonMaxSuppression", "NonZero", "Unique")
barrier(
    "the random numbers that a position gets depend on the shape",
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
)  # fmt: skip
barrier(
    "quantised weights are not cut: prune the floating-point model, then quantise it",
    "ConvInteger", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul",
    "QuantizeLinear",
)  # fmt: skip
QUANTISED_CONTRIB = (
    "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "MatMulBnb4", "MatMulFpQ4", "MatMulIntegerToFloat",
    "MatMulInteger16", "MatMulNBits", "QAttention", "QEmbedLayerNormalization", "QGemm", "QLinearAdd",
    "QLinearAveragePool", "QLinearConcat", "QLinearConv", "QLinearGlobalAveragePool", "QLinearLeakyRelu",
    "QLinearMul", "QLinearReduceMean", "QLinearSigmoid", "QLinearSoftmax", "QLinearWhere", "QMoE",
    "GatherBlockQuantized", "DequantizeLinear", "QuantizeLinear",
)  # fmt: skip
barrier(
    "quantised weights are not cut: prune the floating-point model, then quantise it",
    *QUANTISED_CONTRIB,
    domain="com.microsoft",
)
barrier(
    "onnxruntime has no CPU kernel to prove a cut with",
    "GroupNorm", "SkipGroupNorm", "NhwcConv", "NhwcFusedConv", "BiasAdd", "BiasSplitGelu", "PackedAttention",
    "PackedMultiHeadAttention",
    domain="com.microsoft",
)  # fmt: skip
barrier("a loss compares classes that stay", "NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss")
barrier("its positions are numbered", "EyeLike", "Range")
barrier("the indices of MaxPool number all channels", "MaxUnpool")
barrier("coordinates of a sampling grid", "AffineGrid")
barrier("a window or filter bank made from its length", "BlackmanWindow", "HammingWindow", "HannWindow",
        "MelWeightMatrix")  # fmt: skip
barrier("its state couples all positions of a head", "LinearAttention")
barrier("a constant in a form that is not followed", "Constant")
barrier("its bodies may compute anything", "FlexAttention", domain="ai.onnx.preview")
barrier(
    "training operators are not pruned", "Adagrad", "Adam", "Gradient", "Momentum",
    domain="ai.onnx.preview.training",
)  # fmt: skip
barrier(
    "classical machine learning keeps its parameters in attributes",
    "ArrayFeatureExtractor", "Binarizer", "CastMap", "CategoryMapper", "DictVectorizer", "FeatureVectorizer",
    "Imputer", "LabelEncoder", "LinearClassifier", "LinearRegressor", "Normalizer", "OneHotEncoder",
    "SVMClassifier", "SVMRegressor", "Scaler", "TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor",
    "ZipMap",
    domain="ai.onnx.ml",
)  # fmt: skip
