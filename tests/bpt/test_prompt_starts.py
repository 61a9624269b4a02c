"""What prompts start from, out of training images."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import burst
from bpt import Recipe, eval_transform, open_dataset
from bpt.dataset_images import image_stream
from bpt.prompt_matrices import prompt_matrices
from bpt.prompt_starts import tokens_for, whitening_for
from burst import CheckpointError


@pytest.fixture(scope="module")
def backbone():
    return burst.load_backbone("mae_tiny")


@pytest.fixture(scope="module")
def found(colours):
    return open_dataset("folder", colours)


RECIPE = Recipe(dataset="folder", method="bpt-fwhiten", placement="first:2", num_prompts=4)


def test_the_matrices_are_those_of_burst_whiten_on_the_same_images(found, backbone):
    mine = whitening_for(RECIPE, backbone, found.train, "x")
    stream = image_stream(found.train, backbone, seed=RECIPE.seed, digest="x")
    theirs = burst.whiten(backbone, stream, burst.WhiteningOptions(blocks=(0, 1), floor=1e-3))
    assert list(prompt_matrices(mine, "bpt-fwhiten")) == [0, 1]
    assert torch.equal(mine.W, theirs.W)


def test_a_file_serves_if_it_has_the_blocks(found, backbone, tmp_path):
    made = whitening_for(RECIPE, backbone, found.train, "x")
    burst.save_whitening(made, tmp_path / "W.pt")
    recipe = replace(RECIPE, whitening=str(tmp_path / "W.pt"))
    assert torch.equal(whitening_for(recipe, backbone, found.train, "x").W, made.W)
    with pytest.raises(CheckpointError, match="no matrix for block 2"):
        whitening_for(replace(recipe, placement="first:3"), backbone, found.train, "x")


def test_a_file_of_the_diagonal_alone_serves_as_any_other(found, backbone, tmp_path):
    images = burst.images_for(backbone, "sample", num_images=4)
    options = burst.WhiteningOptions(method="diagonal", blocks=(0, 1))
    burst.save_whitening(burst.whiten(backbone, images, options), tmp_path / "W.pt")
    recipe = replace(RECIPE, placement="first:2", whitening=str(tmp_path / "W.pt"))
    used = prompt_matrices(whitening_for(recipe, backbone, found.train, "x"), "bpt-fwhiten")
    assert sorted(used) == [0, 1]
    for w in used.values():
        assert torch.equal(w, w.diagonal().diag())


def test_spt_starts_from_tokens_of_the_images(found, backbone):
    recipe = replace(RECIPE, method="spt", placement="shallow")
    tokens = tokens_for(recipe, backbone, found.train, "x")[0]
    transform = eval_transform(backbone)
    images = torch.stack([transform(found.train[i][0]) for i in range(len(found.train))])
    with torch.no_grad():
        every = backbone.model.patch_embed(images).flatten(0, 1)
    distance = torch.cdist(tokens, every).min(dim=1).values
    assert tuple(tokens.shape) == (4, 192)
    assert np.all(distance.numpy() < 1e-2)
