"""The page's account of why: every number in it is that of a measurement made apart."""

import numpy as np
import pytest
from support import DEPTH, backbone_of, vit

import burst
from burst.survey import SurveyOptions, images_for, survey
from reports.origins import extremes_words, measured_origins, where_frame


@pytest.fixture(scope="module")
def backbone():
    return backbone_of(vit())


@pytest.fixture(scope="module")
def images(backbone):
    return images_for(backbone, "sample", num_images=8)


@pytest.fixture(scope="module")
def measured(backbone, images):
    options, told = SurveyOptions(quantities=("qkx",)), []
    origins = measured_origins(backbone, images, progress=lambda *steps: told.append(steps))
    count = 4 * images.batches
    assert told == [(step, count) for step in range(1, count + 1)]
    return survey(backbone, images, options), origins


def test_a_row_a_block_sets_the_kurtosis_beside_what_chance_gives(backbone, images, measured):
    one, origins = measured
    frame = where_frame(one, origins.nulls)
    assert frame["block"].tolist() == list(range(DEPTH))
    table = one.table.query("quantity == 'qkx' and head == 'all'")
    np.testing.assert_array_equal(frame["κ"], table["excess_kurtosis"])
    np.testing.assert_array_equal(frame["κ, rows standardised"], table["kurtosis_within_rows"])
    permuted = survey(backbone, images, SurveyOptions(quantities=("qkx",), tokens="permuted"))
    np.testing.assert_allclose(
        frame["κ, permuted tokens"], permuted.table["excess_kurtosis"], rtol=1e-6
    )
    random = survey(burst.random_weights(backbone), images, SurveyOptions(quantities=("qkx",)))
    np.testing.assert_allclose(
        frame["κ, random weights"], random.table["excess_kurtosis"], rtol=1e-6
    )


def test_massive_dimensions_are_named_or_said_to_be_missing(measured):
    sentences = extremes_words(measured[1].extremes)
    assert len(sentences) == 2
    assert all("massive" in one or "than chance would give" in one for one in sentences)
