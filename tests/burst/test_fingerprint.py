"""What a whitening and moments are checked by: the query and key weights, not their name."""

import dataclasses
import hashlib

import numpy as np
import pytest
import timm
import torch
from support import DEPTH, DIM, HEADS, backbone_of, vit

from burst import fingerprint
from burst.backbone import load_backbone
from burst.collect import collect_moments, collect_split
from burst.errors import BurstError, UnsupportedModel
from burst.fingerprint import model_differences, qk_sha256
from burst.second_moments import TokenMoments
from burst.survey import images_for, survey
from burst.whitening import whiten, whiten_moments
from burst.whitening_file import load_whitening, save_whitening


def test_the_fingerprint_is_that_of_the_float32_bytes_block_by_block():
    model = vit()
    digest = hashlib.sha256(b"3 blocks\n")
    for index, block in enumerate(model.blocks):
        digest.update(f"{index} {(HEADS, DIM, DIM // HEADS)}\n".encode())
        qkv = block.attn.qkv.weight.detach().numpy().reshape(3, HEADS, DIM // HEADS, DIM)
        for weight in qkv[:2]:
            digest.update(np.ascontiguousarray(weight.transpose(0, 2, 1)).tobytes())
    assert qk_sha256(model) == digest.hexdigest()


def test_the_fingerprint_sees_queries_and_keys_of_every_block_and_nothing_else():
    known = {qk_sha256(vit())}
    for block in range(DEPTH):
        for row in (0, 2 * DIM - 1):
            model = vit().requires_grad_(False)
            model.blocks[block].attn.qkv.weight[row, 3] += 1e-3
            known.add(qk_sha256(model))
    known.add(qk_sha256(vit(depth=DEPTH - 1)))
    known.add(qk_sha256(vit(num_heads=2)))
    assert len(known) == 1 + 2 * DEPTH + 2
    model = vit().requires_grad_(False)
    model.blocks[1].attn.qkv.weight[2 * DIM :] += 1  # the values
    model.pos_embed += 1
    assert qk_sha256(model) == qk_sha256(vit())


def test_weights_of_half_precision_have_the_fingerprint_of_what_they_hold():
    half = vit().half()
    assert qk_sha256(half) != qk_sha256(vit())
    assert qk_sha256(half) == qk_sha256(vit().half().float())


def test_blocks_that_cannot_be_measured_have_no_part_in_it():
    mixed = vit()
    mixed.blocks[1].attn.q_norm = torch.nn.LayerNorm(DIM // HEADS)
    assert qk_sha256(mixed) not in (None, qk_sha256(vit()))
    assert qk_sha256(vit(qk_norm=True)) is None
    with pytest.raises(UnsupportedModel, match="choose a transformer"):
        qk_sha256(timm.create_model("test_resnet"))


def test_names_and_files_count_only_where_a_fingerprint_is_missing():
    made = {"model": "a", "weights_sha256": None, "qk_sha256": "1" * 64}
    assert model_differences(made, {**made, "model": "b", "weights_sha256": "2" * 64}) == []
    assert model_differences(made, {**made, "qk_sha256": "2" * 64}) == [
        "query and key weights 111111111111..., not 222222222222..."
    ]
    old = {"model": "a", "weights_sha256": "2" * 64}
    assert model_differences(old, made) == ["weights sha256 222222222222..., not None"]
    assert model_differences(old, {**old, "qk_sha256": "1" * 64}) == []


@pytest.fixture(scope="module")
def seeds():
    """Random weights of one architecture: two seeds under one name, and the first renamed."""
    first, other = (load_backbone("mae_tiny", "random", seed=seed) for seed in (0, 1))
    for backbone in (first, other):
        backbone.model.blocks = backbone.model.blocks[:2]  # for speed
    return first, other, dataclasses.replace(first, name="renamed", weights_sha256="a" * 64)


def test_random_weights_of_another_seed_do_not_fit(seeds, tmp_path):
    first, other, renamed = seeds
    images = images_for(first, "sample", num_images=5)
    moments, others = collect_moments(first, images), collect_moments(other, images)
    differing = "query and key weights [0-9a-f]{12}..., not"
    whitening = whiten(first, images)
    save_whitening(whitening, tmp_path / "W.pt")
    for refused in (
        lambda: load_whitening(tmp_path / "W.pt", other),
        lambda: whiten_moments(other, moments),
        lambda: whiten_moments(first, moments, held_out=others),
        lambda: moments + others,
    ):
        with pytest.raises(BurstError, match=differing):
            refused()
    assert torch.equal(load_whitening(tmp_path / "W.pt", renamed).W, whitening.W)
    assert whiten_moments(renamed, moments).record["model"] == "renamed"
    assert (moments + collect_moments(renamed, images)).images == 10


def test_every_record_holds_the_fingerprint(seeds):
    first = seeds[0]
    images = images_for(first, "sample", num_images=5)
    expected = qk_sha256(first.model)
    assert survey(first, images).record["qk_sha256"] == expected
    assert whiten(first, images).record["qk_sha256"] == expected
    assert collect_moments(first, images).qk_sha256 == expected


def test_a_measurement_reads_the_weights_once_and_the_next_sees_what_they_are_then(monkeypatch):
    backbone, read = backbone_of(vit().requires_grad_(False)), []
    monkeypatch.setattr(fingerprint, "qk_sha256", lambda model: read.append(model) or "0" * 64)
    images = images_for(backbone, "sample", num_images=6)
    moments, held_out = collect_split(backbone, images, 0.5)
    assert len(read) == 1
    whiten_moments(backbone, moments, held_out=held_out)
    assert len(read) == 2
    monkeypatch.undo()
    before = collect_moments(backbone, images)
    backbone.model.blocks[0].attn.qkv.weight[0, 0] += 1
    assert collect_moments(backbone, images).qk_sha256 == qk_sha256(backbone.model)
    assert before.qk_sha256 != qk_sha256(backbone.model)


def test_moments_of_before_are_told_by_name_and_file(tmp_path):
    backbone = backbone_of(vit())
    images = images_for(backbone, "sample", num_images=3)
    old = dataclasses.replace(collect_moments(backbone, images), qk_sha256=None)
    old.save(tmp_path / "old.safetensors")
    old = TokenMoments.load(tmp_path / "old.safetensors")
    assert old.qk_sha256 is None
    assert whiten_moments(backbone, old).blocks
    with pytest.raises(BurstError, match="the moments are of model test, not other"):
        whiten_moments(dataclasses.replace(backbone, name="other"), old)
