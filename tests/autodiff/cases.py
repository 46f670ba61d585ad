"""The table of cases: one line per operator and variant. Shapes are differentiated, arrays are constants."""

from __future__ import annotations

import numpy as np

from tests.autodiff import numpy_reference as ref
from tests.autodiff.checker import Case, Drawn, case, positive, unit

MS = "com.microsoft"


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def index(values: object) -> np.ndarray:
    return np.array(values, np.int64)


def pool(*shape: int) -> Drawn:
    """Distinct, well separated numbers: a maximum that does not change within a step."""
    return Drawn(shape, lambda x: np.argsort(np.argsort(x.reshape(-1))).reshape(x.shape) * 0.1 - 1.0)


MASK = np.array([[True, False, True], [False, False, True]])
X = (2, 3)

ELEMENTWISE: list[Case] = [
    case("Add", X, X),
    case("Add", X, (3,), label="broadcast row"),
    case("Add", (2, 1, 3), (4, 1), label="broadcast both ways"),
    case("Add", (40, 20), (20,), label="broadcast many rows"),
    case("Add", X, (), label="scalar"),
    case("Sub", (3,), X, label="broadcast"),
    case("Mul", X, (2, 1), label="broadcast column"),
    case("Div", X, positive(1, 3)),
    case("Pow", positive(2, 3), np.array(2.0), label="square"),
    case("Pow", positive(2, 3), np.array(3.0), label="cube"),
    case("Pow", positive(2, 3), np.array(0.5), label="root"),
    case("Pow", positive(2, 3), np.array(1.0), label="one"),
    case("Pow", positive(2, 3), positive(3), label="exponent"),
    case("Neg", X), case("Sqrt", positive(2, 3)), case("Reciprocal", positive(2, 3)),
    case("Exp", X), case("Log", positive(2, 3)), case("Abs", X),
    case("Min", X, (3,), X), case("Max", X, (1, 3)), case("Max", X, label="one operand"),
    case("Sum", X, (3,), X), case("Mean", X, X, (3,)),
    case("Where", MASK, X, X), case("Where", MASK, (3,), (), label="broadcast"),
    case("Clip", X, np.array(-0.5), np.array(0.5)),
    case("Clip", X, None, np.array(0.2), label="only max"),
    case("Clip", X, np.array(0.1), None, label="only min"),
    case("Clip", X, Drawn((), lambda x: x * 0 - 0.3), Drawn((), lambda x: x * 0 + 0.3), label="bounds"),
    case("Clip", X, label="attributes", opset=7, min=-0.5, max=0.5),
    case("Sin", X), case("Cos", X), case("Tan", unit(2, 3)), case("Asin", unit(2, 3)), case("Acos", unit(2, 3)),
    case("Atan", X), case("Sinh", X), case("Cosh", X), case("Asinh", X),
    case("Acosh", Drawn((2, 3), lambda x: np.abs(x) + 1.5)), case("Atanh", unit(2, 3)), case("Erf", X, reference=ref.erf),
    case("Mod", X, np.array([0.7]), fmod=1),
    case("Cast", X, to=1, label="to float", reference=lambda x: x),
    case("CastLike", X, np.array([1.0])),
    case("Identity", X),
    case("ZipMap", X, domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2], reference=lambda x: x),
    case("Dropout", X), case("Dropout", X, label="old", opset=7, ratio=0.3),
    case("Dropout", X, np.array(0.0), np.array(True), outputs=2, label="training"),
]  # fmt: skip

