"""Nothing in a file is lost by loading and saving it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import TensorProto, helper, numpy_helper

from prunecli.model import Provenance, SaveOptions, find_weights, load, save
from prunecli.model.protos import KEYS
from prunecli.verify.outline import outline
from tests.model.build import floats, info, linear, loaded, node, proto, save_proto
from tests.tiny import REAL_MODELS


def canonical(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with everything whose order means nothing in one order."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    bodies = [copy.graph, *copy.functions]
    while bodies:
        body = bodies.pop()
        _sort(body.value_info, "name")
        _sort(body.metadata_props, "key")
        if isinstance(body, onnx.GraphProto):
            _sort(body.quantization_annotation, "tensor_name")
            for tensor in body.initializer:
                _sort(tensor.metadata_props, "key")
        for n in body.node:
            _sort(n.attribute, "name")
            _sort(n.metadata_props, "key")
            bodies += [a.g for a in n.attribute if a.HasField("g")]
    for entry in copy.opset_import:
        if not entry.domain:
            entry.ClearField("domain")  # absent and empty mean the same
    _sort(copy.metadata_props, "key")
    return copy


def _sort(field: object, key: str) -> None:
    field.sort(key=lambda entry: getattr(entry, key))  # type: ignore[attr-defined]


def again(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    known = loaded(model, folder)
    find_weights(known)  # looking changes nothing either
    save(known, folder / "out.onnx")
    return onnx.load(str(folder / "out.onnx"))


def assert_kept(model: onnx.ModelProto, folder: Path) -> None:
    assert str(canonical(again(model, folder))) == str(canonical(model))


def metadata(message: object, **entries: str) -> None:
    for key, value in entries.items():
        message.metadata_props.add(key=key, value=value)  # type: ignore[attr-defined]


def everything() -> onnx.ModelProto:
    """One of each thing an ONNX file can hold."""
    inner = helper.make_graph(
        [node("MatMul", ["x", "v"], ["i"])],
        "then",
        [],
        [info("i", [2, 4])],
        [numpy_helper.from_array(floats(3, 4), "v")],
        doc_string="inner graph",
        value_info=[info("v", [3, 4])],
    )
    metadata(inner, inner="yes")
    other = helper.make_graph([node("Identity", ["h"], ["e"])], "else", [], [info("e", [2, 4])])
    function = helper.make_function(
        "local",
        "Scaled",
        ["a"],
        ["o"],
        [
            node("Constant", [], ["c"], value_float=2.0),
            node("Elu", ["a"], ["t"]),
            node("Mul", ["t", "c"], ["o"]),
        ],
        [helper.make_opsetid("", 17)],
        attributes=["alpha"],
        attribute_protos=[helper.make_attribute("beta", 3, "a default")],
        doc_string="a function",
        value_info=[info("t", ["n", 4])],
    )
    function.node[1].attribute.add(name="alpha", ref_attr_name="alpha", type=onnx.AttributeProto.FLOAT)
    function.overload = "v2"
    metadata(function, f="1")
    nodes = [
        node("MatMul", ["x", "w"], ["h"], "fc", doc_string="a node"),
        node("If", ["cond"], ["b"], then_branch=inner, else_branch=other),
        node("Scaled", ["b"], ["s"], domain="local", overload="v2", alpha=0.5),
        node("Odd", ["s", "", "list"], ["y", "", "z"], domain="custom", strings=["a", "ü"], ints=[1, 2], f=0.1),
    ]
    model = proto(nodes, {"x": ("batch", 3), "cond": ()}, ["y"], {"w": floats(3, 4)}, functions=[function],
                  domains=["local", "custom"])  # fmt: skip
    model.ir_version = 10
    model.graph.input[1].type.tensor_type.elem_type = TensorProto.BOOL
    decorate(model)
    return model


def decorate(model: onnx.ModelProto) -> None:
    graph, fc, odd = model.graph, model.graph.node[0], model.graph.node[3]
    model.producer_name, model.producer_version, model.domain = "maker", "1.2", "org.example"
    model.model_version, model.doc_string, graph.doc_string = 7, "a model", "a graph"
    metadata(model, author="somebody", licence="free")
    metadata(graph, g="1")
    metadata(fc, fc="1", namespace="a.b")
    graph.input[0].doc_string, graph.output[0].doc_string = "an input", "an output"
    metadata(graph.input[0], unit="volt")
    graph.input[0].type.denotation = "IMAGE"
    graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    graph.initializer[0].doc_string = "a tensor"
    metadata(graph.initializer[0], t="1", location="here")
    fc.attribute.append(helper.make_attribute("note", "text", "an attribute"))
    graph.value_info.extend([info("h", ["batch", 4]), info("w", [3, 4]), info("gone", [1])])
    graph.value_info[0].doc_string = "a value"
    table = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(1, [2]))
    graph.value_info.append(helper.make_value_info("z", helper.make_sequence_type_proto(table)))
    graph.input.append(helper.make_value_info("list", helper.make_sequence_type_proto(table)))
    annotation = graph.quantization_annotation.add(tensor_name="h")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="w")
    graph.quantization_annotation.add(tensor_name="gone too")
    odd.attribute.append(onnx.AttributeProto(name="bytes", type=onnx.AttributeProto.STRING, s=b"\xff\x00"))
    odd.attribute.append(onnx.AttributeProto(name="blobs", type=onnx.AttributeProto.STRINGS, strings=[b"\xfe"]))
    odd.attribute.append(helper.make_attribute("tensor", numpy_helper.from_array(floats(2), "inside")))
    odd.attribute.append(helper.make_attribute("tensors", [numpy_helper.from_array(floats(2), "i")] * 2))
    odd.attribute.append(helper.make_attribute("type", helper.make_sequence_type_proto(table)))
    values, indices = numpy_helper.from_array(floats(1), "v"), numpy_helper.from_array(np.array([1]), "i")
    sparse = onnx.SparseTensorProto(values=values, indices=indices, dims=[4])
    odd.attribute.append(helper.make_attribute("sparse", sparse))
    model.training_info.add().initialization.name = "training"


def test_everything_survives(tmp_path: Path) -> None:
    assert_kept(everything(), tmp_path)


def output_of_empty_type(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.Clear()
    model.graph.output[0].type.SetInParent()


def described_twice(model: onnx.ModelProto) -> None:
    """Inputs and outputs, in other words; also one whose type onnx-ir cannot hold, and one of nothing."""
    table = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(1, [2]))
    model.graph.input.append(helper.make_value_info("list", table))
    model.graph.value_info.extend([info("y", None), *model.graph.input, helper.make_value_info("gone", table)])


def unnamed_constant(model: onnx.ModelProto) -> None:
    """The axes of a Squeeze that a weight passes through."""
    axes = onnx.numpy_helper.from_array(np.array([0]))
    model.graph.initializer.append(numpy_helper.from_array(floats(1, 3, 4), "wide"))
    model.graph.node.extend(
        [
            node("Constant", [], ["axes"], value=axes),
            node("Squeeze", ["wide", "axes"], ["narrow"]),
            node("MatMul", ["x", "narrow"], ["z"]),
        ]
    )


def graph_without_a_type(model: onnx.ModelProto) -> None:
    """An attribute that holds a graph and does not say so."""
    model.opset_import.add(domain="my", version=1)
    model.graph.node.append(node("Own", ["x"], ["z"], domain="my", body=linear().graph))
    model.graph.node[-1].attribute[0].ClearField("type")


ODD = [output_of_empty_type, described_twice, unnamed_constant, graph_without_a_type]


@pytest.mark.parametrize("change", ODD, ids=lambda f: f.__name__)
def test_odd_things_survive(change: Callable[[onnx.ModelProto], None], tmp_path: Path) -> None:
    model = linear()
    change(model)
    assert_kept(model, tmp_path)


def messages(message: Message) -> Iterator[Message]:
    yield message
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for part in value if field.is_repeated else (value,):
                yield from messages(part)


def repeat_maps(model: onnx.ModelProto) -> None:
    """Every entry of every map twice."""
    for message in list(messages(model)):
        for field, value in message.ListFields():
            if field.name in KEYS and field.type == FieldDescriptor.TYPE_MESSAGE:
                value.extend([type(part).FromString(part.SerializeToString()) for part in value])


def spell_out(name: str) -> Callable[[onnx.ModelProto], None]:
    """`Message.field` says its default wherever it is absent."""

    def change(model: onnx.ModelProto) -> None:
        for message in messages(model):
            field = message.DESCRIPTOR.fields_by_name.get(name.partition(".")[2])
            if message.DESCRIPTOR.name == name.partition(".")[0] and not message.HasField(field.name):
                if field.type == FieldDescriptor.TYPE_MESSAGE:
                    getattr(message, field.name).SetInParent()
                else:
                    setattr(message, field.name, field.default_value)

    return change


def describe_weight(*shape: int | str) -> Callable[[onnx.ModelProto], None]:
    """A value_info of a stored tensor, right or not: nothing reads it."""
    return lambda model: model.graph.value_info.append(info("w", shape))


DEFAULTS = sorted({
    f"{message.DESCRIPTOR.name}.{field.name}"
    for message in messages(everything())
    for field in message.DESCRIPTOR.fields
    if not field.is_repeated and field.containing_oneof is None
    and (field.type != FieldDescriptor.TYPE_MESSAGE or message.DESCRIPTOR.name == "AttributeProto"
         or field.name == "segment")
})  # fmt: skip
SPELLINGS: dict[str, Callable[[onnx.ModelProto], None]] = {
    **{name: spell_out(name) for name in DEFAULTS}, "maps": repeat_maps, "weight": describe_weight(3, 4),
    "weight of another shape": describe_weight("n", 2, 2),
    "both names of the domain": lambda m: m.opset_import.add(domain="ai.onnx", version=17),
}  # fmt: skip


@pytest.mark.parametrize("change", SPELLINGS.values(), ids=SPELLINGS)
def test_spelling_is_no_matter(change: Callable[[onnx.ModelProto], None], tmp_path: Path) -> None:
    """The same model in other words is loaded as the same, and what is saved means what was given."""
    model = everything()
    change(model)
    again(model, tmp_path)
    assert outline(tmp_path / "out.onnx") == outline(tmp_path / "m.onnx")
    assert load(tmp_path / "m.onnx").ir.graph.initializers["w"].shape == (3, 4)


def test_the_notes_say_what_is_stale(tmp_path: Path) -> None:
    assert loaded(everything(), tmp_path).notes == [
        "training_info is kept as it is; it still describes the unpruned model"
    ]


def test_device_configurations_survive(tmp_path: Path) -> None:
    model = linear()
    model.ir_version = 11
    model.configuration.add(name="two", num_devices=2, device=["a", "b"])
    placed = model.graph.node[0].device_configurations.add(configuration_id="two", pipeline_stage=1)
    placed.sharding_spec.add(tensor_name="w", device=[0, 1])
    assert_kept(model, tmp_path)


TENSORS = [
    helper.make_tensor("t", TensorProto.STRING, [2], [b"a", b"\xff"]),
    helper.make_tensor("t", TensorProto.INT4, [3], [1, 2, 3]),
    helper.make_tensor("t", TensorProto.FLOAT8E4M3FN, [3], [1, 2, 3]),
    helper.make_tensor("t", TensorProto.BOOL, [2], [True, False]),
    helper.make_tensor("t", TensorProto.COMPLEX64, [2], [1 + 2j, 3j]),
    helper.make_tensor("t", TensorProto.UINT64, [2], [1, 1 << 63]),
    helper.make_tensor("t", TensorProto.BFLOAT16, [2], [1.5, 2.5]),
    helper.make_tensor("t", TensorProto.FLOAT, [0, 3], []),
    helper.make_tensor("t", TensorProto.FLOAT, [], [1.5]),
]


@pytest.mark.parametrize("tensor", TENSORS, ids=lambda t: f"{t.data_type}-{list(t.dims)}")
def test_every_element_type_survives(tensor: onnx.TensorProto, tmp_path: Path) -> None:
    model = linear()
    model.graph.initializer.append(tensor)
    assert_kept(model, tmp_path)


def test_inputs_that_are_initializers_stay_so(tmp_path: Path) -> None:
    model = linear()
    model.ir_version = 3
    model.graph.input.extend([info("w", [3, 4]), info("b", [4])])
    assert_kept(model, tmp_path)


def test_older_descriptions_of_function_values_survive(tmp_path: Path) -> None:
    model = everything()
    model.ir_version = 9
    model.functions[0].ClearField("overload")
    model.graph.node[2].ClearField("overload")
    del model.functions[0].value_info[:]
    model.graph.value_info.append(info("local::Scaled/t", ["n", 4]))
    assert_kept(model, tmp_path)


def test_values_follow_edits(tmp_path: Path) -> None:
    """What onnx-ir cannot hold belongs to its value and node, wherever those end up."""
    model = loaded(everything(), tmp_path)
    odd = next(n for n in model.ir.graph if n.op_type == "Odd")
    odd.outputs[2].name = "renamed"
    fc = model.ir.graph[0]
    model.ir.graph.insert_before(odd, type(fc)("", "Relu", [fc.outputs[0]]))
    save(model, tmp_path / "out.onnx")
    result = onnx.load(str(tmp_path / "out.onnx")).graph
    assert [n.op_type for n in result.node][-2:] == ["Relu", "Odd"]
    assert {a.name for a in result.node[-1].attribute} >= {"sparse", "blobs", "type"}
    assert next(v for v in result.value_info if v.name == "renamed").type.sequence_type.elem_type.HasField("map_type")


def test_external_files_keep_everything_but_the_place(tmp_path: Path) -> None:
    model = everything()
    save(loaded(model, tmp_path), tmp_path / "out.onnx", SaveOptions(external_data="always"))
    save(load(tmp_path / "out.onnx"), tmp_path / "back.onnx", SaveOptions(external_data="never"))
    assert str(canonical(onnx.load(str(tmp_path / "back.onnx")))) == str(canonical(model))


def test_provenance_and_history(tmp_path: Path) -> None:
    model = everything()
    metadata(model, **{"prunecli.history": "{"})  # no JSON: somebody else's
    first = loaded(model, tmp_path)
    save(first, tmp_path / "a.onnx", SaveOptions(provenance=Provenance("magnitude", {"sparsity": 0.5})))
    second = load(tmp_path / "a.onnx")
    save(second, tmp_path / "b.onnx", SaveOptions(provenance=Provenance("finetune", {"data": "d.npz"})))
    third = load(tmp_path / "b.onnx")
    save(third, tmp_path / "c.onnx", SaveOptions(provenance=Provenance("pack")))
    props = {p.key: p.value for p in onnx.load(str(tmp_path / "c.onnx")).metadata_props}
    assert props["author"] == "somebody"
    assert props["prunecli.command"] == "pack"
    assert props["prunecli.recipe"] == "{}"
    assert props["prunecli.input_sha256"] == third.sha256
    import json

    history = json.loads(props["prunecli.history"])
    assert [entry["command"] for entry in history] == ["magnitude", "finetune"]
    assert [entry["input_sha256"] for entry in history] == [first.sha256, second.sha256]
    assert json.loads(history[0]["recipe"]) == {"sparsity": 0.5}


@pytest.mark.parametrize("path", REAL_MODELS)
def test_real_models_survive(path: Path, tmp_path: Path) -> None:
    model = load(path)
    find_weights(model)
    save(model, tmp_path / "out.onnx")
    before, after = onnx.load(str(path)), onnx.load(str(tmp_path / "out.onnx"))
    assert canonical(after).SerializeToString(deterministic=True) == canonical(before).SerializeToString(
        deterministic=True
    )


def test_a_saved_file_is_written_as_it_was_loaded_a_second_time(tmp_path: Path) -> None:
    path = save_proto(everything(), tmp_path)
    save(load(path), tmp_path / "a.onnx")
    save(load(tmp_path / "a.onnx"), tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
