"""Batches of any kind: how a model is called with them."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from burst.errors import BurstError
from burst.images import open_images
from burst.stream import as_call, as_stream, batch_size

X = torch.arange(12.0).reshape(3, 4)
MODEL = nn.Linear(4, 2)


@pytest.mark.parametrize("batch", [X, (X,), [X, torch.zeros(3)], (X, {"a": 1})])
def test_a_tensor_is_the_first_argument_and_labels_are_left_out(batch):
    call = as_call(batch, MODEL)
    assert torch.equal(call.args[0], X)
    assert (call.kwargs, call.padding.keep("blocks.0")) == ({}, None)
    assert batch_size(batch) == 3


def test_a_dictionary_gives_the_keyword_arguments():
    batch = {"pixel_values": X, "labels": torch.zeros(3), "return_dict": True}
    call = as_call((batch, torch.zeros(3)), MODEL)
    assert call.args == ()
    assert call.kwargs.keys() == {"pixel_values", "return_dict"}
    assert call.kwargs["return_dict"] is True
    assert batch_size(batch) == 3


def test_what_the_attention_mask_leaves_out_is_padding():
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    ids = torch.ones(2, 3, dtype=torch.long)
    call = as_call({"input_ids": ids, "attention_mask": mask}, MODEL)
    assert torch.equal(call.padding.keep("blocks.0"), mask.bool())
    assert torch.equal(call.kwargs["attention_mask"], mask)
    assert call.kwargs["input_ids"].dtype == torch.long
    full = as_call({"input_ids": ids, "attention_mask": torch.ones_like(mask)}, MODEL)
    assert full.padding.keep("blocks.0") is None
    four_dimensional = torch.zeros(2, 1, 3, 3)  # added to scores: no word on padding
    assert (
        as_call({"input_ids": ids, "attention_mask": four_dimensional}, MODEL).padding.masks == {}
    )


def test_floating_inputs_are_given_the_dtype_of_the_model():
    model = nn.Linear(4, 2).to(torch.bfloat16)
    assert as_call(X.double(), model).args[0].dtype == torch.bfloat16
    assert as_call(X.long(), model).args[0].dtype == torch.long


@pytest.mark.parametrize("batch", ["text", 3, (), [], ("a", X), None])
def test_a_batch_that_is_none_is_told(batch):
    for question in (batch_size, lambda one: as_call(one, MODEL)):
        with pytest.raises(BurstError, match=r"^a batch is a \w+, expected a tensor"):
            question(batch)


@pytest.mark.parametrize("batches", [X, {"a": X}, 3, None])
def test_one_batch_is_not_taken_for_many(batches):
    with pytest.raises(BurstError, match="expected an iterable of batches"):
        as_stream(batches)


class Endless(IterableDataset):
    def __iter__(self):
        return iter(X)


def test_any_iterable_is_a_stream_that_counts_what_it_gives():
    loader = DataLoader(TensorDataset(X, torch.zeros(3)), batch_size=2)
    stream = as_stream(loader)
    assert (stream.batches, stream.count) == (2, 0)
    assert stream.record == {"source": "DataLoader of TensorDataset"}
    assert [len(x) for x, _ in stream] == [2, 1]
    assert (stream.count, stream.sizes) == (3, [2, 1])
    list(stream)
    assert stream.count == 3  # the last pass alone
    assert as_stream(x for x in X).batches == 0
    assert as_stream(DataLoader(Endless())).batches == 0
    assert stream.shard(1, 2) is stream


def test_a_stream_stays_itself():
    images = open_images(
        "sample", num_images=3, batch_size=2, image_size=8, mean=(0, 0, 0), std=(1, 1, 1)
    )
    assert as_stream(images) is images
