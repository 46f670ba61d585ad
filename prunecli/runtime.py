"""The only importer of onnxruntime: sessions whose errors are ours and whose logging is silent."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from prunecli.errors import OutOfMemoryError, PruneError, short_of_memory
from prunecli.inputs import InputSpec, index_limits, random_inputs
from prunecli.lanes import in_order

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    Source = str | Path | bytes | onnx.ModelProto | ir.Model

__all__ = [
    "Execution",
    "InputSpec",
    "Session",
    "TimedOutError",
    "channel_block",
    "index_limits",
    "providers",
    "random_inputs",
    "saturates",
]

Feed = Mapping[str, Any]
Mode = Literal["fast", "float weights", "plain", "low memory", "training"]
"""How a session is opened; see `Session.open`."""

_FATAL_ONLY = 4
_MAX_CAUSE = 300
_DTYPES = {
    "float": "float32", "double": "float64", "float16": "float16", "bfloat16": "bfloat16", "string": "str",
    "float8e4m3fn": "float8_e4m3fn", "float8e5m2": "float8_e5m2", "float8e4m3fnuz": "float8_e4m3fnuz",
    "float8e5m2fnuz": "float8_e5m2fnuz",
}  # fmt: skip
# what numpy has no type of its own for: ONNX element type, and the unsigned integer of equal width
_FOREIGN = {
    "bfloat16": (16, "uint16"), "float8_e4m3fn": (17, "uint8"), "float8_e4m3fnuz": (18, "uint8"),
    "float8_e5m2": (19, "uint8"), "float8_e5m2fnuz": (20, "uint8"),
}  # fmt: skip


MOST_LANES = 4
"""Runs that go on side by side, at most: each has values of its own in memory."""
RUN_LIMIT = 120.0
"""Seconds that one run may take, unless the environment variable `PRUNE_RUN_TIMEOUT` has another number."""


def lanes_of(threads: int) -> int:
    """How many calls share so many threads."""
    return min(max(threads, 1), MOST_LANES)


class TimedOutError(PruneError):
    """A run took longer than the limit and was stopped: a loop that never ends, or too much work."""


@dataclass(frozen=True)
class PreparedRun:
    """`run` runs a model on one feed with the least overhead, and returns raw results. `again` opens the model anew,
    which lies elsewhere in memory then, and `seconds` is what opening took; None: it cannot be opened anew."""

    run: Callable[[], Any]
    again: Callable[[], PreparedRun] | None = None
    seconds: float = 0.0


class Session:
    """An onnxruntime session. Make one with `Session.open`."""

    def __init__(self, source: str | bytes, label: str, start: Callable[[str | bytes], Any], lanes: int = 1) -> None:
        begin = time.perf_counter()
        self._lanes = lanes
        self._raw = raw = _started(source, start)
        self._seconds = time.perf_counter() - begin
        self._again = functools.partial(Session, source, label, start)
        self._source = source
        self._label = label
        self.inputs: list[InputSpec] = [_spec(arg) for arg in raw.get_inputs()]
        self.outputs: list[InputSpec] = [_spec(arg) for arg in raw.get_outputs()]
        self._overridable = {arg.name for arg in raw.get_overridable_initializers()}
        self._foreign = any(s.dtype in _FOREIGN for s in (*self.inputs, *self.outputs))

    @classmethod
    def open(
        cls,
        model: Source,
        *,
        provider: str = "cpu",
        threads: int = 0,
        mode: Mode = "fast",
        outputs: Sequence[str] | Literal["all"] | None = None,
        runs: int = 1,
        writes: Mapping[Literal["trace", "graph"], Path] = MappingProxyType({}),
    ) -> Session:
        """Opens a model file, or a model in memory: as an IR, as a proto, or as the bytes of one.

        A file may have its data anywhere that `DataFolder` allows. What is in memory may refer to data by absolute
        paths, as everything made from a loaded model does; bytes hold everything.

        Args:
            provider: an execution provider, in full or short ("cpu", "cuda").
            threads: intra-operator threads; 0 lets onnxruntime choose.
            mode: "fast" runs onnxruntime's graph optimisations, "plain" does not. "float weights": fast, but weights in
                floating point between quantised activations are not rounded, as onnxruntime otherwise does. "low
                memory": plain, without weight pre-packing and memory arena, for models of gigabytes. "training":
                fast, without memory pattern: the many values that a backward pass keeps alive take half the space.
            outputs: values to return besides the model's own outputs; "all" means every node's outputs.
            runs: how many runs `run_each` will be asked for: on the CPU it shares the threads among them.
            writes: files that onnxruntime writes: `trace`, when operators began and ended, by the name of what
                `end_profile` writes; `graph`, the model as onnxruntime will run it.

        Raises:
            PruneError: onnxruntime cannot open it; the message holds its cause in one line. In memory,
                2 GB is the limit.
        """
        ort = _onnxruntime()
        label = str(model) if isinstance(model, str | Path) else "the model"
        source = _source(model, outputs)
        if _may_have_noise(model):
            source = _with_fixed_noise(source)
        chosen = _provider_list(ort, provider)
        lanes = min(lanes_of(threads), max(runs, 1)) if len(chosen) == 1 else 1
        options = _options(ort, threads // lanes, mode)
        if "trace" in writes:
            options.enable_profiling, options.profile_file_prefix = True, str(writes["trace"])
        if "graph" in writes:
            options.optimized_model_filepath = str(writes["graph"])
        with _translated(f"onnxruntime cannot open {label}", _OPEN_HINT):
            start = functools.partial(
                ort.InferenceSession, sess_options=options, providers=chosen,
                disabled_optimizers=["WeightBiasQuantization"] if mode == "float weights" else None,
            )  # fmt: skip
            return cls(source, label, start, lanes)

    @property
    def provider(self) -> str:
        """The execution provider that runs it, e.g. CPUExecutionProvider."""
        return str(self._raw.get_providers()[0])

    def run(self, feed: Feed, outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """Runs once. Returns the named outputs (default: all), as arrays; lists for sequences, None for an
        absent optional. Maps of numbers, or one per sample (ZipMap), are arrays of their values.

        Raises:
            PruneError: an input is missing or unknown, or onnxruntime refuses or fails.
            TimedOutError: it takes longer than the limit.
        """
        self._check_names(feed)
        names = [s.name for s in self.outputs] if outputs is None else list(outputs)
        with self._limited() as limits:
            values = (
                self._run_foreign(names, feed, limits) if self._foreign else self._raw.run(names, dict(feed), limits)
            )
        return {name: _without_maps(value) for name, value in zip(names, values, strict=True)}

    def run_each(self, feeds: Iterable[Feed], outputs: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """As `run`, on one feed after the other; results come in the order of the feeds. Some runs go on side by side:
        one thread each computes more than all threads together in one run, where most operators are small."""
        return in_order(lambda feed: self.run(feed, outputs), feeds, self._lanes)

    def end_profile(self) -> Path:
        """Stops timing operators and writes what was measured: a JSON list of trace events, microseconds."""
        return Path(self._raw.end_profiling())

    def prepared(self, feed: Feed) -> PreparedRun:
        """The model on that feed, to be timed."""
        self.run(feed)  # names and types are checked here, once
        if self._foreign:
            values = {name: _to_ort(array) for name, array in feed.items()}
            run = functools.partial(self._raw.run_with_ort_values, None, values)
        else:
            run = functools.partial(self._raw.run, None, dict(feed))
        return PreparedRun(run, lambda: self._again().prepared(feed), self._seconds)

    def bind(self, feed: Feed, results: Mapping[str, Any]) -> Callable[[], None]:
        """A function that runs on these very arrays: contiguous numpy memory, read and written in place
        at each call without copies. Shapes and dtypes must be the session's."""
        binding = self._raw.io_binding()
        value = _onnxruntime().OrtValue.ortvalue_from_numpy
        kept = {name: value(array) for name, array in (*feed.items(), *results.items())}
        for name in feed:
            binding.bind_ortvalue_input(name, kept[name])
        for name in results:
            binding.bind_ortvalue_output(name, kept[name])

        def call() -> None:
            with self._limited() as limits:
                self._raw.run_with_iobinding(binding, limits)

        call.kept = kept  # type: ignore[attr-defined]  # the binding does not own the memory
        return call

    @functools.cached_property
    def limits(self) -> dict[str, int]:
        """`index_limits` of the model: exclusive bounds of the inputs that index a table."""
        return index_limits(self._source)

    def random_inputs(
        self,
        dims: Mapping[str, int] | None = None,
        seed: int = 0,
        shapes: Mapping[str, Sequence[int]] | None = None,
    ) -> dict[str, Any]:
        """`random_inputs` for this model, integers kept inside its vocabularies."""
        return random_inputs(self.inputs, dims, seed, limits=self.limits, shapes=shapes)

    @contextlib.contextmanager
    def _limited(self) -> Iterator[Any]:
        """Run options that end a run at the limit, and its errors as ours. Runs side by side share the threads, and so
        take longer each."""
        seconds, options = run_limit() * self._lanes, _onnxruntime().RunOptions()
        run = _DEADLINES.begin(options, seconds)
        try:
            with _translated(f"onnxruntime cannot run {self._label}", _RUN_HINT):
                yield options
        except PruneError as error:
            if options.terminate:
                raise TimedOutError(
                    f"a run of {self._label} took longer than {seconds:g} seconds and was stopped",
                    "smaller inputs take less; PRUNE_RUN_TIMEOUT=SECONDS in the environment allows more",
                ) from error
            raise
        finally:
            _DEADLINES.end(run)

    def _check_names(self, feed: Feed) -> None:
        wanted = [s.name for s in self.inputs]
        missing = [n for n in wanted if n not in feed]
        unknown = [n for n in feed if n not in wanted and n not in self._overridable]
        if missing or unknown:
            what = f"the input {missing[0]} is missing" if missing else f"there is no input named {unknown[0]}"
            raise PruneError(f"{what} for {self._label}", f"its inputs are {', '.join(wanted) or 'none'}")

    def _run_foreign(self, names: list[str], feed: Feed, limits: Any) -> list[Any]:
        """As `run`, for element types that numpy lacks: they pass as integers of the same width."""
        values = {name: _to_ort(array) for name, array in feed.items()}
        dtypes = {s.name: s.dtype for s in self.outputs}
        results = self._raw.run_with_ort_values(names, values, limits)
        return [_from_ort(v, dtypes[n]) for n, v in zip(names, results, strict=True)]