ACTIVATIONS: list[Case] = [
    case("Relu", X), case("LeakyRelu", X), case("LeakyRelu", X, alpha=0.3, label="alpha"),
    case("PRelu", (2, 3, 4), (3, 1)), case("PRelu", X, (1,), label="one slope"),
    case("ThresholdedRelu", X, alpha=0.3), case("Elu", X, alpha=0.7), case("Selu", X),
    case("Selu", X, alpha=1.2, gamma=0.8, label="parameters"), case("Celu", X, alpha=0.6, opset=12),
    case("Sigmoid", X), case("HardSigmoid", X), case("HardSigmoid", (4, 5), alpha=0.5, beta=0.4, label="alpha"),
    case("HardSwish", Drawn((4, 5), lambda x: x * 3)),
    case("Swish", X, opset=24), case("Swish", X, opset=24, alpha=1.5, label="alpha"),
    case("Mish", X), case("Softplus", X), case("Softsign", X), case("Shrink", X, lambd=0.3, bias=0.2),
    case("Tanh", X), case("Gelu", X, reference=ref.gelu), case("Gelu", X, approximate="tanh", label="tanh"),
    case("Softmax", (2, 3, 4)), case("Softmax", (2, 3, 4), axis=1, label="axis"),
    case("Softmax", (2, 3, 4), axis=1, opset=11, label="old", reference=ref.softmax_from(1)), case("LogSoftmax", (2, 5)),
    case("LogSoftmax", (2, 3, 4), axis=0, label="axis"), case("LogSoftmax", (2, 3, 4), opset=9, label="old", reference=ref.softmax_from(1, log=True)),
]  # fmt: skip

PRODUCTS: list[Case] = [
    case("Gemm", (2, 3), (3, 4)), case("Gemm", (2, 3), (3, 4), (4,), label="bias"),
    case("Gemm", (3, 2), (4, 3), (2, 1), transA=1, transB=1, alpha=0.5, beta=2.0, label="all"),
    case("Gemm", (2, 3), (4, 3), (1, 4), transB=1, label="transB"),
    case("Gemm", (3, 2), (3, 4), transA=1, label="transA"),
    case("MatMul", (2, 3), (3, 4)), case("MatMul", (2, 5, 3), (3, 4), label="stack by matrix"),
    case("MatMul", (2, 5, 3), (2, 3, 4), label="batched"),
    case("MatMul", (2, 1, 5, 3), (4, 3, 4), label="broadcast"),
    case("MatMul", (5, 3), (2, 3, 4), label="matrix by stack"),
    case("MatMul", (3,), (3,), label="vectors"), case("MatMul", (3,), (3, 4), label="row"),
    case("MatMul", (2, 3), (3,), label="column"), case("MatMul", (2, 5, 3), (3,), label="stack by column"),
    case("MatMul", (3,), (2, 3, 4), label="row by stack"),
    case("Einsum", (2, 3), (3, 4), equation="ij,jk->ik"),
    case("Einsum", (2, 3, 4), (2, 5, 4), equation="bij,bkj->bik", label="batched"),
    case("Einsum", (2, 3), equation="ij->j", label="sum"), case("Einsum", (2, 3), (3,), equation="ij,j", label="implicit"),
    case("Einsum", (2, 3, 4), (4, 5), equation="...i,ij->...j", label="ellipsis"),
    case("Einsum", (2, 3), (4,), equation="ij,k->ik", label="summed alone"),
    case("CumSum", (2, 4), np.array(1)), case("CumSum", (2, 4), np.array(0), exclusive=1, reverse=1, label="flags"),
    case("Trilu", (3, 4)), case("Trilu", (2, 4, 4), np.array(1, np.int64), upper=0, label="lower"),
]  # fmt: skip

