"""Tokens alone feed a language model: what follows from them is made, and said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prunecli.data.language import WINDOW, TokenWindows, tokens_of
from prunecli.data.options import DataOptions
from prunecli.errors import PruneError
from prunecli.inputs import InputSpec

TOKENS = InputSpec("input_ids", "int64", ("batch", "sequence"))
MASK = InputSpec("attention_mask", "int64", ("batch", "past + sequence"))
PLACES = InputSpec("position_ids", "int64", ("batch", "sequence"))
PAST = InputSpec("past_key_values.0.key", "float16", ("batch", 2, "past_sequence_length", 4))
DECODER = [TOKENS, MASK, PLACES, PAST]
ROW = np.arange(11)

CASES = [
    # inputs, array, samples and tokens, inputs that are made
    (DECODER, ROW, (1, 11), ["attention_mask", "position_ids", "past_key_values.0.key"]),
    ([InputSpec("input_ids", "int32", ("batch", 4)), MASK], ROW, (2, 4), ["attention_mask"]),
    ([TOKENS, MASK], ROW[:10].reshape(2, 5), (2, 5), ["attention_mask"]),
    ([TOKENS], np.zeros(2 * WINDOW + 3, np.int64), (2, WINDOW), []),
    ([TOKENS, InputSpec("token_type_ids", "int64", ("batch", "sequence"))], ROW, (1, 11), ["token_type_ids"]),
]


@pytest.mark.parametrize(("specs", "array", "shape", "made"), CASES)
def test_what_follows_from_tokens_is_made(
    specs: list[InputSpec], array: np.ndarray, shape: tuple[int, int], made: list[str], tmp_path: Path
) -> None:
    np.save(tmp_path / "tokens.npy", array)
    data = DataOptions(str(tmp_path / "tokens.npy")).open(specs)
    (batch,) = data.batches(8)
    tokens = batch.feed[specs[0].name]
    assert tokens.shape == shape
    assert (tokens.reshape(-1) == array.reshape(-1)[: tokens.size]).all()
    assert all((batch.feed[name] == 1).all() for name in made if name == "attention_mask")
    assert all((batch.feed[name] == np.arange(shape[1])).all() for name in made if name == "position_ids")
    assert all((batch.feed[name] == 0).all() for name in made if name == "token_type_ids")
    assert all(batch.feed[name].shape == (shape[0], 2, 0, 4) for name in made if name.startswith("past"))
    told = " ".join(data.notes)
    assert all(name in told for name in made if not name.startswith("past"))
    assert ("past keys and values" in told) == any(name.startswith("past") for name in made)
    assert ("samples of" in told) == (array.ndim == 1)


def test_a_limit_counts_samples(tmp_path: Path) -> None:
    np.save(tmp_path / "tokens.npy", np.zeros(3 * WINDOW, np.int64))
    assert len(DataOptions(str(tmp_path / "tokens.npy"), limit=2).open([TOKENS])) == 2


def test_every_token_is_counted_once_in_a_sliding_window(tmp_path: Path) -> None:
    np.save(tmp_path / "tokens.npy", np.arange(21))
    asked = DataOptions(str(tmp_path / "tokens.npy"), windows=TokenWindows(8, 3))
    (batch,) = asked.open([TOKENS]).batches(8)
    tokens = next(iter(batch.feed.values()))
    assert tokens[:, 0].tolist() == [0, 3, 6, 9, 12] and (np.diff(tokens, axis=1) == 1).all()
    assert batch.labels is not None
    counted = batch.labels[batch.labels >= 0]
    assert sorted(counted.tolist()) == list(range(1, 20))  # the 20 tokens of five samples, but for the first
    assert ((batch.labels == tokens + 1) | (batch.labels == -100)).all()
    assert (batch.labels[1:, :4] == -100).all() and (batch.labels[1:, 4:7] >= 0).all()


WINDOWS = [
    (TokenWindows(8, 9), "leaves tokens out"), (TokenWindows(22), "a sample of the model has 22"),
]  # fmt: skip


@pytest.mark.parametrize(("windows", "problem"), WINDOWS)
def test_windows_that_do_not_fit_are_refused(windows: TokenWindows, problem: str, tmp_path: Path) -> None:
    np.save(tmp_path / "tokens.npy", np.arange(21))
    with pytest.raises(PruneError, match=problem):
        DataOptions(str(tmp_path / "tokens.npy"), windows=windows).open([TOKENS])


def test_windows_are_of_rows_of_tokens_alone(tmp_path: Path) -> None:
    np.save(tmp_path / "tokens.npy", np.zeros((2, 8), np.int64))
    np.savez(tmp_path / "x.npz", input_ids=np.ones((2, 3), np.int64))
    for name in ("tokens.npy", "x.npz"):
        with pytest.raises(PruneError, match="row of tokens"):
            DataOptions(str(tmp_path / name), windows=TokenWindows(8, 4)).open([TOKENS])


def test_a_mask_that_is_given_is_taken(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", input_ids=np.ones((2, 3), np.int64), attention_mask=np.zeros((2, 3), np.int64))
    data = DataOptions(str(tmp_path / "x.npz")).open([TOKENS, MASK])
    assert not next(data.batches(8)).feed["attention_mask"].any()
    assert not data.notes


REFUSED = [
    # inputs, array, what is said
    ([InputSpec("ids", "int64", ("batch", 16)), MASK], ROW, "has 11 tokens, a sample of the model has 16"),
    ([TOKENS, InputSpec("image", "float32", ("batch", 3))], ROW.reshape(1, 11), "no array of"),
    ([TOKENS, InputSpec("past_key", "float32", ("batch", "heads", "past", 4))], ROW.reshape(1, 11), "past_key"),
]


@pytest.mark.parametrize(("specs", "array", "said"), REFUSED)
def test_what_does_not_follow_is_asked_for(
    specs: list[InputSpec], array: np.ndarray, said: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "tokens.npy", array)
    with pytest.raises(PruneError, match=said):
        DataOptions(str(tmp_path / "tokens.npy")).open(specs)


def test_other_models_have_no_tokens() -> None:
    assert tokens_of([TOKENS, InputSpec("image", "float32", ("batch", 3))]) is None
    assert tokens_of([InputSpec("x", "float32", ("batch", 3))]) is None
    assert tokens_of(DECODER) == TOKENS