def _started(source: str | bytes, start: Callable[[str | bytes], Any]) -> Any:
    """onnxruntime's session."""
    try:
        return start(source)
    except Exception as error:  # it refuses links to data of attributes and of inner graphs, though not of others
        if short_of_memory(error) or isinstance(source, bytes) or (whole := _in_memory(source)) is None:
            raise
        return start(whole)


def _without_maps(value: Any) -> Any:
    """One map as the vector of its values, in its order; a sequence of maps with the same keys as a matrix."""
    import numpy as np

    rows = [value] if isinstance(value, dict) else value if isinstance(value, list) else []
    if not rows or not all(isinstance(row, dict) and row.keys() == rows[0].keys() for row in rows):
        return value
    found = np.array([[row[key] for key in rows[0]] for row in rows])
    if found.ndim != 2 or found.dtype.kind not in "fiU":
        return value
    found = found.astype(np.float32) if found.dtype.kind == "f" else found  # what onnxruntime's maps hold
    return found[0] if isinstance(value, dict) else found


class _Deadlines:
    """Terminates runs that take too long. One thread watches all of them and sleeps until the first is due: a thread
    for each would take longer than the run of a small model."""

    def __init__(self) -> None:
        self._change = threading.Condition()
        self._due: dict[int, tuple[float, Any]] = {}
        self._numbers = itertools.count()
        self._thread: threading.Thread | None = None
        self._wakes = math.inf

    def begin(self, options: Any, seconds: float) -> int:
        """Watch a run that begins now. Returns its number, for `end`."""
        due, number = time.monotonic() + seconds, next(self._numbers)
        with self._change:
            self._due[number] = due, options
            if self._thread is None or not self._thread.is_alive():
                self._wakes = due
                self._thread = threading.Thread(target=self._watch, name="deadlines of runs", daemon=True)
                self._thread.start()
            elif due < self._wakes:
                self._change.notify()
        return number

    def end(self, number: int) -> None:
        """Stop watching a run."""
        with self._change:
            self._due.pop(number, None)

    def _watch(self) -> None:
        """The thread ends at the first deadline at which nothing runs."""
        with self._change:
            while self._due:
                now = time.monotonic()
                for number, (due, options) in list(self._due.items()):
                    if due <= now:
                        options.terminate = True
                        del self._due[number]
                self._wakes = min((due for due, _ in self._due.values()), default=now)
                self._change.wait(self._wakes - now)
            self._thread = None


