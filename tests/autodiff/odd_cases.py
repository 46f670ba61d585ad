"""The table of cases, continued: corners of operators that models outside the usual families use."""

from __future__ import annotations

import numpy as np

from tests.autodiff import numpy_reference as ref
from tests.autodiff.cases import MS, X, Y, index, ints, pool
from tests.autodiff.checker import Case, Drawn, case, positive

F32 = np.float32


def apart(*shape: int) -> Drawn:
    """No element within 0.05 of 0, where a kink or a pole would be."""
    return Drawn(shape, lambda x: np.sign(x) * (np.abs(x) + 0.05))


def wide(*shape: int) -> Drawn:
    return Drawn(shape, lambda x: 2 * x)


def negative(*shape: int) -> Drawn:
    return Drawn(shape, lambda x: -np.abs(x) - 0.5)


def with_zeros(*shape: int) -> Drawn:
    """The first element of each row is 0: a product's gradient is that of the other factors."""
    return Drawn(shape, lambda x: np.where(np.arange(x.shape[-1]) == 0, 0.0, x))


ODD_CONVOLUTIONS: list[Case] = [
    case("Conv", (1, 3, 8), (4, 3, 3), auto_pad="SAME_LOWER", strides=[2], label="1d same lower stride"),
    case("Conv", (2, 4, 9), (6, 2, 3), (6,), group=2, dilations=[2], label="1d groups dilated"),
    case("Conv", (1, 2, 5, 6, 5), (4, 1, 2, 3, 2), group=2, auto_pad="SAME_UPPER", strides=[2, 1, 2], label="3d groups same"),
    case("Conv", (2, 2, 4, 4, 4), (2, 1, 3, 3, 3), group=2, pads=[1] * 6, label="3d depthwise"),
    case("Conv", (1, 8, 5, 5), (8, 1, 3, 3), (8,), group=8, pads=[1] * 4, label="depthwise half block"),
    case("Conv", (1, 20, 6, 5), (20, 1, 3, 2), (20,), group=20, strides=[2, 1], pads=[1, 0, 1, 1], label="depthwise and a rest"),
    case("Conv", (2, 16, 6, 6), (32, 16, 3, 3), (32,), pads=[1] * 4, label="blocked"),
    case("Conv", (2, 16, 7, 6), (16, 16, 3, 2), (16,), strides=[2, 1], pads=[1, 0, 1, 1], label="blocked uneven"),
    case("Conv", (1, 16, 9, 9), (16, 16, 3, 3), dilations=[2, 2], pads=[2] * 4, label="blocked dilated"),
    case("Conv", (1, 16, 7, 7), (16, 16, 3, 3), auto_pad="SAME_LOWER", strides=[2, 2], label="blocked same lower"),
    case("Conv", (2, 5, 6, 6), (4, 5, 1, 1), (4,), strides=[3, 2], pads=[0, 1, 1, 0], label="pointwise strided padded"),
    case("Conv", (2, 6, 4, 4), (6, 3, 1, 1), group=2, strides=[2, 2], label="pointwise groups stride"),
    case("Conv", (2, 3, 1, 9), (4, 3, 1, 3), pads=[0, 1, 0, 1], strides=[1, 2], label="one row"),
    case("Conv", (2, 3, 8, 8), (4, 3, 2, 2), strides=[3, 3], label="stride over kernel"),
    case("Conv", (2, 3, 8, 8), (4, 3, 8, 8), label="whole image"),
    case("ConvTranspose", (1, 3, 4), (3, 2, 4), strides=[3], output_padding=[2], label="1d output padding"),
    case("ConvTranspose", (1, 2, 3, 3, 3), (2, 3, 2, 2, 2), (3,), strides=[2, 2, 2], label="3d"),
    case("ConvTranspose", (1, 3, 4, 4), (3, 2, 3, 3), dilations=[2, 2], pads=[1, 1, 1, 1], label="dilated"),
    case("ConvTranspose", (1, 3, 4, 5), (3, 2, 4, 3), strides=[2, 2], pads=[1, 0, 2, 1], label="uneven pads"),
]  # fmt: skip

