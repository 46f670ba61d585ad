"""Fewer tokens: the outputs over the kept tokens stay, and the smaller tokenizer says the same of what it can say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from prunecli.errors import PruneError
from prunecli.report.render import to_markdown
from prunecli.shrinking.report import to_document
from prunecli.shrinking.tokenizer import TokenizerFile
from tests.dependency.net import Net
from tests.shrinking.nets import run, saved, shrunk

TEXT = (
    "A man is playing a guitar", "a woman rides the brown horse", "two dogs are running over green fields!",
    "nobody is playing; the guitar lies near the horse", "Unhappiness, unhappily unhappier", "ein Mädchen läuft",
)  # fmt: skip
REFERRING = {"BPE": "RobertaProcessing", "WordPiece": "BertProcessing"}
"""Kinds whose post-processor is one of its own; the others have a template."""
KIND = ("WordPiece", "WordLevel", "BPE", "Unigram")


def tokenizer(kind: str, path: Path) -> TokenizerFile:
    """A tokenizer trained on the text, with special tokens, padding and a template."""
    tokenizers = pytest.importorskip("tokenizers")
    models, trainers, pre = tokenizers.models, tokenizers.trainers, tokenizers.pre_tokenizers
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    if kind == "BPE":
        made = tokenizers.Tokenizer(models.BPE())
        made.pre_tokenizer, made.decoder = pre.ByteLevel(add_prefix_space=False), tokenizers.decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=pre.ByteLevel.alphabet())
    elif kind == "Unigram":
        made = tokenizers.Tokenizer(models.Unigram())
        made.pre_tokenizer = pre.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=special, unk_token="[UNK]")
    else:
        made = tokenizers.Tokenizer(getattr(models, kind)(unk_token="[UNK]"))
        made.pre_tokenizer = pre.BertPreTokenizer() if kind == "WordPiece" else pre.Whitespace()
        trainer = getattr(trainers, f"{kind}Trainer")(vocab_size=120, special_tokens=special)
    made.train_from_iterator(TEXT * 3, trainer)
    ends = [(name, made.token_to_id(name)) for name in special[2:]]
    processors = tokenizers.processors
    if kind in REFERRING:
        made.post_processor = processors.Sequence([getattr(processors, REFERRING[kind])(ends[1], ends[0])])
    else:
        made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    made.enable_padding(pad_id=made.token_to_id("[PAD]"), pad_token="[PAD]")
    made.save(str(path))
    return TokenizerFile.read(path)


def encoder(n: Net, rows: int, width: int = 6) -> Net:
    """Embedding, a layer, a mean over positions."""
    ids = n.x("N", "T", name="input_ids", limit=rows)
    h = n("Relu", n("MatMul", n("Gather", n.w(rows, width, name="table"), ids), n.w(width, 8)))
    return n.out(n("ReduceMean", h, n.c([1]), keepdims=0))


def decoder(n: Net, rows: int, tied: bool, width: int = 6) -> Net:
    """Embedding, a layer, logits: by the embedding itself, or a matrix of their own and a bias."""
    ids = n.x("N", "T", name="input_ids", limit=rows)
    h = n("Tanh", n("MatMul", n("Gather", n.w(rows, width, name="table"), ids), n.w(width, width)))
    if tied:
        return n.out(n("MatMul", h, n("Transpose", "table", perm=[1, 0])))
    return n.out(n("Add", n("MatMul", h, n.w(width, rows, name="head")), n.w(rows, name="bias")))


@pytest.mark.parametrize("kind", KIND)
@settings(max_examples=8, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_smaller_tokenizer_splits_what_it_can_say_as_before(
    kind: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("words")
    whole = tokenizer(kind, folder / "t.json")
    words = st.sampled_from(sorted({word for line in TEXT for word in line.split()}))
    lines = data.draw(st.lists(st.lists(words, min_size=1, max_size=5).map(" ".join), min_size=1, max_size=4))
    kept = whole.needed({number for ids in whole.encode(lines) for number in ids})
    (folder / "small.json").write_text(json.dumps(whole.reduced(kept)), encoding="utf-8")
    small = TokenizerFile.read(folder / "small.json")
    new = {old: number for number, old in enumerate(kept)}
    assert sorted(small.ids.values()) == list(range(len(kept))) and len(kept) <= len(whole.ids)
    assert small.encode(lines) == [[new[number] for number in ids] for ids in whole.encode(lines)]
    for ids, again in zip(whole.encode(TEXT), small.encode(TEXT), strict=True):
        if set(ids) <= set(kept) and (whole.unknown is None or whole.unknown not in ids):
            assert again == [new[number] for number in ids]


@pytest.mark.parametrize("kind", KIND)
def test_a_text_says_which_tokens_stay(kind: str, tmp_path: Path) -> None:
    whole = tokenizer(kind, tmp_path / "t.json")
    (tmp_path / "corpus.txt").write_text("\n".join(TEXT[:2]) + "\n", encoding="utf-8")
    path = saved(encoder(Net(), len(whole.ids)), tmp_path / "m.onnx")
    found = shrunk(path, vocabulary=tmp_path / "corpus.txt", tokenizer=tmp_path / "t.json")
    cut = found.removed.vocabulary
    assert cut is not None and cut.wanted.what == "a text of 2 lines"
    new = {old: number for number, old in enumerate(cut.kept)}
    special = {word: new[old] for word, old in whole.ids.items() if word.startswith("[") and word.endswith("]")}
    assert found.to_json()["removed"]["vocabulary"]["special_tokens"] == special
    assert "new ids are in the tokenizer written" in to_markdown(to_document(found))
    assert found.verification.detail == "equal to the bit"
    assert found.tokenizer == str(tmp_path / "out.tokenizer.json")
    small = TokenizerFile.read(Path(found.tokenizer))
    for ids, new in zip(whole.encode(TEXT[:2]), small.encode(TEXT[:2]), strict=True):
        before = run(path, {"input_ids": np.array([ids])})
        after = run(tmp_path / "out.onnx", {"input_ids": np.array([new])})
        assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_loses_the_same_tokens(tied: bool, tmp_path: Path) -> None:
    whole = tokenizer("WordPiece", tmp_path / "t.json")
    path = saved(decoder(Net(), len(whole.ids), tied), tmp_path / "m.onnx")
    (tmp_path / "corpus.txt").write_text(TEXT[0], encoding="utf-8")
    found = shrunk(path, vocabulary=tmp_path / "corpus.txt", tokenizer=tmp_path / "t.json")
    cut = found.removed.vocabulary
    assert cut is not None and list(cut.outputs.values()) == [2]
    ids = np.array([[3, 5, 2]])
    old = np.asarray(cut.kept)[ids]
    (before,), (after,) = (
        run(path, {"input_ids": old}).values(),
        run(tmp_path / "out.onnx", {"input_ids": ids}).values(),
    )
    assert np.allclose(before[..., cut.kept], after, atol=1e-6)


def test_the_graph_can_take_the_old_ids(tmp_path: Path) -> None:
    path = saved(encoder(Net(), 40), tmp_path / "m.onnx")
    (tmp_path / "ids.txt").write_text("3\n7\n9\n21\n")
    found = shrunk(path, vocabulary=tmp_path / "ids.txt", unknown_token="1")
    assert found.removed.vocabulary is not None and list(found.removed.vocabulary.kept) == [1, 3, 7, 9, 21]
    assert "4 kept" not in (page := to_markdown(to_document(found))) and "35 of 40 tokens" in page
    assert found.tokenizer is None and found.verification.detail == "equal to the bit"
    for ids, same in (([[3, 9, 21]], [[3, 9, 21]]), ([[3, 8, 39]], [[3, 1, 1]])):
        (got,) = run(tmp_path / "out.onnx", {"input_ids": np.array(ids)}).values()
        (wanted,) = run(path, {"input_ids": np.array(same)}).values()
        assert np.array_equal(got, wanted)


def test_samples_that_the_smaller_model_can_say_are_compared(tmp_path: Path) -> None:
    whole = tokenizer("WordPiece", tmp_path / "t.json")
    path = saved(encoder(Net(), len(whole.ids)), tmp_path / "m.onnx")
    ids = np.array([[2, 6, 3], [2, 8, 3], [2, 9, 3]])
    np.savez(tmp_path / "d.npz", input_ids=ids)
    np.save(tmp_path / "ids.npy", ids[:2])
    found = shrunk(path, vocabulary=tmp_path / "ids.npy", tokenizer=tmp_path / "t.json", data=str(tmp_path / "d.npz"))
    assert found.removed.vocabulary is not None and {6, 8} <= set(found.removed.vocabulary.kept)
    assert found.verification.samples == 4  # a batch of the two samples that are left, and three of random ids


def compared(n: Net) -> Net:
    """The ids are compared with the padding token, too."""
    ids = n.x("N", "T", name="input_ids", limit=30)
    h = n("Gather", n.w(30, 6), ids)
    keep = n("Cast", n("Unsqueeze", n("Equal", ids, n.c(0)), n.c([-1])), to=1)
    return n.out(n("ReduceSum", n("Mul", h, keep), n.c([1]), keepdims=0))


def two_inputs(n: Net) -> Net:
    a, b = (n.x("N", "T", name=name, limit=30) for name in ("left", "right"))
    return n.out(n("Add", n("Gather", n.w(30, 6), a), n("Gather", n.w(30, 6), b)))


def softmax(n: Net) -> Net:
    ids = n.x("N", "T", name="input_ids", limit=30)
    return n.out(n("Softmax", n("MatMul", n("Gather", n.w(30, 6), ids), n.w(6, 30)), axis=-1))


def mixture(n: Net) -> Net:
    """Probabilities over all tokens are looked up again."""
    ids, table = n.x("N", "T", name="input_ids", limit=30), n.w(30, 6)
    logits = n("MatMul", n("Gather", table, ids), n("Transpose", table, perm=[1, 0]))
    return n.out(n("MatMul", n("Sigmoid", logits), table))


def small_table(n: Net) -> Net:
    return n.out(n("Gather", n.w(4, 6), n.x("N", "T", name="input_ids", limit=4)))


def shared_table(n: Net) -> Net:
    """Ids of another input are looked up in the same table."""
    ids, table, others = n.x("N", "T", name="input_ids", limit=30), n.w(30, 6), n.x("N", "T", name="labels", limit=30)
    return n.out(n("Add", n("Gather", table, ids), n("Gather", table, others)))


def computed_ids(n: Net) -> Net:
    """The next ids are looked up in the same table."""
    ids, table = n.x("N", "T", name="input_ids", limit=30), n.w(30, 6)
    return n.out(n("Add", n("Gather", table, ids), n("Gather", table, n("Mod", n("Add", ids, n.c(1)), n.c(30)))))


def two_lengths(n: Net) -> Net:
    ids = n.x("N", "T", name="input_ids", limit=30)
    return n.out(n("Add", n("Gather", n.w(30, 6), ids), n("Gather", n.w(40, 6), ids)))


def quantised_table(n: Net) -> Net:
    """The ids are cast before they are looked up."""
    ids = n("Cast", n.x("N", "T", name="input_ids", limit=30), to=6)
    rows = n("Gather", n.c(np.ones((30, 6), np.int8), name="q"), ids)
    return n.out(n("Mul", n("Cast", rows, to=1), n.c(np.float32(0.1))))


def no_table(n: Net) -> Net:
    return n.out(n("Relu", n.x("N", 4)))


# network, file of tokens, further options, a piece of the message, of the hint
REFUSED: list[tuple[Any, str, dict[str, Any], str, str]] = [
    (two_inputs, "3\n5", {"unknown_token": "1"}, "several inputs could be token ids: left, right", "--token-input"),
    (softmax, "3\n5", {"remap": "graph", "unknown_token": "1"}, "Softmax runs over this axis", "--outputs"),
    (mixture, "3\n5", {"unknown_token": "1"}, "sums over all tokens", "--outputs"),
    (small_table, "3\n5", {"unknown_token": "1"}, "largest table has 4 rows, and ids go up to 5", "tokenizer of this"),
    (
        shared_table,
        "3\n5",
        {"unknown_token": "1", "token_input": "input_ids"},
        "looks other ids than those of",
        "--outputs",
    ),
    (computed_ids, "3\n5", {"unknown_token": "1"}, "looks other ids than those of 'input_ids' up", "--outputs"),
    (lambda n: encoder(n, 30), "[3, -100]", {"unknown_token": "1"}, "has the id -100", "from 0 on"),
    (lambda n: encoder(n, 30), "[]", {"unknown_token": "1"}, "names no token", "ids"),
    (no_table, "3\n5", {"unknown_token": "1"}, "nothing is looked up", "tokenizer"),
    (lambda n: encoder(n, 30), "3\n5", {}, "no unknown token is known", "--unknown-token"),
    (lambda n: encoder(n, 30), "3\nwords", {"unknown_token": "1"}, "nothing says which ids they have", "--tokenizer"),
    (lambda n: encoder(n, 30), "3\n5", {"unknown_token": "55"}, "'55' is no token", "an id"),
    (lambda n: encoder(n, 30), "3\n5", {"unknown_token": "1", "token_input": "ids"}, "no input 'ids'", "input_ids"),
    (lambda n: encoder(n, 30), "\n", {"unknown_token": "1"}, "names no token", "at least one"),
    (
        lambda n: encoder(n, 30),
        '["t3"]',
        {"tokenizer": {"type": "WordLevel", "unk_token": "u", "vocab": {"u": 0, "t1": 1}}},
        "the tokenizer does not know: t3",
        "its own tokens",
    ),
    (lambda n: encoder(n, 30), "3\n5", {"tokenizer": {"type": "Other"}}, "a tokenizer of type 'Other'", "WordPiece"),
    (lambda n: encoder(n, 30), "3\n5", {"tokenizer": {"type": "WordLevel"}}, "no vocabulary that can be read", "again"),
    (lambda n: encoder(n, 30), "[", {"unknown_token": "1"}, "is no JSON", "as JSON"),
    (lambda n: encoder(n, 30), "[3, null]", {"unknown_token": "1"}, "is no list of tokens", "JSON list"),
    (lambda n: encoder(n, 30), "\udcff", {"unknown_token": "1"}, "it is no UTF-8 text", "ids as .npy"),
    (two_lengths, "3\n5", {"unknown_token": "1"}, "tables of different lengths", ""),
    (quantised_table, "3\n5", {"unknown_token": "1"}, "the embedding 'q' is quantised", "floating-point model"),
    (lambda n: decoder(n, 30, True), "3\n5", {"unknown_token": "1"}, "would take old ids and give new ones", "--remap"),
]


@pytest.mark.parametrize(("build", "text", "options", "message", "hint"), REFUSED, ids=[case[3] for case in REFUSED])
def test_what_would_be_ambiguous_is_refused(
    build: Any, text: str, options: dict[str, Any], message: str, hint: str, tmp_path: Path
) -> None:
    net = Net()
    build(net)
    listed = tmp_path / ("v.json" if text.startswith("[") else "v.txt")
    listed.write_bytes(text.encode(errors="surrogateescape"))
    if "tokenizer" in options:
        (tmp_path / "t.json").write_text(json.dumps({"model": options["tokenizer"]}))
        options = {**options, "tokenizer": tmp_path / "t.json"}
    with pytest.raises(PruneError) as caught:
        shrunk(saved(net, tmp_path / "m.onnx"), vocabulary=listed, **options)
    assert message in caught.value.message and hint in caught.value.hint
    assert not (tmp_path / "out.onnx").exists()


def test_ids_that_the_graph_compares_keep_their_numbers(tmp_path: Path) -> None:
    whole = tokenizer("WordPiece", tmp_path / "t.json")
    net = Net()
    compared(net)
    path = saved(net, tmp_path / "m.onnx")
    (tmp_path / "v.json").write_text("[3, 5, 7]")
    tokens = {"model": {"type": "WordLevel", "unk_token": "u", "vocab": {"u": 0, **{f"t{k}": k for k in range(1, 30)}}}}
    (tmp_path / "t.json").write_text(json.dumps(tokens))
    with pytest.raises(PruneError, match=r"Equal 'node.*' reads the token ids, too") as caught:
        shrunk(path, vocabulary=tmp_path / "v.json", tokenizer=tmp_path / "t.json")
    assert "--remap graph" in caught.value.hint
    found = shrunk(path, vocabulary=tmp_path / "v.json", tokenizer=tmp_path / "t.json", remap="graph")
    assert found.verification.detail == "equal to the bit" and whole is not None


def words(path: Path, count: int, unknown: str = "u") -> Path:
    """A tokenizer.json of whole words."""
    vocabulary = {"u": 0, **{f"t{number}": number for number in range(1, count)}}
    model = {"type": "WordLevel", "unk_token": unknown, "vocab": vocabulary}
    path.write_text(json.dumps({"version": "1.0", "pre_tokenizer": {"type": "WhitespaceSplit"}, "model": model}))
    return path


def greedy(n: Net) -> Net:
    """The output is the id of the next token."""
    decoder(n, 30, False)
    return n.out(n("ArgMax", n.outputs.pop(), axis=-1))


def echoed(n: Net) -> Net:
    """The ids are an output, too."""
    encoder(n, 30)
    return n.out(n("Identity", "input_ids"))


# network, the operator whose ids would be old ones while the model takes new ones
GIVING = [(greedy, "ArgMax"), (echoed, "Identity")]


@pytest.mark.parametrize(("build", "operator"), GIVING, ids=[case[1] for case in GIVING])
def test_ids_that_the_model_gives_are_not_renumbered(build: Any, operator: str, tmp_path: Path) -> None:
    net = Net()
    build(net)
    path = saved(net, tmp_path / "m.onnx")
    (tmp_path / "v.json").write_text("[3, 5, 7]")
    with pytest.raises(PruneError, match=operator) as caught:
        shrunk(path, vocabulary=tmp_path / "v.json", tokenizer=words(tmp_path / "t.json", 30))
    assert "--remap graph" in caught.value.hint


def test_a_text_that_the_tokenizer_cannot_split(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    path = saved(encoder(Net(), 30), tmp_path / "m.onnx")
    (tmp_path / "text.txt").write_text("t3 strange")
    with pytest.raises(PruneError, match="cannot split the text"):
        shrunk(path, vocabulary=tmp_path / "text.txt", tokenizer=words(tmp_path / "t.json", 30, unknown="missing"))


def test_the_last_token(tmp_path: Path) -> None:
    net = decoder(Net(), 30, False)
    path = saved(net, tmp_path / "m.onnx")
    found = shrunk(path, last_token=True, dim=["N=2", "T=9"])
    assert "all but the last, as asked" in to_markdown(to_document(found))
    assert found.removed.last_token is not None and found.verification.kind == "exact"
    assert found.after.macs is not None and found.before.macs is not None and found.after.macs < found.before.macs / 2
    ids = np.arange(12).reshape(2, 6)
    (before,), (after,) = (run(p, {"input_ids": ids}).values() for p in (path, tmp_path / "out.onnx"))
    assert after.shape == (2, 1, 30) and np.allclose(before[:, -1:], after, atol=1e-6)


def test_of_two_heads_one_has_to_be_kept(tmp_path: Path) -> None:
    net = decoder(Net(), 30, False)
    net.out(net("MatMul", net.nodes[2].output[0], net.w(6, 5)))
    path = saved(net, tmp_path / "m.onnx")
    with pytest.raises(PruneError, match="several outputs have a head over positions") as caught:
        shrunk(path, last_token=True)
    assert "--outputs" in caught.value.hint
    assert not shrunk(path, outputs=net.outputs, dead_inputs=True).removed.interface


def test_no_head_over_positions(tmp_path: Path) -> None:
    with pytest.raises(PruneError, match="no output has a head over positions"):
        shrunk(saved(encoder(Net(), 30), tmp_path / "m.onnx"), last_token=True)


def test_a_triangle_of_logits_depends_on_positions(tmp_path: Path) -> None:
    net = decoder(Net(), 30, False)
    net.out(net("Trilu", net.outputs.pop()))
    with pytest.raises(PruneError, match="no output has a head over positions"):
        shrunk(saved(net, tmp_path / "m.onnx"), last_token=True)


def test_no_model_without_its_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tokenizers")
    path = saved(encoder(Net(), 30), tmp_path / "m.onnx")
    (tmp_path / "text.txt").write_text("t3 t5")
    monkeypatch.setattr("prunecli.shrinking.shrink.encoded", lambda *given, **named: [])
    with pytest.raises(PruneError, match="splits the text otherwise"):
        shrunk(path, vocabulary=tmp_path / "text.txt", tokenizer=words(tmp_path / "t.json", 30))
    assert not (tmp_path / "out.onnx").exists()


def branches(n: Net) -> Net:
    a, b = n.x("N", 4, name="a"), n.x("N", 4, name="b")
    h = n("Relu", n("Gemm", a, n.w(4, 8), n.w(8)))
    return n.out(n("Gemm", h, n.w(8, 3)), n("Gemm", n("Add", h, n("Gemm", b, n.w(4, 8))), n.w(8, 2)))


def test_outputs_and_inputs_that_nobody_needs(tmp_path: Path) -> None:
    net = branches(Net())
    path = saved(net, tmp_path / "m.onnx")
    name = net.outputs[0]
    found = shrunk(path, outputs=[name], dead_inputs=True)
    assert found.to_json()["removed"]["outputs"] == [net.outputs[1]]
    assert found.to_json()["removed"]["inputs"] == ["b"]
    page = to_markdown(to_document(found))
    assert "with 3 nodes that only it used" in page and "nothing reads it" in page
    model = onnx.load(tmp_path / "out.onnx")
    assert [one.name for one in model.graph.input] == ["a"] and len(model.graph.node) == 3
    with pytest.raises(PruneError, match="no output 'gem'") as caught:
        shrunk(path, outputs=["gem"])
    assert "gemm" in caught.value.hint


def test_a_quantised_model_can_lose_outputs(tmp_path: Path) -> None:
    net = Net()
    scale, zero = net.c(np.float32(0.1)), net.c(np.int8(0))
    weight = net("DequantizeLinear", net.c(np.ones((4, 3), np.int8)), scale, zero)
    x = net.x("N", 4)
    net.out(net("MatMul", x, weight), net("Exp", net("MatMul", x, net.w(4, 40))))
    found = shrunk(saved(net, tmp_path / "m.onnx"), outputs=[net.outputs[0]])
    assert found.after.params < found.before.params and found.verification.detail == "equal to the bit"


def test_initializers_that_are_listed_as_inputs(tmp_path: Path) -> None:
    """As IR 3 does: they are constants all the same."""
    net = encoder(Net(), 30)
    model = net.model()
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    onnx.save(model, tmp_path / "m.onnx")
    (tmp_path / "ids.txt").write_text("3\n7\n")
    found = shrunk(tmp_path / "m.onnx", vocabulary=tmp_path / "ids.txt", unknown_token="1")
    assert found.removed.vocabulary is not None