_DEADLINES = _Deadlines()
if hasattr(os, "register_at_fork"):  # a child has neither the thread nor the runs
    os.register_at_fork(after_in_child=_DEADLINES.__init__)  # type: ignore[misc]


def run_limit() -> float:
    """Seconds that one run may take.

    Raises:
        PruneError: `PRUNE_RUN_TIMEOUT` is no number of seconds.
    """
    text = os.environ.get("PRUNE_RUN_TIMEOUT", "")
    try:
        seconds = float(text) if text else RUN_LIMIT
        if not 0 < seconds <= threading.TIMEOUT_MAX:
            raise ValueError
    except ValueError:
        raise PruneError(f"PRUNE_RUN_TIMEOUT={text} is no number of seconds", "set it to one above 0") from None
    return seconds


def version() -> str:
    """Of onnxruntime."""
    return str(_onnxruntime().__version__)


def providers() -> list[str]:
    """The execution providers of the installed onnxruntime."""
    return list(_onnxruntime().get_available_providers())


PER_CHANNEL_SINCE = 13
"""The opset in which a weight may have a scale per output channel."""


def prepare_to_quantise(model: Path, folder: Path, name: str = "model") -> Path:
    """A copy of a model as onnxruntime's tool asks for it: its basic graph optimisations done (a BatchNormalization is
    part of the convolution before it), shapes inferred, every node named.

    Raises:
        PruneError: the tool refuses the model.
    """
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    out = folder / f"{name}.prepared.onnx"
    with _quantiser("onnxruntime cannot prepare the model for quantisation"):
        quant_pre_process(str(model), str(out), skip_symbolic_shape=True)
        proto = onnx.load(str(out))
        taken = {node.name for node in proto.graph.node}
        for number, node in enumerate(proto.graph.node):
            if not node.name:
                node.name = next(n for n in (f"{node.op_type}_{number}{'_' * k}" for k in range(99)) if n not in taken)
                taken.add(node.name)
        _name_as_before(proto)
        onnx.save(proto, str(out))
    return out