ODD_PRODUCTS: list[Case] = [
    case("MatMul", (2, 1, 3, 4), (5, 4, 2), label="broadcast both batches"),
    case("MatMul", (1, 1, 2, 3), (3, 2), label="rank 4 by matrix"), case("MatMul", (2, 3, 1), (1, 4), label="outer"),
    case("MatMul", (3,), (4, 2, 3, 5), label="row by rank 4"), case("MatMul", (4, 2, 5, 3), (3,), label="rank 4 by column"),
    case("MatMul", (1, 5, 3), (4, 3, 2), label="one batch by four"),
    case("Gemm", (2, 3), (3, 4), (), label="scalar bias"), case("Gemm", (2, 3), (3, 4), (2, 4), alpha=0.3, beta=-2.0, label="full bias"),
    case("Einsum", (2, 3, 4), (2, 4, 5), equation="bij,bjk->bik", label="bmm"),
    case("Einsum", (2, 3, 4, 5), (2, 6, 4, 5), equation="bhid,bjid->bhij", label="attention"),
    case("Einsum", (2, 3), (2, 3), (2,), equation="ij,ij,i->j", label="three"),
    case("Einsum", (2, 3, 4), equation="ijk->kji", label="permute"), case("Einsum", (2, 3, 4), equation="...j->...", label="ellipsis sum"),
    case("Einsum", (2, 3, 4), (1, 4), equation="bij,bj->bi", label="broadcast one"),
    case("Einsum", (2, 3), np.full((3, 4), 0.5), equation="ij,jk->ik", label="by a constant"),
    case("Einsum", (5, 2, 3), (3, 4), equation="...ij,jk", label="implicit ellipsis"),
    case("Einsum", (3,), (4,), equation="i,j->ij", label="outer"), case("Einsum", (2, 3), equation="ij->", label="all"),
]  # fmt: skip

ODD_ELEMENTWISE: list[Case] = [
    case("Pow", negative(2, 3), np.array(3.0), label="negative base cube"), case("Pow", negative(2, 3), np.array(2.0), label="negative base square"),
    case("Pow", apart(2, 3), np.array(-1.0), label="inverse"), case("Pow", negative(2, 3), np.array([[2.0, 3.0, 1.0]]), label="negative base, several"),
    case("Pow", X, np.array(2, np.int64), label="integer exponent", reference=lambda x, p: x**p),
    case("Pow", positive(3), positive(2, 1), label="broadcast both"),
    case("PRelu", (2, 3, 4, 5), (3, 1, 1), label="per channel"), case("PRelu", (2, 3, 4), (2, 1, 4), label="uneven"), case("PRelu", X, (), label="scalar"),
    case("Where", np.array([[True], [False]]), (3,), (2, 1), label="broadcast all"), case("Where", np.array(True), X, X, label="scalar condition"),
    case("Min", pool(2, 3), np.array(-0.75), label="constant"), case("Max", (2, 3), (3,), (1,), label="three"),
    case("Mul", X, (1, 1, 3), label="higher rank"), case("Div", (3,), positive(2, 1), label="broadcast both"), case("Sub", (), X, label="scalar less"),
    case("Expand", (3, 1), ints(1, 4), label="ones"), case("Expand", (2, 1, 3), ints(2, 1), label="shorter target"),
    case("Clip", X, np.array(-1e9), np.array(1e9), label="nothing clipped"), case("Sum", X, label="one"), case("Mean", X, (2, 1), label="broadcast"),
    case("Softmax", (2, 3, 4), axis=0, label="first"), case("Softmax", (2, 3, 4, 2), axis=-3, label="negative axis"), case("Softmax", (2, 1), label="one class"),
    case("LogSoftmax", (2, 3, 4), axis=-2, label="middle"), case("Softmax", (2, 3, 4), axis=2, opset=11, label="last axis, opset 11"), case("HardSigmoid", (3, 4), alpha=0.0, label="flat"),
    case("Gelu", (2, 3), approximate="tanh", opset=23, label="opset 23"), case("LeakyRelu", apart(2, 3), alpha=-0.5, label="negative slope"),
    case("Elu", apart(3, 4), alpha=2.0, label="steep"), case("ReduceL2", apart(2, 3), ints(0, 1), label="all axes"),
    case("ReduceMax", pool(2, 3, 4), ints(0, 2), keepdims=0, label="two axes"), case("ReduceMean", Y, noop_with_empty_axes=1, label="noop"),
    case("ReduceLogSumExp", Y, keepdims=0, label="all"), case("ReduceProd", apart(2, 3), keepdims=0, label="signs"), case("ReduceProd", with_zeros(3, 4), ints(1), label="a zero"),
    case("ReduceProd", apart(2, 300), ints(1), label="many factors"),
    case("ReduceProd", with_zeros(2, 3, 4), ints(0, 2), keepdims=0, label="zeros, two axes"), case("ReduceProd", (), label="scalar"), case("ReduceSum", (), label="scalar"),
    case("CumSum", (2, 4), np.array(-1), reverse=1, label="reverse"), case("Pad", X, ints(1, 0, 0, 2), (), label="fill"),
    case("Pad", X, ints(1, -1, 0, 2), (1,), label="fill and crop", reference=lambda x, p, v: np.pad(x[:, 1:], ((1, 0), (0, 2)), constant_values=v.item())),
]  # fmt: skip


