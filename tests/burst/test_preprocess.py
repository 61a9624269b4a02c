import io
import struct
import zlib

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image
from torchvision.transforms import v2

from burst.errors import ImageError, UnknownName
from burst.preprocess import CROP_MODES, Preprocess, decode

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def noise(width, height, channels=3, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def preprocess(**changes):
    return Preprocess(**({"image_size": 32, "mean": MEAN, "std": STD} | changes))


def by_hand(image, *, size, fraction):
    """The evaluation transform with Pillow and NumPy only."""
    short, (width, height) = int(size / fraction), image.size
    if width < height:
        resized = image.resize((short, int(short * height / width)), Image.Resampling.BICUBIC)
    else:
        resized = image.resize((int(short * width / height), short), Image.Resampling.BICUBIC)
    left, top = round((resized.width - size) / 2), round((resized.height - size) / 2)
    pixels = np.asarray(resized)[top : top + size, left : left + size].transpose(2, 0, 1)
    normal = (pixels / 255.0 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    return pixels, normal


@pytest.mark.parametrize("width, height", [(80, 60), (60, 80), (37, 37), (20, 91), (500, 33)])
@pytest.mark.parametrize("fraction", [0.875, 1.0, 0.9])
def test_files_are_resized_cropped_and_normalised_as_by_hand(width, height, fraction):
    image = Image.fromarray(noise(width, height))
    pixels, normal = by_hand(image, size=32, fraction=fraction)
    chain = preprocess(crop_fraction=fraction)
    ours = chain.centre(image)
    np.testing.assert_array_equal(ours.numpy(), pixels)
    # float32 against float64: a few roundings of values below 3
    np.testing.assert_allclose(chain.normalise(ours).numpy(), normal, atol=2e-6, rtol=0)
    assert chain.normalise(ours).dtype == torch.float32


def test_the_transform_is_the_one_that_torchvision_composes():
    image = Image.fromarray(noise(80, 61))
    usual = v2.Compose(
        [
            v2.Resize(36, interpolation=v2.InterpolationMode.BICUBIC),
            v2.CenterCrop(32),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    chain = preprocess()
    assert torch.equal(chain.normalise(chain.centre(image)), usual(image))


def smooth(width, height):
    """An image with edges, gradients and a little noise, as photographs have."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (5 + c)) * np.cos(y / (7 - c)) + (x > y) for c in range(3)]
    pixels = 60 * np.stack(waves, axis=-1) + 90 + noise(width, height) / 16
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("fraction", [0.875, 0.9, 0.95, 1.0, 1.15])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_every_crop_is_that_of_timm(mode, fraction, interpolation):
    theirs = timm.data.create_transform(
        (3, 32, 32),
        interpolation=interpolation,
        mean=MEAN,
        std=STD,
        crop_pct=fraction,
        crop_mode=mode,
    )
    ours = preprocess(crop_fraction=fraction, crop_mode=mode, interpolation=interpolation)
    for width, height in ((80, 61), (61, 80), (37, 37), (32, 32), (20, 91), (15, 29), (33, 31)):
        image = smooth(width, height)
        expected = theirs(image)
        found = ours.normalise(ours.centre(image))
        assert found.shape == (3, 32, 32)
        # a level of 255 is 0.017 here
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_an_image_of_the_model_s_size_is_read_as_it_is():
    pixels = noise(32, 32)
    for mode in CROP_MODES:
        whole = preprocess(crop_fraction=1.0, crop_mode=mode).centre(Image.fromarray(pixels))
        np.testing.assert_array_equal(whole.numpy(), pixels.transpose(2, 0, 1))


def test_interpolation_changes_the_pixels():
    image = Image.fromarray(noise(80, 60))
    kinds = ("bicubic", "bilinear", "nearest", "lanczos", "box", "hamming")
    results = [preprocess(interpolation=kind).centre(image) for kind in kinds]
    for i, first in enumerate(results):
        assert not any(torch.equal(first, other) for other in results[i + 1 :])


def test_a_crop_of_the_whole_image_is_a_resize_and_flip_mirrors_it():
    image = Image.fromarray(noise(64, 64))
    whole = {"top": 0, "left": 0, "height": 64, "width": 64}
    plain = preprocess().crop(image, **whole, flip=False)
    expected = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    np.testing.assert_array_equal(plain.numpy(), expected)
    np.testing.assert_array_equal(
        preprocess().crop(image, **whole, flip=True).numpy(), expected[:, :, ::-1]
    )


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_png_modes_become_rgb(mode):
    image = Image.fromarray(noise(9, 7))
    image = (
        Image.fromarray(noise(9, 7, 1).astype(np.uint16) * 257)
        if mode == "I;16"
        else image.convert(mode)
    )
    decoded = decode(encoded(image))
    assert (decoded.mode, decoded.size) == ("RGB", (9, 7))


def test_sixteen_bit_grey_keeps_its_high_byte():
    grey = noise(9, 7, 1).astype(np.uint16)
    image = Image.fromarray(grey * 256 + 77)
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(np.asarray(decode(encoded(image, kind)))[..., 0], grey)


def test_sixteen_bit_pgm_keeps_its_high_byte():
    grey = noise(9, 7, 1).astype(">u2")
    data = b"P5 9 7 65535\n" + (grey * 256 + 77).astype(">u2").tobytes()
    np.testing.assert_array_equal(np.asarray(decode(data))[..., 2], grey)


def test_alpha_is_dropped_and_the_colours_below_it_stay():
    pixels = noise(9, 7, 4)
    decoded = decode(encoded(Image.fromarray(pixels)))
    np.testing.assert_array_equal(np.asarray(decoded), pixels[..., :3])


def test_a_palette_with_transparency_keeps_its_colours_without_a_warning():
    image = Image.fromarray(noise(9, 7)).quantize(16)
    data = encoded(image, transparency=bytes(range(16)))
    np.testing.assert_array_equal(np.asarray(decode(data)), np.asarray(image.convert("RGB")))


def test_cmyk_jpeg_becomes_rgb():
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red, green, blue = np.asarray(decode(encoded(image, "JPEG", quality=95)))[8, 8].astype(int)
    assert red > 200
    assert max(green, blue) < 60


def test_exif_orientation_is_not_applied():
    image = Image.fromarray(noise(16, 8))
    exif = image.getexif()
    exif[0x0112] = 6
    assert decode(encoded(image, "JPEG", exif=exif)).size == (16, 8)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM"])
def test_every_format_is_read_whatever_its_name_says(kind):
    assert decode(encoded(Image.fromarray(noise(9, 7)), kind)).size == (9, 7)


def png_that_claims(width, height):
    """A PNG whose header is sound and whose size is a lie."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 9) + b"IDAT"


@pytest.mark.parametrize(
    "data, why",
    [
        (b"", "empty"),
        (b"no image at all", "no readable JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no readable JPEG"),
        (encoded(Image.fromarray(noise(64, 64)), "JPEG")[:-900], "truncated"),
        (encoded(Image.fromarray(noise(64, 64)))[:-900], "truncated"),
        (encoded(Image.fromarray(noise(9, 7, 1).astype(np.float32)), "TIFF"), "mode F"),
        (png_that_claims(30_000, 30_000), "pixels"),
    ],
    ids=["empty", "text", "postscript", "jpeg", "png", "float", "bomb"],
)
def test_a_bad_image_says_why_in_one_line(data, why):
    with pytest.raises(ImageError, match=why) as caught:
        decode(data)
    assert "\n" not in str(caught.value)
    assert "0x" not in str(caught.value)


def test_an_image_over_the_limit_is_bad_though_pillow_only_warns(monkeypatch):
    data = encoded(Image.fromarray(noise(9, 7)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 62)
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(ImageError, match="limit"):
        decode(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert decode(data).size == (9, 7)


def test_a_sliver_is_refused_before_it_is_blown_up():
    with pytest.raises(ImageError, match="too narrow"):
        preprocess(image_size=224).centre(Image.new("RGB", (1, 10_000)))
    with pytest.raises(ImageError, match="too narrow to resize its long side to 35"):
        preprocess(crop_mode="border", crop_fraction=0.9).centre(Image.new("RGB", (1, 100)))
    squashed = preprocess(crop_mode="squash").centre(Image.new("RGB", (1, 10_000)))
    assert squashed.shape == (3, 32, 32)


@pytest.mark.parametrize(
    "changes",
    [
        {"image_size": 0},
        {"crop_fraction": 0.0},
        {"crop_fraction": 33.0},
        {"crop_fraction": float("nan")},
        {"mean": (0.5,)},
        {"std": (0.5, 0.5)},
        {"std": (0.5, 0.0, 0.5)},
    ],
)
def test_numbers_out_of_range_are_refused(changes):
    with pytest.raises(ImageError, match=next(iter(changes))):
        preprocess(**changes)


def test_an_unknown_interpolation_gets_the_nearest_known_ones():
    with pytest.raises(UnknownName, match="did you mean bicubic"):
        preprocess(interpolation="bicubik")
    with pytest.raises(UnknownName, match="unknown crop mode 'centre'; did you mean center"):
        preprocess(crop_mode="centre")


@pytest.mark.parametrize("mode, top", [("center", 2), ("center_floor", 1)])
def test_half_a_pixel_is_rounded_down_or_to_the_even_number(mode, top):
    """Of a margin of 3 pixels, 1.5 above: 2 as torchvision has it, 1 as transformers does."""
    pixels = np.random.default_rng(0).integers(0, 256, (35, 32, 3), np.uint8)
    preprocess = Preprocess(
        image_size=32, mean=(0.5,) * 3, std=(0.5,) * 3, crop_fraction=1.0, crop_mode=mode
    )
    cropped = preprocess.centre(Image.fromarray(pixels))
    expected = pixels[top : top + 32].transpose(2, 0, 1)
    np.testing.assert_array_equal(cropped.numpy(), expected)


def test_of_a_moving_gif_the_first_image_is_read():
    frames = [Image.new("RGB", (5, 4), colour) for colour in ("red", "blue")]
    moving = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.array_equal(decode(moving), frames[0])