_FUSED = re.compile(r"^(?:Conv\w+?Fusion_(?:W|BN_B|B|Add_B|Mul_B)_)+")


def _name_as_before(model: onnx.ModelProto) -> None:
    """Give weights that were fused with what follows the names of those they were made of, but not their shapes: a bias
    that was added as (1, channels, 1, 1) is part of the convolution as (channels)."""
    from prunecli.model.protos import nodes

    taken = {tensor.name for tensor in model.graph.initializer}
    taken |= {name for node in nodes(model) for name in (*node.input, *node.output)}
    new = {}
    for tensor in model.graph.initializer:
        name = _FUSED.sub("", tensor.name)
        if name not in taken:
            new[tensor.name] = name
            tensor.name = name
            taken.add(name)
    for node in nodes(model) if new else ():
        for place, name in enumerate(node.input):
            node.input[place] = new.get(name, name)
    stored = {tensor.name for tensor in model.graph.initializer}
    described = [value for value in model.graph.value_info if value.name not in stored]
    del model.graph.value_info[:]
    model.graph.value_info.extend(described)


@dataclass(frozen=True)
class QuantisedGraph:
    """What onnxruntime's tool is asked for.

    form: `qdq`: QuantizeLinear and DequantizeLinear around operators; `dynamic`: activations quantised as the model
    runs; `nbits`: MatMulNBits, weights in blocks alone. weights, activations: names of integer types. ranges: least and
    largest value of every activation, for `qdq`. exclude: names of nodes that stay as they are. block: columns that
    share a scale, for `nbits`.
    """

    form: Literal["qdq", "dynamic", "nbits"]
    weights: str
    activations: str = "uint8"
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    exclude: Sequence[str] = ()
    block: int = 32

    def of(self, prepared: Path) -> onnx.ModelProto:
        """The quantised model, by `onnxruntime.quantization`, weights rounded to the nearest.

        Args:
            prepared: as `prepare_to_quantise` has it; for `nbits` any model.
        Raises:
            PruneError: the tool refuses the model.
        """
        make = {"qdq": self._static, "dynamic": self._dynamic, "nbits": self._blocks}[self.form]
        with _quantiser("onnxruntime cannot quantise the model"):
            found: onnx.ModelProto = make(prepared)
            return found

    def _static(self, prepared: Path) -> Any:
        import numpy as np
        from onnxruntime import quantization as tool
        from onnxruntime.quantization.calibrate import TensorsData
        from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

        ends = {name: tuple(np.array(end, np.float32) for end in pair) for name, pair in self.ranges.items()}
        ranges = TensorsData(tool.CalibrationMethod.MinMax, ends)
        model = load_model_with_shape_infer(prepared)
        _flatten_biases(model.graph)
        found = _quantizer_of(_read_elsewhere(model))(
            model, per_channel=True, reduce_range=False,
            weight_qType=_tool_type(self.weights), activation_qType=_tool_type(self.activations), tensors_range=ranges,
            nodes_to_quantize=[], nodes_to_exclude=list(self.exclude), op_types_to_quantize=_operators_to_quantise(),
            extra_options={"QDQKeepRemovableActivations": _has_graphs(model)},
        )  # fmt: skip
        found.quantize_model()
        return found.model.model

    def _dynamic(self, prepared: Path) -> Any:
        import onnx
        from onnxruntime import quantization as tool

        out = prepared.with_name(f"{prepared.stem}.dynamic.onnx")
        tool.quantize_dynamic(
            str(prepared), str(out), list(DYNAMIC), per_channel=True, weight_type=_tool_type(self.weights),
            nodes_to_exclude=list(self.exclude),
        )  # fmt: skip
        return onnx.load(str(out))

    def _blocks(self, prepared: Path) -> Any:
        import onnx
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        found = MatMulNBitsQuantizer(
            onnx.load(str(prepared)), bits=4, block_size=self.block, is_symmetric=False,
            nodes_to_exclude=list(self.exclude),
        )  # fmt: skip
        found.process()
        return found.model.model