CONVOLUTIONS: list[Case] = [
    case("Conv", (2, 3, 6, 5), (4, 3, 3, 3), (4,), pads=[1, 1, 1, 1]),
    case("Conv", (2, 3, 6, 5), (4, 3, 3, 2), label="no pads"),
    case("Conv", (2, 3, 7, 6), (4, 3, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1], label="stride 2"),
    case("Conv", (1, 2, 8, 9), (3, 2, 3, 3), strides=[2, 3], pads=[0, 1, 2, 1], label="uneven"),
    case("Conv", (1, 2, 8, 8), (3, 2, 3, 3), dilations=[2, 2], pads=[2, 2, 2, 2], label="dilated"),
    case("Conv", (1, 2, 9, 9), (3, 2, 3, 3), dilations=[2, 1], strides=[2, 2], label="dilated stride"),
    case("Conv", (2, 4, 5, 5), (6, 2, 3, 3), (6,), group=2, pads=[1, 1, 1, 1], label="groups"),
    case("Conv", (2, 4, 6, 6), (6, 2, 3, 3), group=2, strides=[2, 2], pads=[1, 1, 1, 1], label="groups stride"),
    case("Conv", (2, 3, 6, 6), (3, 1, 3, 3), group=3, pads=[1, 1, 1, 1], label="depthwise"),
    case("Conv", (2, 16, 6, 6), (16, 1, 3, 3), group=16, pads=[1, 1, 1, 1], label="depthwise block"),
    case("Conv", (2, 16, 7, 8), (16, 1, 3, 3), group=16, strides=[2, 2], pads=[1, 1, 1, 1], label="depthwise block stride"),
    case("Conv", (1, 16, 9, 10), (16, 1, 3, 3), group=16, strides=[2, 2], label="depthwise rest"),
    case("Conv", (2, 3, 8, 8), (3, 1, 5, 5), group=3, strides=[2, 2], pads=[2, 2, 2, 2], label="depthwise stride"),
    case("Conv", (2, 3, 6, 6), (6, 1, 3, 3), group=3, pads=[1, 1, 1, 1], label="depthwise multiple"),
    case("Conv", (2, 3, 5, 5), (4, 3, 1, 1), (4,), label="pointwise"),
    case("Conv", (2, 3, 6, 5), (4, 3, 1, 1), strides=[2, 2], label="pointwise stride"),
    case("Conv", (2, 3, 6, 5), (4, 3, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER", label="same upper"),
    case("Conv", (2, 3, 6, 5), (4, 3, 2, 2), auto_pad="SAME_LOWER", label="same lower"),
    case("Conv", (2, 3, 6, 5), (4, 3, 2, 2), auto_pad="VALID", label="valid"),
    case("Conv", (2, 2, 5, 5), (2, 2, 1, 1), pads=[1, 1, 1, 1], label="pads beyond kernel"),
    case("Conv", (2, 3, 9), (4, 3, 3), (4,), strides=[2], pads=[1, 1], label="1d"),
    case("Conv", (1, 16, 9), (16, 1, 3), group=16, pads=[1, 1], label="1d depthwise"),
    case("Conv", (1, 2, 4, 5, 4), (3, 2, 2, 3, 2), (3,), pads=[0, 1, 0, 1, 1, 0], label="3d"),
    case("Conv", (1, 2, 5, 5, 4), (2, 2, 3, 3, 2), strides=[2, 2, 1], label="3d stride"),
    case("ConvTranspose", (2, 3, 4, 4), (3, 2, 3, 3), (2,)),
    case("ConvTranspose", (2, 3, 4, 4), (3, 2, 2, 2), (2,), strides=[2, 2], label="stride"),
    case("ConvTranspose", (1, 3, 4, 4), (3, 2, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1], label="padding"),
    case("ConvTranspose", (1, 4, 4, 4), (4, 3, 3, 3), group=2, pads=[1, 1, 1, 1], label="groups", reference=ref.conv_transpose(1, 1, 1, 2)),
    case("ConvTranspose", (1, 3, 4, 4), (3, 1, 2, 2), group=3, strides=[2, 2], label="depthwise"),
    case("ConvTranspose", (1, 3, 4, 4), (3, 2, 3, 3), strides=[2, 2], output_shape=[8, 8], label="output shape", reference=ref.conv_transpose(2, 1, 0, 1)),
    case("ConvTranspose", (1, 3, 4, 4), (3, 2, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER", label="same upper"),
    case("ConvTranspose", (1, 2, 5), (2, 3, 3), (3,), strides=[2], dilations=[2], label="1d dilated"),
]  # fmt: skip

NORMS: list[Case] = [
    case("BatchNormalization", (2, 3, 4, 4), (3,), (3,), (3,), positive(3)),
    case("BatchNormalization", (4, 3), (3,), (3,), (3,), positive(3), opset=9, label="old, rank 2", reference=ref.batch_norm),
    case("BatchNormalization", (4, 3, 5, 2), (3,), (3,), np.zeros(3, np.float32), np.ones(3, np.float32), training_mode=1,
         outputs=3, skip_outputs=(1, 2), label="training"),
    case("LayerNormalization", (2, 3, 8), (8,), (8,)), case("LayerNormalization", (2, 8), (8,), label="no bias"),
    case("LayerNormalization", (2, 3, 4), (3, 4), (3, 4), axis=1, label="two axes"),
    case("LayerNormalization", (2, 3, 8), (1,), (8,), label="scalar scale"),
    case("RMSNormalization", (2, 3, 8), (8,), opset=23), case("RMSNormalization", (2, 3, 4), (3, 4), opset=23, axis=1, label="axis"),
    case("SimplifiedLayerNormalization", (2, 3, 8), (8,), axis=-1),
    case("InstanceNormalization", (2, 3, 4, 4), (3,), (3,)), case("InstanceNormalization", (2, 3, 9), (3,), (3,), label="1d"),
    case("GroupNormalization", (2, 4, 3, 3), (4,), (4,), num_groups=2, opset=21, reference=ref.group_norm(2)),
    case("GroupNormalization", (2, 4, 3, 3), (2,), (2,), num_groups=2, opset=18, label="per group", reference=ref.group_norm(2)),
    case("LpNormalization", (3, 4)), case("LpNormalization", (3, 4), p=1, axis=0, label="p 1", reference=lambda x: x / np.abs(x).sum(0, keepdims=True)),
    case("MeanVarianceNormalization", (2, 3, 4, 4), label="by its definition", reference=ref.mean_variance),
]  # fmt: skip

POOLS: list[Case] = [
    case("MaxPool", pool(2, 3, 6, 6), kernel_shape=[2, 2], strides=[2, 2]),
    case("MaxPool", pool(2, 3, 7, 7), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], label="overlap"),
    case("MaxPool", pool(1, 2, 6, 6), kernel_shape=[3, 3], pads=[1, 1, 1, 1], label="stride 1"),
    case("MaxPool", pool(1, 2, 7, 7), kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1, label="ceil"),
    case("MaxPool", pool(1, 2, 7, 7), kernel_shape=[2, 2], dilations=[2, 2], label="dilated"),
    case("MaxPool", pool(1, 2, 9), kernel_shape=[3], strides=[2], label="1d"),
    case("MaxPool", pool(1, 2, 4, 4, 4), kernel_shape=[2, 2, 2], strides=[2, 2, 2], label="3d"),
    case("MaxPool", pool(1, 2, 7, 7), kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER", label="same"),
    case("AveragePool", (2, 3, 6, 6), kernel_shape=[2, 2], strides=[2, 2]),
    case("AveragePool", (2, 3, 7, 7), kernel_shape=[2, 2], strides=[2, 2], label="rest"),
    case("AveragePool", (1, 2, 7, 6), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], label="overlap"),
    case("AveragePool", (1, 2, 6, 6), kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1, label="count pads"),
    case("AveragePool", (1, 2, 7, 7), kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, label="ceil"),
    case("AveragePool", (1, 2, 9), kernel_shape=[3], label="1d"),
    case("GlobalAveragePool", (2, 3, 4, 5)), case("GlobalMaxPool", pool(2, 3, 4, 5)),
]  # fmt: skip

S = np.array
RESIZES: list[Case] = [
    case("Resize", (1, 2, 3, 4), None, S([1, 1, 2, 2], np.float32), mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    case("Resize", (1, 2, 3, 4), None, S([1, 1, 2, 3], np.float32), mode="nearest", label="half pixel"),
    case("Resize", (1, 2, 4, 4), None, None, ints(1, 2, 6, 3), mode="nearest", nearest_mode="ceil", label="nearest sizes"),
    case("Resize", (1, 2, 3, 4), None, S([1, 1, 2, 2], np.float32), mode="linear", label="linear"),
    case("Resize", (1, 2, 3, 4), None, None, ints(1, 2, 5, 9), mode="linear", coordinate_transformation_mode="align_corners", label="corners"),
    case("Resize", (1, 2, 3, 4), None, S([1, 1, 1.7, 2.3], np.float32), mode="linear", coordinate_transformation_mode="asymmetric", label="fraction"),
    case("Resize", (1, 2, 4, 5), None, S([1, 1, 2, 2], np.float32), mode="cubic", label="cubic"),
    case("Resize", (1, 2, 6, 8), None, S([1, 1, 0.5, 0.5], np.float32), mode="linear", coordinate_transformation_mode="pytorch_half_pixel", label="down"),
    case("Resize", (1, 2, 3, 4), S([1, 1, 2, 2], np.float32), opset=10, label="opset 10", reference=ref.upsample_nearest),
    case("Upsample", (1, 2, 3, 4), S([1, 1, 2, 2], np.float32), opset=9, mode="nearest"),
    case("Upsample", (1, 2, 3, 4), S([1, 1, 2, 2], np.float32), opset=9, mode="linear", label="linear", reference=ref.upsample_linear),
    case("Pad", (2, 3, 4), ints(0, 1, 2, 1, 0, 1)), case("Pad", (2, 3, 4), ints(0, -1, 1, 0, 0, -2), label="crop", reference=lambda x, _: np.pad(x[:, 1:, :2], ((0, 0), (0, 0), (1, 0)))),
    case("Pad", (2, 5), ints(2, 1), None, ints(1), mode="reflect", label="reflect axes"),
    case("Pad", (2, 4), ints(0, 2, 0, 1), mode="edge", label="edge"), case("Pad", (2, 3), opset=7, pads=[0, 1, 1, 0], label="attributes"),
    case("Pad", (2, 4), ints(0, 2, 0, 1), mode="wrap", label="wrap"),
]  # fmt: skip

Y = (2, 3, 4)
REDUCTIONS: list[Case] = [
    case("ReduceSum", Y), case("ReduceSum", Y, ints(1), keepdims=0, label="axis"), case("ReduceSum", Y, ints(0, -1), label="axes"),
    case("ReduceSum", Y, opset=11, axes=[1], keepdims=0, label="attributes"), case("ReduceSum", Y, noop_with_empty_axes=1, label="noop"),
    case("ReduceMean", Y, ints(1, 2), keepdims=0), case("ReduceMean", Y, opset=13, axes=[-1], label="attributes"),
    case("ReduceMax", pool(2, 3, 4), ints(1)), case("ReduceMin", pool(2, 3, 4), ints(2), keepdims=0),
    case("ReduceProd", positive(2, 3), ints(1)), case("ReduceL1", Y, ints(1)), case("ReduceL2", Y, ints(2), keepdims=0),
    case("ReduceLogSum", positive(2, 3), ints(1)), case("ReduceLogSumExp", Y, ints(1)), case("ReduceSumSquare", Y, ints(0, 2), keepdims=0),
]  # fmt: skip

SHAPING: list[Case] = [
    case("Reshape", Y, ints(4, -1)), case("Reshape", Y, ints(0, 12), label="zero"), case("Flatten", Y, axis=2),
    case("Squeeze", (2, 1, 3), ints(1)), case("Squeeze", (2, 1, 3), opset=11, label="all"), case("Unsqueeze", X, ints(0, 2)),
    case("Unsqueeze", X, opset=11, axes=[1], label="attributes"),
    case("Transpose", Y), case("Transpose", Y, perm=[1, 2, 0], label="perm"), case("Expand", (3, 1), ints(2, 3, 4)),
    case("Tile", X, ints(2, 3)), case("Concat", X, (2, 2), X, axis=1), case("Concat", X, axis=0, label="one"),
    case("Split", (2, 5), ints(2, 3), outputs=2, axis=1), case("Split", (2, 5), ints(2, 3), outputs=2, axis=1, skip_outputs=(0,), label="one used"),
    case("Split", (2, 6), outputs=3, axis=1, opset=11, label="equal"), case("Split", (2, 5), opset=11, outputs=2, axis=1, split=[2, 3], label="attributes"),
    case("Slice", (4, 5), ints(1, 0), ints(3, 4)), case("Slice", (4, 5), ints(0), ints(5), ints(1), ints(2), label="step"),
    case("Slice", (7, 5, 3), ints(1, 4), ints(7, -6), ints(0, 1), ints(3, -2), label="steps"),
    case("Slice", (4, 5), ints(-1), ints(-(1 << 62)), ints(0), ints(-1), label="reverse"),
    case("Slice", (4, 5), opset=9, starts=[1], ends=[1000], axes=[-1], label="attributes"),
    case("DepthToSpace", (1, 8, 2, 3), blocksize=2), case("DepthToSpace", (1, 8, 2, 3), blocksize=2, mode="CRD", label="CRD"),
    case("SpaceToDepth", (1, 2, 4, 6), blocksize=2),
    case("ReverseSequence", (4, 3, 2), ints(2, 4, 1), time_axis=0, batch_axis=1),
]  # fmt: skip

INDEXING: list[Case] = [
    case("Gather", (5, 3), index([[0, 2], [2, -1]])), case("Gather", (2, 5, 3), index([4, 4, 0]), axis=1, label="axis"),
    case("Gather", (2, 5, 3), index(-2), axis=1, label="one"), case("Gather", (2, 5), index([1]), axis=1, label="one kept"),
    case("GatherElements", (3, 4), index([[0, 1], [1, 1], [2, 3]]), axis=1),
    case("GatherND", (3, 4), index([[0, 1], [2, 2], [0, 1]])), case("GatherND", (2, 3, 4), index([[1], [2]]), batch_dims=1, label="batch"),
    case("ScatterND", (5, 2), index([[1], [3]]), (2, 2)), case("ScatterND", (5, 2), index([[1], [1]]), (2, 2), reduction="add", label="add"),
    case("ScatterElements", (3, 4), index([[1, 0], [3, 2]]), (2, 2), axis=1),
    case("ScatterElements", (3, 4), index([[1, 1]]), (1, 2), axis=1, reduction="add", label="add"),
    case("Scatter", (3, 4), index([[1, 0], [0, 2]]), (2, 2), axis=0, opset=9, reference=ref.scatter_rows),
    case("TopK", pool(3, 5), ints(2), outputs=2),
    case("TopK", pool(3, 5), outputs=2, opset=7, k=2, axis=0, label="attributes"),
]  # fmt: skip

LENGTHS = (np.array([3, 3], np.int32), np.array(4, np.int32))  # the last index of each sequence, and the longest length

MICROSOFT: list[Case] = [
    case("Gelu", X, domain=MS, label="fused"), case("BiasGelu", (2, 5), (5,), domain=MS), case("FastGelu", (2, 5), (5,), domain=MS),
    case("FastGelu", X, domain=MS, label="no bias"), case("QuickGelu", X, domain=MS),
    case("FusedMatMul", (2, 4, 3), (2, 5, 4), domain=MS, transA=1, transB=1, alpha=0.5),
    case("FusedMatMul", (2, 3, 4), (5, 4), domain=MS, transB=1, label="matrix"),
    case("FusedMatMul", (3, 2, 4), (4, 2, 5), domain=MS, transBatchA=1, transBatchB=1, alpha=0.5, label="batch"),
    case("FusedMatMul", (4, 2, 3), (2, 5, 4), domain=MS, transBatchA=1, transA=1, transB=1, label="batch and matrix"),
    case("FusedGemm", (3, 4), (5, 4), (5,), domain=MS, transB=1, activation="LeakyRelu", activation_alpha=0.2),
    case("FusedConv", (2, 3, 4, 4), (5, 3, 1, 1), (5,), (2, 5, 4, 4), domain=MS, activation="Relu", kernel_shape=[1, 1]),
    case("FusedConv", (2, 3, 4, 4), (5, 3, 1, 1), domain=MS, activation="Clip", activation_params=[-0.5, 0.5], label="clip"),
    case("FusedConv", (2, 3, 4, 4), (5, 3, 1, 1), domain=MS, activation="HardSigmoid", activation_params=[0.3, 0.5], label="hard"),
    case("SkipLayerNormalization", (2, 3, 8), (2, 3, 8), (8,), (8,), (8,), domain=MS, epsilon=1e-5),
    case("SkipSimplifiedLayerNormalization", (2, 3, 8), (2, 3, 8), (8,), domain=MS, epsilon=1e-5),
    case("EmbedLayerNormalization", index([[1, 0, 3]]).astype(np.int32), index([[0, 1, 1]]).astype(np.int32), (4, 8), (3, 8), (2, 8),
         (8,), (8,), domain=MS, epsilon=1e-5, outputs=2, skip_outputs=(1,)),
    case("Attention", (2, 3, 8), (8, 24), (24,), index([[1, 1, 1], [1, 1, 0]]).astype(np.int32), domain=MS, num_heads=2),
    case("Attention", (1, 3, 8), (8, 24), (24,), domain=MS, num_heads=2, unidirectional=1, label="causal"),
    case("MultiHeadAttention", (1, 3, 8), (1, 5, 8), (1, 5, 8), (24,), domain=MS, num_heads=2),
    case("RotaryEmbedding", (2, 3, 4, 8), index([[0, 1, 2, 3], [1, 2, 3, 4]]), (5, 4), (5, 4), domain=MS),
    case("RotaryEmbedding", (2, 4, 24), index([2]), (7, 4), (7, 4), domain=MS, interleaved=1, label="interleaved, offset"),
    case("RotaryEmbedding", (2, 4, 24), index([[0, 1, 2, 3], [3, 2, 1, 0]]), (5, 2), (5, 2), domain=MS, num_heads=3, rotary_embedding_dim=4, label="part of a head"),
    case("GroupQueryAttention", (2, 4, 32), (2, 4, 16), (2, 4, 16), None, None, *LENGTHS, domain=MS, num_heads=4, kv_num_heads=2, outputs=3),
    case("GroupQueryAttention", (2, 4, 64), None, None, None, None, *LENGTHS, (6, 8), (6, 8), domain=MS, num_heads=2, kv_num_heads=1, do_rotary=1, outputs=3,
         label="packed, rotary"),
    case("GroupQueryAttention", (2, 4, 32), (2, 4, 8), (2, 4, 8), np.zeros((2, 1, 0, 8)), np.zeros((2, 1, 0, 8)), *LENGTHS, domain=MS, num_heads=4, kv_num_heads=1,
         outputs=3, scale=0.3, softcap=1.5, local_window_size=2, label="empty past, window, cap"),
    case("GroupQueryAttention", (2, 4, 32), (2, 4, 32), (2, 4, 32), None, None, *LENGTHS, (6, 8), (6, 8), index([[1, 2, 3, 4], [0, 1, 2, 3]]), (1, 2, 4, 4),
         domain=MS, num_heads=2, kv_num_heads=2, do_rotary=1, rotary_interleaved=1, outputs=3, label="positions, bias"),
]  # fmt: skip

ATTENTION: list[Case] = [
    case("RotaryEmbedding", (2, 3, 4, 8), (5, 4), (5, 4), index([[0, 1, 2, 3], [1, 2, 3, 4]]), opset=23, label="opset 23"),
    case("RotaryEmbedding", (2, 4, 24), (2, 4, 4), (2, 4, 4), opset=23, num_heads=3, interleaved=1, label="opset 23, no positions"),
    case("Attention", (2, 4, 4, 8), (2, 2, 5, 8), (2, 2, 5, 8), opset=23, is_causal=1, softcap=2.0, label="opset 23, causal"),
    case("Attention", (2, 4, 8), (2, 4, 8), (2, 4, 8), None, (2, 2, 3, 4), (2, 2, 3, 4), opset=23, q_num_heads=2, kv_num_heads=2, outputs=3,
         label="opset 23, a past and no mask"),
    case("Attention", (2, 4, 24), (2, 5, 12), (2, 5, 12), (2, 1, 4, 5), opset=23, q_num_heads=4, kv_num_heads=2, scale=0.3, label="opset 23, grouped"),
]  # fmt: skip

G = Drawn((2, 3, 4, 2), lambda x: x * 0.9)  # some places lie outside
SAMPLING: list[Case] = [
    *(case("GridSample", (2, 3, 4, 5), G, opset=22, mode=mode, padding_mode=padding, align_corners=aligned, label=f"{mode} {padding} {aligned}")
      for mode in ("linear", "cubic") for padding in ("zeros", "border", "reflection") for aligned in (0, 1)),
    *(case("GridSample", (2, 3, 4, 5), Drawn(G.shape, G.map, fixed=True), opset=22, mode="nearest", padding_mode=padding, label=f"nearest {padding}")
      for padding in ("zeros", "border", "reflection")),
    case("GridSample", (1, 2, 3, 4, 3), Drawn((1, 2, 2, 3, 3), lambda x: x * 0.7), opset=22, label="3d"),
    case("GridSample", (2, 1, 4, 5), G, opset=16, mode="bilinear", label="opset 16"),
    case("GridSample", (1, 2, 1, 5), Drawn((1, 2, 3, 2), lambda x: x), opset=22, padding_mode="reflection", label="one row"),
]  # fmt: skip

RECURRENT: list[Case] = [
    case("LSTM", (4, 2, 3), (1, 20, 3), (1, 20, 5), hidden_size=5, outputs=3),
    case("LSTM", (4, 2, 3), (2, 20, 3), (2, 20, 5), (2, 40), None, (2, 2, 5), (2, 2, 5), hidden_size=5, direction="bidirectional", outputs=3, label="all"),
    case("LSTM", (3, 2, 3), (1, 20, 3), (1, 20, 5), (1, 40), hidden_size=5, direction="reverse", outputs=1, label="reverse"),
    case("LSTM", (1, 2, 3), (1, 20, 3), (1, 20, 5), hidden_size=5, outputs=3, skip_outputs=(0, 1), label="one step, cell only"),
    case("GRU", (4, 2, 3), (1, 15, 3), (1, 15, 5), (1, 30), None, (1, 2, 5), hidden_size=5, outputs=2),
    case("GRU", (4, 2, 3), (1, 15, 3), (1, 15, 5), (1, 30), None, (1, 2, 5), hidden_size=5, linear_before_reset=1, outputs=2, label="reset after"),
    case("GRU", (4, 2, 3), (2, 15, 3), (2, 15, 5), (2, 30), hidden_size=5, linear_before_reset=1, direction="bidirectional", label="both ways"),
    case("RNN", (4, 2, 3), (1, 5, 3), (1, 5, 5), (1, 10), None, (1, 2, 5), hidden_size=5, outputs=2),
]  # fmt: skip

CASES: list[Case] = [
    *RECURRENT, *ELEMENTWISE, *ACTIVATIONS, *PRODUCTS, *CONVOLUTIONS, *NORMS, *POOLS, *RESIZES, *REDUCTIONS, *SHAPING, *INDEXING, *MICROSOFT, *ATTENTION, *SAMPLING,
]  # fmt: skip