def _largest(x: np.ndarray) -> np.ndarray:
    """Of blocks of 2 x 2."""
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 2, 2, w // 2, 2).max((3, 5))


ODD_POOLS: list[Case] = [
    case("AveragePool", (1, 2, 7, 8), kernel_shape=[3, 3], strides=[2, 3], pads=[1, 0, 1, 1], ceil_mode=1, label="ceil pads"),
    case("AveragePool", (1, 2, 5, 5), kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER", label="same upper"),
    case("AveragePool", (1, 2, 5, 5), kernel_shape=[2, 2], auto_pad="SAME_LOWER", label="same lower"),
    case("AveragePool", (1, 2, 4, 4, 4), kernel_shape=[2, 2, 2], strides=[2, 2, 2], label="3d"),
    case("AveragePool", (1, 2, 4, 4, 5), kernel_shape=[3, 2, 3], pads=[1, 0, 1, 1, 0, 1], count_include_pad=1, label="3d count pads"),
    case("AveragePool", (1, 2, 8, 8), kernel_shape=[2, 2], dilations=[2, 2], label="dilated"),
    case("MaxPool", pool(1, 2, 6, 6), kernel_shape=[3, 2], strides=[1, 2], pads=[1, 0, 1, 0], label="uneven"),
    case("MaxPool", pool(1, 2, 5, 5), kernel_shape=[2, 2], strides=[2, 2], auto_pad="SAME_LOWER", label="same lower", reference=lambda x: _largest(np.pad(x, ((0, 0), (0, 0), (1, 0), (1, 0)), constant_values=-9e9))),
    case("MaxPool", pool(2, 3, 8), kernel_shape=[3], strides=[2], ceil_mode=1, pads=[1, 1], label="1d ceil"),
    case("GlobalAveragePool", (2, 3, 7), label="1d"), case("GlobalAveragePool", (2, 3, 2, 3, 2), label="3d"), case("GlobalMaxPool", pool(2, 3, 7), label="1d", reference=lambda x: x.max(2, keepdims=True)),
]  # fmt: skip

S = np.array
ODD_RESIZES: list[Case] = [
    case("Resize", (1, 2, 5), None, S([1, 1, 2], F32), mode="linear", label="1d linear"), case("Resize", (1, 2, 5), None, S([1, 1, 2], F32), label="1d nearest"),
    case("Resize", (1, 1, 3, 3, 3), None, S([1, 1, 2, 2, 2], F32), mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor", label="3d nearest"),
    case("Resize", (1, 2, 4, 4), None, None, ints(1, 2, 7, 5), mode="linear", coordinate_transformation_mode="half_pixel", label="linear sizes"),
    case("Resize", (1, 2, 5, 5), None, None, ints(1, 2, 3, 2), mode="nearest", label="nearest down"),
    case("Resize", (1, 2, 4, 4), None, None, ints(1, 2, 9, 7), mode="nearest", coordinate_transformation_mode="align_corners", nearest_mode="round_prefer_ceil", label="corners"),
    case("Resize", (1, 2, 4, 4), None, None, ints(1, 2, 1, 1), mode="linear", coordinate_transformation_mode="pytorch_half_pixel", label="to one"),
    case("Resize", (1, 2, 4, 5), None, None, ints(1, 2, 6, 8), mode="cubic", cubic_coeff_a=-0.5, label="cubic sizes"),
    case("Resize", (1, 2, 4, 5), None, S([2, 2], F32), axes=[2, 3], mode="linear", label="axes"),
]  # fmt: skip

ODD_NORMS: list[Case] = [
    case("LayerNormalization", (2, 3, 4, 5), (5,), (5,), axis=-1, epsilon=1e-3, label="rank 4"), case("LayerNormalization", (2, 3, 4), (2, 3, 4), axis=0, label="axis 0"),
    case("InstanceNormalization", (1, 2, 3, 3, 2), (2,), (2,), label="3d"), case("RMSNormalization", (2, 3, 4, 5), (3, 4, 5), axis=1, opset=23, label="three axes"),
    case("GroupNormalization", (2, 6, 5), (6,), (6,), num_groups=3, opset=21, label="1d", reference=lambda x, s, b: _groups(x, s, b, 3)),
    case("BatchNormalization", (3, 4, 5), (4,), (4,), (4,), positive(4), epsilon=1e-2, label="1d"),
    case("BatchNormalization", (3, 4, 2, 2, 2), (4,), (4,), (4,), positive(4), label="3d"),
    case("LpNormalization", apart(2, 3, 4), axis=1, p=2, label="middle"), case("MeanVarianceNormalization", (2, 3, 4), axes=[2], label="one axis", reference=lambda x: (x - x.mean(2, keepdims=True)) / (x.std(2, keepdims=True) + 1e-9)),
]  # fmt: skip


def _groups(x: np.ndarray, scale: np.ndarray, bias: np.ndarray, groups: int) -> np.ndarray:
    flat = x.reshape(x.shape[0], groups, -1)
    flat = (flat - flat.mean(2, keepdims=True)) / np.sqrt(flat.var(2, keepdims=True) + 1e-5)
    return flat.reshape(x.shape) * scale[:, None] + bias[:, None]


ODD_INDEXING: list[Case] = [
    case("Gather", (2, 5, 3), index([[1, 4], [1, 0]]), axis=-1 - 1, label="negative axis"), case("Gather", (5, 3), index([[[1], [-1]]]), label="rank 3 indices"),
    case("Gather", (4,), index(2), label="scalar from vector"), case("GatherElements", (3, 4), index([[2, -1, 0, 0]]), axis=0, label="negative"),
    case("GatherND", (2, 3, 4), index([[1], [0], [1]]), label="slices"), case("GatherND", (2, 2, 3), index([[[0], [1]], [[1], [1]]]), batch_dims=2 - 1, label="batch 1 rank 3"),
    case("ScatterND", (4, 3), index([[[0, 1], [2, 2]]]), (1, 2), label="elements"), case("ScatterElements", (3, 4), index([[0, -1, 2, 1]]), (1, 4), axis=0, label="negative"),
    case("Slice", (6, 5), ints(-1, 3), ints(-7, 0), ints(0, 1), ints(-2, -1), label="backwards"), case("Slice", (5,), ints(3), ints(2), label="empty"),
    case("Slice", (2, 3, 9), ints(1), ints(9), ints(2), ints(4), label="long step"),
    case("Tile", (1, 2, 3), ints(2, 1, 3), label="rank 3"), case("Concat", (2, 3), (2, 3), axis=-2, label="negative axis"),
    case("Split", (2, 7), outputs=3, axis=1, num_outputs=3, label="num_outputs"), case("Transpose", (2, 1, 3, 1), perm=[3, 2, 1, 0], label="ones"),
    case("Reshape", (2, 3), ints(-1), label="flat"), case("Flatten", Y, axis=-1, label="negative"), case("Flatten", Y, axis=0, label="all"),
    case("Squeeze", (1, 2, 1), label="all"), case("Unsqueeze", (3,), ints(-1, 0), label="ends"), case("TopK", pool(2, 5), ints(3), outputs=2, largest=0, axis=1, label="smallest"),
    case("Trilu", (2, 3, 4), np.array(-1, np.int64), label="upper -1"),
    case("DepthToSpace", (2, 12, 1, 2), blocksize=2, mode="CRD", label="several"),
]  # fmt: skip

ODD_RECURRENT: list[Case] = [
    case("LSTM", (3, 2, 4), (2, 12, 4), (2, 12, 3), (2, 24), hidden_size=3, direction="bidirectional", outputs=3, skip_outputs=(0,), label="last states only"),
    case("GRU", (3, 1, 2), (2, 9, 2), (2, 9, 3), (2, 18), hidden_size=3, direction="bidirectional", outputs=2, label="both ways, before reset"),
    case("GRU", (3, 2, 2), (1, 9, 2), (1, 9, 3), hidden_size=3, direction="reverse", linear_before_reset=1, label="reverse after"),
    case("RNN", (3, 2, 2), (2, 3, 2), (2, 3, 3), (2, 6), hidden_size=3, direction="bidirectional", outputs=2, label="both ways"),
    case("LSTM", (4, 2, 3), (1, 12, 3), (1, 12, 3), (1, 24), hidden_size=3, outputs=3, unnamed=(0, 1), label="cell only, unnamed"),
    case("LSTM", (4, 2, 3), (2, 12, 3), (2, 12, 3), (2, 24), hidden_size=3, direction="bidirectional", outputs=3, unnamed=(0, 1), label="both cells only, unnamed"),
    case("GRU", (4, 2, 3), (1, 9, 3), (1, 9, 3), (1, 18), hidden_size=3, outputs=2, unnamed=(0,), label="last only, unnamed"),
    case("RNN", (4, 2, 3), (1, 5, 3), (1, 5, 5), (1, 10), hidden_size=5, activations=["Relu"], label="relu", reference=ref.recurrent("RNN", "Relu")),
    case("RNN", (3, 2, 3), (2, 4, 3), (2, 4, 4), (2, 8), hidden_size=4, direction="bidirectional", activations=["Sigmoid", "Relu"], label="sigmoid and relu",
         reference=ref.recurrent("RNN", "Sigmoid", "Relu")),
    case("RNN", (4, 2, 3), (1, 5, 3), (1, 5, 5), (1, 10), hidden_size=5, clip=0.8, label="clip", reference=ref.recurrent("RNN", "Tanh", clip=0.8)),
    case("LSTM", wide(4, 2, 3), (1, 20, 3), (1, 20, 5), (1, 40), hidden_size=5, clip=0.6, label="clip", reference=ref.recurrent("LSTM", "Sigmoid", "Tanh", "Tanh", clip=0.6)),
    case("LSTM", (4, 2, 3), (1, 20, 3), (1, 20, 5), (1, 40), hidden_size=5, activations=["HardSigmoid", "Tanh", "Relu"], label="hard sigmoid",
         reference=ref.recurrent("LSTM", "HardSigmoid", "Tanh", "Relu")),
    case("LSTM", (3, 2, 3), (2, 12, 3), (2, 12, 3), (2, 24), hidden_size=3, direction="bidirectional", label="hard sigmoid, alpha",
         activations=["HardSigmoid", "Tanh", "Tanh", "Sigmoid", "Relu", "Tanh"], activation_alpha=[0.3], activation_beta=[0.4],
         reference=ref.recurrent("LSTM", "HardSigmoid 0.3 0.4", "Tanh", "Tanh", "Sigmoid", "Relu", "Tanh")),
    case("GRU", (4, 2, 3), (1, 15, 3), (1, 15, 5), (1, 30), hidden_size=5, clip=0.7, label="clip", reference=ref.recurrent("GRU", "Sigmoid", "Tanh", clip=0.7)),
    case("GRU", (4, 2, 3), (1, 15, 3), (1, 15, 5), (1, 30), hidden_size=5, activations=["HardSigmoid", "Relu"], linear_before_reset=1, label="hard sigmoid, reset after",
         reference=ref.recurrent("GRU", "HardSigmoid", "Relu", after=True)),
]  # fmt: skip

ODD_MICROSOFT: list[Case] = [
    case("FusedMatMul", (3, 2), (4, 3), domain=MS, transA=1, transB=1, alpha=2.0, label="matrices"), case("FusedMatMul", (2, 1, 3, 4), (5, 4, 2), domain=MS, label="broadcast"),
    case("SkipLayerNormalization", (2, 3, 8), (2, 3, 8), (8,), domain=MS, epsilon=1e-5, label="no bias"),
]  # fmt: skip

REFUSED_CASES: list[tuple[Case, str]] = [
    # what the rule or the rewrite of an operator does not know, and how it says so
    (case("MaxPool", pool(1, 1, 4, 4), kernel_shape=[2, 2], storage_order=1, outputs=2, skip_outputs=(1,)), "storage_order 1 is not"),
    (case("Einsum", (3, 3), equation="ii->i"), "repeats an index"),
    (case("Dropout", X, np.array(0.5), np.array(True), label="no mask"), "mask as second output"),
    (case("LayerNormalization", X, (3,), outputs=2), "its statistics feed the loss"),
    (case("BatchNormalization", (3, 2, 4), (2,), (2,), (2,), positive(2), training_mode=1, outputs=3), "batch statistics feed the loss"),
    (case("Resize", (1, 1, 3, 3), np.zeros(8, F32), S([1, 1, 2, 2], F32), coordinate_transformation_mode="tf_crop_and_resize"), "tf_crop_and_resize is not"),
    (case("Resize", (1, 1, 3, 3), None, None, ints(1, 1, 6, 5), keep_aspect_ratio_policy="not_larger"), "keep_aspect_ratio_policy is not"),
    (case("RNN", (3, 1, 2), (1, 4, 2), (1, 4, 4), hidden_size=4, activations=["Elu"]), "its activation Elu has no rule"),
    (case("LSTM", (3, 1, 2), (1, 8, 2), (1, 8, 2), hidden_size=2, input_forget=1), "the attribute input_forget is not"),
    (case("LSTM", (3, 1, 2), (1, 8, 2), (1, 8, 2), None, None, None, None, (1, 6), hidden_size=2), "peephole weights"),
    (case("GRU", (3, 2, 2), (1, 6, 2), (1, 6, 2), None, np.array([3, 2], np.int32), hidden_size=2), "sequences of different lengths"),
    (case("RNN", (2000, 1, 2), (1, 2, 2), (1, 2, 2), hidden_size=2), "2000 steps are more than"),
    (case("FusedConv", (1, 2, 3, 3), (2, 2, 1, 1), domain=MS, activation="Swish"), "the fused activation Swish is not known"),
    (case("SkipLayerNormalization", (2, 3, 8), (2, 3, 8), (8,), domain=MS, outputs=2), "its statistics are used"),
    (case("Attention", (2, 3, 8), (8, 24), (24,), None, np.zeros((2, 2, 2, 3, 4), F32), domain=MS, num_heads=2), "past states and rotary"),
    (case("MultiHeadAttention", (2, 3, 2, 3, 4), domain=MS, num_heads=2), "packed or already split heads"),
    (case("MultiHeadAttention", (2, 3, 8), (2, 3, 8), (2, 3, 8), None, np.ones(2, np.int32), domain=MS, num_heads=2, label="lengths"), "only a (batch, keys) mask"),
    (case("RotaryEmbedding", (2, 3, 8), ints(0), np.ones((4, 2), F32), np.ones((4, 2), F32), domain=MS, num_heads=2, scale=2.0), "packed batches and a scale"),
]  # fmt: skip

ODD_CASES: list[Case] = [
    *ODD_CONVOLUTIONS, *ODD_PRODUCTS, *ODD_ELEMENTWISE, *ODD_POOLS, *ODD_RESIZES, *ODD_NORMS, *ODD_INDEXING, *ODD_RECURRENT, *ODD_MICROSOFT,
]  # fmt: skip