DYNAMIC = ("MatMul", "Gemm", "LSTM", "Attention", "Gather")
"""Operators that are quantised dynamically; of convolutions so quantised onnxruntime is slower than in float."""


def _operators_to_quantise() -> list[str]:
    """All that `quantize_static` takes by default, in a fixed order."""
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    return sorted({*QDQRegistry, *QLinearOpsRegistry})


def _has_graphs(model: onnx.ModelProto) -> bool:
    """Whether nodes hold graphs, which may read an activation that the tool would leave to a rounding behind it."""
    return any(attribute.type in (5, 10) for node in model.graph.node for attribute in node.attribute)


def _quantizer_of(elsewhere: Collection[str]) -> Any:
    """The tool's class, which takes for what a Relu or Clip alone reads the range behind it: not so of values that are
    read `elsewhere`, which would be clipped."""
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    class RangeKeepingQuantizer(QDQQuantizer):  # type: ignore[misc]  # it has no types
        def adjust_tensor_ranges(self) -> None:
            kept = {name: self.tensors_range[name] for name in elsewhere if name in self.tensors_range}
            super().adjust_tensor_ranges()
            for node in self.model.nodes():
                if node.op_type in ("Clip", "Relu") and node.input[0] in kept:
                    self.tensors_range[node.input[0]] = kept[node.input[0]]

    return RangeKeepingQuantizer


def _read_elsewhere(model: onnx.ModelProto) -> set[str]:
    """Names of values that are outputs of the model, or read by graphs that nodes hold."""
    from prunecli.model.protos import graphs

    inner = (node for graph in graphs(model) if graph is not model.graph for node in graph.node)
    return {value.name for value in model.graph.output} | {name for node in inner for name in node.input}


def _flatten_biases(graph: onnx.GraphProto) -> None:
    """Give biases (1, N) of Gemm, as scikit-learn has them, the equal shape (N,): the tool takes no other."""
    readers: dict[str, set[tuple[str, int]]] = {}
    for node in graph.node:
        for index, name in enumerate(node.input):
            readers.setdefault(name, set()).add((node.op_type, index))
    for tensor in graph.initializer:
        if readers.get(tensor.name) == {("Gemm", 2)} and len(tensor.dims) == 2 and tensor.dims[0] == 1:
            del tensor.dims[0]


def _tool_type(name: str) -> Any:
    from onnxruntime.quantization import QuantType

    return {"int8": QuantType.QInt8, "uint8": QuantType.QUInt8, "int4": QuantType.QInt4}[name]


@contextlib.contextmanager
def _quantiser(what: str) -> Iterator[None]:
    """onnxruntime's tool kept quiet (it advises on the root logger), and its errors as ours."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with _translated(what, "exclude the node it names with --exclude, or re-export the model"), _silent_stderr():
            yield
    finally:
        logging.disable(disabled)


def quantise(model: Path, feeds: Iterable[Feed], folder: Path, name: str) -> Path:
    """Quantises a model statically to int8 by onnxruntime's own tool, as users deploy it on CPUs: its graph
    optimisations first, then QuantizeLinear and DequantizeLinear around operators, activations uint8 and weights int8,
    per output channel where the opset has that, ranges from the least and the largest value.

    Args:
        feeds: calibration inputs, one run each.
        folder: receives the result, as NAME.onnx, and what is written on the way.

    Raises:
        PruneError: the tool refuses the model, or it does not run.
    """
    import onnx
    from onnxruntime import quantization

    class FeedReader(quantization.CalibrationDataReader):  # type: ignore[misc]  # it has no types
        def __init__(self) -> None:
            self._rest = iter(feeds)

        def get_next(self) -> Feed | None:
            return next(self._rest, None)

    prepared, out = prepare_to_quantise(model, folder, name), folder / f"{name}.onnx"
    with _quantiser(f"onnxruntime cannot quantise {model}"):
        opset = next(o.version for o in onnx.load(prepared).opset_import if o.domain in ("", "ai.onnx"))
        quantization.quantize_static(
            str(prepared), str(out), FeedReader(), quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
            per_channel=opset >= PER_CHANNEL_SINCE,
        )  # fmt: skip
    return out


_OPEN_HINT = "check it with `prune inspect`; it may be damaged or use operators this onnxruntime lacks"
_LARGE_HINT = "2 GB is the limit in memory; magnitude, oneshot and evaluate take larger models"
_RUN_HINT = (
    "check the inputs' shapes and values; --dim and --input-shape set dynamic sizes, --resize 320x320 the images'"
)


@functools.cache
def channel_block() -> int:
    """Channels per block of onnxruntime's convolutions on this CPU: widths in between cost as much as the next
    multiple. 1 where it has no kernels for blocks.

    The kernel is asked: reordering 4 channels yields as many as one block has.
    """
    import numpy as np

    try:
        return int(_answer("ReorderInput", "com.microsoft.nchwc", x=np.zeros((1, 4, 1, 1), np.float32)).shape[1])
    except PruneError:  # the operator exists only where the CPU has the kernels
        return 1


@functools.cache
def saturates() -> bool:
    """Whether onnxruntime's sums of products of uint8 and int8 saturate on this CPU: without VNNI two products are
    added up in 16 bits. A sum of products of uint8 alone, or of int8 alone, does not.

    The kernel is asked: 255 * 127 twice.
    """
    import numpy as np

    x, w = np.full((1, 4), 255, np.uint8), np.full((4, 1), 127, np.int8)
    return int(_answer("MatMulInteger", x=x, w=w).item()) != 4 * 255 * 127


def _answer(op: str, domain: str = "", **inputs: Any) -> Any:
    """What one operator yields for these arrays, its inputs in this order.

    Raises:
        PruneError: onnxruntime has no kernel for it here.
    """
    import onnx_ir as ir

    values = [
        ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(ir.DataType.from_numpy(array.dtype)))
        for name, array in inputs.items()
    ]
    node = ir.node(op, values, domain=domain)
    node.outputs[0].name = "y"
    graph = ir.Graph(values, node.outputs, nodes=[node], opset_imports={domain: 1, "": 18}, name="probe")
    return Session.open(ir.Model(graph, ir_version=8)).run(inputs)["y"]


@functools.cache
def _onnxruntime() -> Any:
    with _silent_stderr():  # some builds write about missing GPUs while being imported
        import onnxruntime
    onnxruntime.set_default_logger_severity(_FATAL_ONLY)
    return onnxruntime


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Sends C-level stderr to nowhere; Python exceptions are not affected."""
    try:
        sys.stderr.flush()
        saved = os.dup(2)
    except (OSError, ValueError, AttributeError):  # no stderr to silence
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


def _options(ort: Any, threads: int, mode: Mode) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    options.intra_op_num_threads = threads
    # idle sessions must not spin: several are open at once, and their threads would slow down each other
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if mode in ("plain", "low memory"):
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if mode == "low memory":
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = mode not in ("low memory", "training")
    return options


def _provider_list(ort: Any, name: str) -> list[str]:
    available = list(ort.get_available_providers())
    short = {p.removesuffix("ExecutionProvider").lower(): p for p in available}
    chosen = short.get(name.lower().removesuffix("executionprovider"))
    if chosen is None:
        raise PruneError(f"the execution provider {name} is not available", f"available: {', '.join(short)}")
    return [chosen] if chosen == "CPUExecutionProvider" else [chosen, "CPUExecutionProvider"]


def _in_memory(path: str) -> bytes | None:
    """A model file and its data in one piece; None if it has no data in other files, or is too large for that."""
    from prunecli.model.external_data import external, read_proto

    try:
        proto = read_proto(Path(path))
        return _whole(proto, ()) if any(True for _ in external(proto)) else None
    except Exception:  # what onnxruntime said of the file itself is what matters
        return None


def _source(model: Source, outputs: Sequence[str] | Literal["all"] | None) -> str | bytes:
    """What onnxruntime is given: a path, or bytes that hold everything, since it resolves no absolute paths."""
    if isinstance(model, str | Path | bytes) and outputs is None:
        return model if isinstance(model, bytes) else str(model)
    import onnx

    from prunecli.model.external_data import read_proto

    with _translated("the model cannot be read", _OPEN_HINT):
        proto = (
            onnx.load_from_string(model) if isinstance(model, bytes)
            else read_proto(Path(model)) if isinstance(model, str | Path) else model
        )  # fmt: skip
    return _whole(proto, outputs or ())


def _may_have_noise(model: Source) -> bool:
    """Whether there may be operators of random numbers. Of a model in memory its nodes tell, which is quicker by far
    than to look through the bytes of its weights."""
    from prunecli.model.noise import has_noise, may_have_noise

    if isinstance(model, str | Path | bytes):
        return may_have_noise(model if isinstance(model, bytes) else Path(model))
    return has_noise(model)


def _with_fixed_noise(source: str | bytes) -> str | bytes:
    """Return the model with fixed random operators, so that every run draws the same numbers, and so
    does every version of a model. A model of more than 2 GB cannot be changed so, and stays random."""
    import onnx

    from prunecli.model.external_data import read_proto
    from prunecli.model.noise import fix_noise

    try:
        proto = onnx.load_from_string(source) if isinstance(source, bytes) else read_proto(Path(source))
        return _whole(proto, ()) if fix_noise(proto) else source
    except Exception:  # what onnxruntime says of the file itself is what matters
        return source


def _whole(model: onnx.ModelProto | ir.Model, outputs: Sequence[str] | Literal["all"]) -> bytes:
    """A model in one piece, its data included, with more outputs."""
    import onnx_ir as ir

    from prunecli.model.external_data import external, pull_in
    from prunecli.model.protos import serialised

    try:
        proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
        for tensor in external(proto):
            pull_in(tensor)
        _add_outputs(proto, outputs)
        return serialised(proto)
    except PruneError:
        raise
    except Exception as error:  # onnx-ir and protobuf raise their own kinds
        if short_of_memory(error):
            raise OutOfMemoryError("the model does not fit into one piece") from error
        raise PruneError(f"the model does not fit into one piece: {_cause(error)}", _LARGE_HINT) from error


def _add_outputs(proto: onnx.ModelProto, wanted: Sequence[str] | Literal["all"]) -> None:
    """More graph outputs, typed by onnxruntime."""
    import onnx

    values = [name for node in proto.graph.node for name in node.output if name]
    names = values if wanted == "all" else list(wanted)
    present = {o.name for o in proto.graph.output}
    unknown = sorted(set(names) - set(values) - present)
    if unknown:
        raise PruneError(f"the model computes no value named {unknown[0]}", "value names are the nodes' output names")
    new = [name for name in dict.fromkeys(names) if name not in present]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in new)


@contextlib.contextmanager
def _translated(what: str, hint: str) -> Iterator[None]:
    try:
        yield
    except PruneError:
        raise
    except Exception as error:  # onnxruntime's exceptions share no base class but Exception
        if short_of_memory(error):
            raise OutOfMemoryError(what) from error
        raise PruneError(f"{what}: {_cause(error)}", hint) from error


def _cause(error: Exception) -> str:
    """onnxruntime's message in one line, without its codes and its own source files."""
    text = " ".join(str(error).split())
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ", "", text)
    text = re.sub(r"/\S*onnxruntime_src/\S+ (?=\S)", "", text)
    return text if len(text) <= _MAX_CAUSE else text[: _MAX_CAUSE - 1] + "…"


def _spec(arg: Any) -> InputSpec:
    match = re.fullmatch(r"tensor\((\w+)\)", arg.type)
    dtype = _DTYPES.get(match[1], match[1]) if match else str(arg.type)
    return InputSpec(str(arg.name), dtype, tuple(_dim(d) for d in arg.shape or ()))


def _dim(dim: Any) -> int | str | None:
    if isinstance(dim, int):
        return dim if dim >= 0 else None
    return None if dim in (None, "", "?") else str(dim)


def _to_ort(array: Any) -> Any:
    import numpy as np

    value = np.ascontiguousarray(array)
    ort = _onnxruntime().OrtValue
    if value.dtype.name not in _FOREIGN:
        return ort.ortvalue_from_numpy(value)
    code, carrier = _FOREIGN[value.dtype.name]
    return ort.ortvalue_from_numpy_with_onnx_type(value.view(carrier), code)


def _from_ort(value: Any, dtype: str) -> Any:
    if dtype not in _FOREIGN:
        return value.numpy()
    import ctypes

    import ml_dtypes
    import numpy as np

    shape = tuple(value.shape())
    carrier = np.dtype(_FOREIGN[dtype][1])
    count = int(np.prod(shape)) * carrier.itemsize
    raw = ctypes.string_at(value.data_ptr(), count) if count else b""  # numpy() refuses bfloat16
    return np.frombuffer(raw, carrier).reshape(shape).view(getattr(ml_dtypes, dtype))


MOST_THREADS = 64
"""Where the machine has fewer cores: onnxruntime crashes when the system has no more threads to give."""


def check_parallel(option: str, count: int | None) -> None:
    """Raises PruneError if this machine cannot have so many threads or processes."""
    most = max(MOST_THREADS, os.cpu_count() or 1)
    if count is not None and not 1 <= count <= most:
        raise PruneError(f"{option} {count} is not between 1 and {most}", "leave it out for one per core")


@dataclass(frozen=True)
class Execution:
    """How sessions run. `threads` None: one per core that this process may use."""

    provider: str = "cpu"
    threads: int | None = None

    def __post_init__(self) -> None:
        check_parallel("--threads", self.threads)

    @property
    def thread_count(self) -> int:
        if self.threads is not None:
            return self.threads
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    @property
    def lanes(self) -> int:
        """Calls that go side by side."""
        return lanes_of(self.thread_count)

    def check(self) -> None:
        """Raises PruneError if onnxruntime lacks the provider, for commands that may not open a session at all."""
        _provider_list(_onnxruntime(), self.provider)

    def open(self, model: Source, **options: Any) -> Session:
        """As `Session.open`, by this provider and with these threads."""
        return Session.open(model, provider=self.provider, threads=self.thread_count, **options)
