"""Every image that people have: odd files made here, and their pixels against a computation of our own."""

import base64
import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from skimage import data

from florence2ner.data import formats, pictures
from florence2ner.data.formats import discover_images
from florence2ner.data.images import load_pixels, to_pixels
from florence2ner.data.pictures import ImageError, load_image, read_size
from florence2ner.data.samples import ImageRef
from florence2ner.model.checkpoints.loading import load_model
from florence2ner.model.vision import VisionEncoder
from tests.data.support import COLOURS, PICTURE
from tests.support import without_roots_powers

Array = np.ndarray
GREY = PICTURE[..., 0]
SIZE = (64, 64)


def pixels(path: Path, **options: int) -> Array:
    image = load_image(ImageRef.at(path), **options)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def worst(found: Array, expected: Array, *, lossy: bool) -> float:
    """The largest difference; of lossy files in the middle of the fields, since colours bleed at their borders."""
    difference = np.abs(found - expected)
    return float((difference[8::16, 12::24] if lossy else difference).max())


def png(array: Array, colour_type: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of 16 bits a channel: colour type 0 grey, 2 RGB, 4 grey and alpha, 6 RGB and alpha."""
    height, width = array.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    framed = (struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def encoded(array: Array | Image.Image, format: str, mode: str | None = None, **options: object) -> bytes:
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, format, **options)
    return buffer.getvalue()


ALPHA = np.full(GREY.shape, 64, np.uint8)
OVER_WHITE = np.rint((PICTURE * 64.0 + 255 * 191) / 255)
GREY_RGB = GREY[..., None].repeat(3, 2)
LUMA = np.asarray(Image.fromarray(PICTURE).convert("L"))[..., None].repeat(3, 2)
RGBA = np.dstack([PICTURE, ALPHA])
BLACK_AND_WHITE = np.where(GREY_RGB > 100, 255, 0)
INK = np.asarray(Image.fromarray(PICTURE).convert("CMYK"))
PALETTE = Image.fromarray(np.arange(4, dtype=np.uint8).reshape(2, 2).repeat(16, 0).repeat(24, 1), "P")
PALETTE.putpalette(COLOURS.tobytes())
FIRST_CLEAR = PICTURE.copy()
FIRST_CLEAR[:16, :24] = 255
SCALED = np.arange(0, 65536, 257, dtype=np.uint16)[GREY]  # v * 257: the same grey in 16 bits
CLEAR_200 = np.where(GREY_RGB == 200, 255, GREY_RGB)
NOT_NUMBERS = np.where(GREY == 200, [[np.nan, -np.inf] * 24], GREY / 255).astype(np.float32)
OTHER_FRAME = Image.new("RGB", (48, 32), "black")

# name: (file, the pixels it should give, tolerance)
FILES: dict[str, tuple[bytes, Array, float]] = {
    "rgb.jpg": (encoded(PICTURE, "JPEG", quality=95), PICTURE, 6),
    "progressive.JPG": (encoded(PICTURE, "JPEG", quality=95, progressive=True), PICTURE, 6),
    "grey.jpeg": (encoded(GREY, "JPEG", quality=95), GREY_RGB, 4),
    "cmyk.jpg": (encoded(Image.fromarray(INK, "CMYK"), "JPEG", quality=95), PICTURE, 6),
    "two.mpo": (encoded(PICTURE, "MPO", save_all=True, append_images=[OTHER_FRAME], quality=95), PICTURE, 6),
    "rgb.PnG": (encoded(PICTURE, "PNG"), PICTURE, 0),
    "rgba.png": (encoded(RGBA, "PNG"), OVER_WHITE, 1),
    "la.png": (encoded(np.dstack([GREY, ALPHA]), "PNG"), OVER_WHITE[..., :1].repeat(3, 2), 1),
    "palette.png": (encoded(PALETTE, "PNG"), PICTURE, 0),
    "clear-palette.png": (encoded(PALETTE, "PNG", transparency=0), FIRST_CLEAR, 0),
    "one-bit.png": (encoded(Image.fromarray(BLACK_AND_WHITE[..., 0] > 0), "PNG"), BLACK_AND_WHITE, 0),
    "clear-rgb.png": (encoded(PICTURE, "PNG", transparency=tuple(PICTURE[0, 0].tolist())), FIRST_CLEAR, 0),
    "grey16.png": (encoded(SCALED, "PNG"), GREY_RGB, 0),
    "clear-grey16.png": (png(SCALED, 0, (b"tRNS", struct.pack(">H", 200 * 257))), CLEAR_200, 0),
    "rgb16.png": (png(PICTURE * np.uint16(257), 2), PICTURE, 0),
    "la16.png": (png(np.dstack([GREY, ALPHA]) * np.uint16(257), 4), OVER_WHITE[..., :1].repeat(3, 2), 1),
    "rgba16.png": (png(RGBA * np.uint16(257), 6), OVER_WHITE, 1),
    "lossless.webp": (encoded(PICTURE, "WEBP", lossless=True), PICTURE, 0),
    "alpha.webp": (encoded(RGBA, "WEBP", lossless=True), OVER_WHITE, 1),
    "animated.webp": (encoded(PICTURE, "WEBP", lossless=True, save_all=True, append_images=[OTHER_FRAME]), PICTURE, 0),
    "rgb.bmp": (encoded(PICTURE, "BMP"), PICTURE, 0),
    "rgb.tif": (encoded(PICTURE, "TIFF", compression="tiff_lzw"), PICTURE, 0),
    "rgba.tiff": (encoded(RGBA, "TIFF"), OVER_WHITE, 1),
    "cmyk.tiff": (encoded(Image.fromarray(INK, "CMYK"), "TIFF"), PICTURE, 1),
    "grey16.tiff": (encoded(SCALED, "TIFF"), GREY_RGB, 0),
    "grey16-big-endian.tiff": (encoded(Image.fromarray(SCALED.astype(">u2")), "TIFF"), GREY_RGB, 0),
    "int32.tiff": (encoded(SCALED.astype(np.int32), "TIFF"), GREY_RGB, 0),
    "int32-wide.tiff": (encoded((GREY.astype(np.int32) << 20), "TIFF"), GREY_RGB * 255.0 / 250, 1.5),
    "float-to-1.tiff": (encoded((GREY / 255).astype(np.float32), "TIFF"), GREY_RGB, 0),
    "float-to-255.tiff": (encoded(GREY * np.float32(1.5) - 60, "TIFF"), np.clip(GREY_RGB * 1.5 - 60, 0, 255), 1),
    "not-numbers.tiff": (encoded(NOT_NUMBERS, "TIFF"), np.where(GREY_RGB == 200, 0, GREY_RGB), 0),
    "lab.tiff": (encoded(Image.new("LAB", (48, 32), (138, 128, 128)), "TIFF"), np.full(PICTURE.shape, 129), 2),
    "palette.gif": (encoded(PALETTE, "GIF"), PICTURE, 0),
    "animated.gif": (encoded(PALETTE, "GIF", save_all=True, append_images=[OTHER_FRAME.convert("P")]), PICTURE, 0),
    "clear.gif": (encoded(PALETTE, "GIF", transparency=0), FIRST_CLEAR, 0),
    "rgb.avif": (encoded(PICTURE, "AVIF", quality=95), PICTURE, 6),
    "really-a-png.jpg": (encoded(PICTURE, "PNG"), PICTURE, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_gives_its_pixels(tmp_path: Path, name: str) -> None:
    content, expected, tolerance = FILES[name]
    path = tmp_path / name
    path.write_bytes(content)
    assert worst(pixels(path), expected, lossy=tolerance > 2) <= tolerance
    assert discover_images([tmp_path]) == [path]
    picture = load_pixels(ImageRef.at(path), SIZE)
    assert picture.size == (48, 32)
    assert (picture.pixels.int() - to_pixels(load_image(ImageRef.at(path)), SIZE).int()).abs().max() <= 2


def test_the_cmyk_jpeg_is_one_that_adobe_inverts() -> None:
    assert b"Adobe" in FILES["cmyk.jpg"][0]


def test_sixteen_bits_span_the_eight(tmp_path: Path) -> None:
    values = np.array([[0, 128, 32768, 65535]], np.uint16)
    for name, content in (("grey.png", encoded(values, "PNG")), ("rgb.png", png(values[..., None].repeat(3, 2), 2))):
        (tmp_path / name).write_bytes(content)
        assert pixels(tmp_path / name)[0, :, 0].tolist() == [0, 0, 128, 255]


@pytest.mark.parametrize("plugin", ["pillow_heif", "pillow_jxl"])
def test_plugins_are_used_where_they_are_installed(tmp_path: Path, plugin: str) -> None:
    assert formats.load_plugin(plugin)
    path = tmp_path / ("a.HEIC" if plugin == "pillow_heif" else "a.jxl")
    path.write_bytes(encoded(PICTURE, "HEIF" if plugin == "pillow_heif" else "JXL", quality=95))
    assert discover_images([tmp_path]) == [path]
    assert worst(pixels(path), PICTURE, lossy=True) <= 6


# How a camera that was held in eight ways stores the upright picture.
STORED: dict[int, Callable[[Array], Array]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "tiff", "avif", "heic", "jxl"])
@pytest.mark.parametrize("orientation", STORED)
def test_all_orientations_give_the_same_picture(tmp_path: Path, extension: str, orientation: int) -> None:
    if plugin := formats.PLUGINS.get(f".{extension}"):
        assert formats.load_plugin(plugin)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{extension}"
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](PICTURE)))
    if extension == "jxl":  # a photograph of a camera, packed
        stored.save(tmp_path / "a.jpg", exif=exif, quality=95)
        with Image.open(tmp_path / "a.jpg") as camera:
            camera.save(path, lossless_jpeg=True)
    else:
        stored.save(path, exif=exif.tobytes(), **({} if extension in ("png", "tiff") else {"quality": 95}))
    assert worst(pixels(path), PICTURE, lossy=True) <= 6
    # The plugin for HEIC turns what it reads.
    assert read_size(ImageRef.at(path)) == (((48, 32), 1) if extension == "heic" else (stored.size, orientation))
    picture = load_pixels(ImageRef.at(path), (24, 60))  # not square: the turn comes after the squash
    assert picture.size == (48, 32)
    expected = to_pixels(load_image(ImageRef.at(path)), (24, 60))
    # Of the two passes of a squash Pillow 13 makes the cheaper one first, 12 always the horizontal one, however the
    # picture lies; between them it rounds.
    assert (picture.pixels.int() - expected.int()).abs().max() <= (4 if PIL.__version__.startswith("12.") else 2)


# `PICTURE` as a camera stores it with orientation 6, encoded by cjxl, which notes that in its header.
TURNED_JXL = (
    "{|XC+1rmx&0s*uH<(Lux02L~uj2pb1>-q9ShsCsw>kMtRZDC2G$T&7hCvcdgpg@{!H^!(Kr5M#1gCRFC{r?33pSq+ZQjHq)lHbt2l0WI?YbLM(G0}"
    "?IJpY!G(m6g3!}<&}684Ps3_itB_=282#63!AUq9ydPZ}2v0M<3lX^#NF!E_1xgXfQ%yKT=e7kGMw6i97Lk-Uj9XNGfm6XQ&bqn1eUr&FZ6GL;egu"
    "po6k?ciz&tw*@0D>E(td!~z&9|9`*g8z&mjxAFaL{E?CB@cwrh`90vTJ|45ZD5~(ulb2(V66Q(mrHo7_0lrPO_E>(Q^MZLe)eBe2=hzwd(8!VO0Zp"
    "0?U34{`q>>cB@|oLFv=<jRZUjPGD!!AdNHi7x)CoHOW$hZ#;_TO4*"
)


def test_a_jpeg_xl_is_turned_by_its_header_and_not_once_more_by_exif(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    parts = [(b"JXL ", b"\r\n\x87\n"), (b"ftyp", b"jxl \0\0\0\0jxl "), (b"Exif", bytes(4) + exif.tobytes()[6:])]
    parts.append((b"jxlc", base64.b85decode(TURNED_JXL)))
    path = tmp_path / "a.jxl"
    path.write_bytes(b"".join(struct.pack(">I", 8 + len(content)) + name + content for name, content in parts))
    assert worst(pixels(path), PICTURE, lossy=True) <= 10
    assert read_size(ImageRef.at(path)) == ((48, 32), 1)
    with Image.open(path) as opened:
        assert opened.getexif()[0x0112] == 6


def test_a_heic_is_never_replaced_by_the_thumbnail_in_it(tmp_path: Path) -> None:
    assert formats.load_plugin("pillow_heif")
    path = tmp_path / "a.heic"
    photograph = data.astronaut()
    Image.fromarray(photograph).save(path, quality=90, thumbnails=[400])
    with Image.open(path) as opened:
        assert opened.draft(None, (256, 256)), "there is one that would do"
    assert torch.equal(load_pixels(ImageRef.at(path), SIZE).pixels, to_pixels(load_image(ImageRef.at(path)), SIZE))


def test_broken_exif_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(PICTURE, "JPEG", quality=95, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert worst(pixels(tmp_path / "a.jpg"), PICTURE, lossy=True) <= 6
        assert read_size(ImageRef.at(tmp_path / "a.jpg")) == ((48, 32), 1)


def icc(space: bytes, tags: dict[bytes, bytes], pcs: bytes = b"XYZ ", kind: bytes = b"mntr") -> bytes:
    """A profile of version 2."""
    xyz = lambda *values: b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 65536) for v in values))  # noqa: E731
    text = b"text\0\0\0\0none\0"
    description = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(79)
    white = struct.pack(">3i", 63190, 65536, 54061)  # D50
    all_tags = {b"desc": description, b"cprt": text, b"wtpt": xyz(0.9642, 1, 0.8249)} | tags
    offset, table, body = 132 + 12 * len(all_tags), b"", b""
    for name, content in all_tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", offset + len(body), len(content))
        body += content
    header = struct.pack(
        ">I4sI4s4s4s12x4s28x12s48x", offset + len(body), b"", 0x02100000, kind, space, pcs, b"acsp", white
    )
    return header + struct.pack(">I", len(all_tags)) + table + body


def curve(exponent: float | None) -> bytes:
    """A tone curve: a power, or sRGB's as a table."""
    levels = np.linspace(0, 1, 1024)
    table = np.rint(65535 * (srgb_to_linear(levels) if exponent is None else levels**exponent)).astype(">u2")
    return b"curv\0\0\0\0" + struct.pack(">I", len(table)) + table.tobytes()


def srgb_to_linear(v: Array) -> Array:
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(v: Array) -> Array:
    v = np.clip(v, 0, 1)
    return np.rint(255 * np.where(v <= 0.0031308, 12.92 * v, 1.055 * v ** (1 / 2.4) - 0.055))


def to_xyz(primaries: list[tuple[float, float]]) -> Array:
    """(3, 3): linear RGB of a space with white D65 -> XYZ."""
    xyz = lambda x, y: np.array([x / y, 1, (1 - x - y) / y])  # noqa: E731
    columns = np.array([xyz(*p) for p in primaries]).T
    return columns * np.linalg.solve(columns, xyz(0.3127, 0.3290))


BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
SRGB = to_xyz([(0.64, 0.33), (0.30, 0.60), (0.15, 0.06)])
SPACES = {
    "Display P3": (to_xyz([(0.680, 0.320), (0.265, 0.690), (0.150, 0.060)]), None),
    "Adobe RGB": (to_xyz([(0.64, 0.33), (0.21, 0.71), (0.15, 0.06)]), 563 / 256),
    "sRGB": (SRGB, None),
}


def rgb_profile(name: str) -> bytes:
    matrix, exponent = SPACES[name]
    cone = BRADFORD @ np.array([0.9642, 1, 0.8249]) / (BRADFORD @ SRGB.sum(1))
    adapted = np.linalg.inv(BRADFORD) @ np.diag(cone) @ BRADFORD @ matrix
    columns = {
        letter + b"XYZ": b"XYZ \0\0\0\0" + struct.pack(">3i", *np.rint(column * 65536).astype(int))
        for letter, column in zip((b"r", b"g", b"b"), adapted.T, strict=True)
    }
    return icc(b"RGB ", columns | {letter + b"TRC": curve(exponent) for letter in (b"r", b"g", b"b")})


GRID = np.stack(np.meshgrid(*[np.arange(0, 256, 17)] * 3, indexing="ij"), -1).reshape(64, 64, 3).astype(np.uint8)
RAMP = np.arange(256, dtype=np.uint8)[None].repeat(2, 0)


@pytest.mark.parametrize("space", ["Display P3", "Adobe RGB"])
@pytest.mark.parametrize("extension", ["png", "tiff", "webp"])
def test_wide_gamuts_become_srgb(tmp_path: Path, space: str, extension: str) -> None:
    matrix, exponent = SPACES[space]
    levels = GRID / 255
    linear = srgb_to_linear(levels) if exponent is None else levels**exponent
    expected = linear_to_srgb(linear @ (np.linalg.inv(SRGB) @ matrix).T)
    path = tmp_path / f"a.{extension}"
    options = {"lossless": True, "exact": True} if extension == "webp" else {}
    Image.fromarray(GRID).save(path, icc_profile=rgb_profile(space), **options)
    assert np.abs(GRID - expected).max() > 30, "the profile must matter"
    assert np.abs(pixels(path) - expected).max() <= 2
    assert np.abs(load_pixels(ImageRef.at(path), (64, 64)).pixels.permute(1, 2, 0).numpy() - expected).max() <= 2


def test_transparency_and_a_palette_keep_their_profile(tmp_path: Path) -> None:
    matrix, _ = SPACES["Display P3"]
    expected = linear_to_srgb(srgb_to_linear(PICTURE / 255) @ (np.linalg.inv(SRGB) @ matrix).T)
    profile = rgb_profile("Display P3")
    Image.fromarray(np.dstack([PICTURE, ALPHA * 0 + 255])).save(tmp_path / "rgba.png", icc_profile=profile)
    PALETTE.save(tmp_path / "palette.png", icc_profile=profile)
    for name in ("rgba.png", "palette.png"):
        assert np.abs(pixels(tmp_path / name) - expected).max() <= 2


@pytest.mark.parametrize("depth", [8, 16])
def test_a_grey_profile_is_applied(tmp_path: Path, depth: int) -> None:
    profile = icc(b"GRAY", {b"kTRC": curve(1.6)})
    array = RAMP if depth == 8 else RAMP * np.uint16(257)
    Image.fromarray(array).save(tmp_path / "a.png", icc_profile=profile)
    expected = linear_to_srgb((RAMP / 255) ** 1.6)[..., None]
    assert np.abs(pixels(tmp_path / "a.png") - expected).max() <= 2


def test_a_grey_picture_may_have_an_rgb_profile(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "a.png", icc_profile=rgb_profile("Adobe RGB"))
    expected = linear_to_srgb((RAMP / 255) ** (563 / 256))[..., None]
    assert np.abs(pixels(tmp_path / "a.png") - expected).max() <= 2


@pytest.mark.parametrize("extension", ["jpg", "tiff"])
def test_cmyk_goes_through_its_profile(tmp_path: Path, extension: str) -> None:
    """A press of grey ink, which darkens as its square; its other inks are clear."""
    corners = [(255 - 255 * black, 128, 128) for _ in range(8) for black in (0, 1)]  # L* a* b*, black the fastest
    ramp = bytes(range(256))
    square = np.rint(np.arange(256) ** 2 / 255).astype(np.uint8).tobytes()
    identity = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + ramp * 3 + square + bytes(sum(corners, ())) + ramp * 3
    profile = icc(b"CMYK", {b"A2B0": table}, pcs=b"Lab ", kind=b"prtr")
    inks = np.zeros((8, 256, 4), np.uint8)
    inks[..., 3] = np.arange(256)
    inks[4:, :, 0] = 200
    Image.fromarray(inks, "CMYK").save(
        tmp_path / f"a.{extension}", icc_profile=profile, **({"quality": 98} if extension == "jpg" else {})
    )
    lightness = 100 * (1 - (np.arange(256) / 255) ** 2)
    luminance = np.where(lightness > 8, ((lightness + 16) / 116) ** 3, lightness / 903.3)
    expected = linear_to_srgb(luminance)[None, :, None]
    difference = np.abs(pixels(tmp_path / f"a.{extension}") - expected)
    assert difference[:, :240].max() <= 3  # beyond, the 8 bits of the table are too few


def test_an_srgb_profile_costs_nothing() -> None:
    assert pictures._to_srgb(rgb_profile("sRGB"), "RGB") is None
    assert pictures._to_srgb(rgb_profile("Display P3"), "RGB") is not None


@pytest.mark.parametrize(
    "profile",
    [b"not a profile", rgb_profile("Display P3")[:300], icc(b"GRAY", {b"kTRC": curve(1.0)}), icc(b"RGB ", {})],
    ids=["nonsense", "cut", "of another kind", "without curves"],
)
def test_a_broken_profile_is_ignored(tmp_path: Path, profile: bytes) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.png", icc_profile=profile)
    assert np.array_equal(pixels(tmp_path / "a.png"), PICTURE)


def large_pictures() -> dict[str, Array]:
    """1600 x 1202 pixels: photographs enlarged, photographs with detail in each pixel, and worse."""
    width, height = 1600, 1202
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:height, :width]

    def tiled(photo: Array) -> Array:
        mirrored = np.concatenate([photo, photo[:, ::-1]], 1)
        return np.tile(np.concatenate([mirrored, mirrored[::-1]]), (4, 4, 1))[:height, :width]

    page = Image.new("RGB", (width, height), "white")
    for i, y in enumerate(range(0, height, 20)):
        line = "The quick brown fox jumps over the lazy dog. " * 5
        ImageDraw.Draw(page).text(
            (0, y), line[i:], fill=("black", "red", "blue")[i % 3], font=ImageFont.load_default(16)
        )
    return {
        "enlarged": np.asarray(Image.fromarray(data.astronaut()).resize((width, height), Image.Resampling.LANCZOS)),
        "coffee": tiled(data.coffee()),
        "chelsea": tiled(data.chelsea()),
        "noise": rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
        "checks": np.where(((rows // 6 + columns // 6) % 2)[..., None] == 1, 255, 0).repeat(3, 2).astype(np.uint8),
        "colours": np.where(((rows // 2 + columns // 2) % 2)[..., None] == 1, [255, 0, 0], [0, 0, 255]).astype(
            np.uint8
        ),
        "text": np.asarray(page),
    }


@pytest.mark.parametrize("quality", [50, 92])
def test_the_short_cut_for_large_jpegs_is_not_seen(tmp_path: Path, quality: int) -> None:
    size = (256, 256)
    fractions = {}
    for name, array in large_pictures().items():
        path = tmp_path / f"{name}.jpg"
        Image.fromarray(array).save(path, quality=quality)
        picture = load_pixels(ImageRef.at(path), size)
        assert picture.size == (1600, 1202)
        difference = (picture.pixels.float() - to_pixels(load_image(ImageRef.at(path)), size).float()).abs()
        assert difference.mean() <= 1, name
        fractions[name] = bool((difference > 0).any())
    assert [name for name, is_short in fractions.items() if is_short] == ["enlarged", "coffee", "chelsea"]


def huge_png(width: int, height: int) -> bytes:
    content = bytearray(png(np.zeros((1, 1), np.uint16), 0))
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def put_odd(path: Path, kind: str) -> None:
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "device":
            path.symlink_to("/dev/zero")
        case "broken link":
            path.symlink_to("nowhere")
        case "looping link":
            path.symlink_to(path)
        case "empty":
            path.touch()
        case "text":
            path.write_text("not a picture")
        case "postscript":
            path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
        case "bomb":
            path.write_bytes(huge_png(20000, 10001))
        case "cut":
            path.write_bytes(encoded(PICTURE, "JPEG")[:-40])
        case "html":
            path.write_text("<!DOCTYPE html><title>404</title>")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("fifo", "not a regular file"),
        ("folder", "not a regular file"),
        ("device", "not a regular file"),
        ("broken link", "broken link"),
        ("looping link", "Too many levels of symbolic links"),
        ("missing", "No such file or directory"),
        ("empty", "empty file"),
        ("text", "not an image that can be read"),
        ("html", "not an image that can be read"),
        ("postscript", "not an image that can be read"),
        ("bomb", "20000 x 10001 pixels, more than the limit of 200000000"),
        ("cut", "image file is truncated"),
    ],
)
@pytest.mark.parametrize("name", ["a.jpg", os.fsdecode(b"\xff\xfe.jpg"), "n" * 251 + ".jpg"])
def test_what_is_no_picture_says_why(tmp_path: Path, kind: str, reason: str, name: str) -> None:
    path = tmp_path / name
    put_odd(path, kind)
    for load in (load_image, lambda image: load_pixels(image, SIZE)):
        with pytest.raises(ImageError, match=f"^{reason}") as error:
            load(ImageRef.at(path))
        assert str(tmp_path) not in str(error.value)


def test_a_file_without_permission_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(FILES["rgb.PnG"][0])
    path.chmod(0)
    code = (
        "import sys, pathlib; from florence2ner.data.pictures import load_image\n"
        "from florence2ner.data.samples import ImageRef\n"
        "load_image(ImageRef.at(pathlib.Path(sys.argv[1])))"
    )
    done = without_roots_powers("-c", code, path)
    assert done.stderr.endswith("florence2ner.data.pictures.ImageError: Permission denied\n")


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_read_or_refused_and_nothing_else(tmp_path: Path, name: str) -> None:
    content = FILES[name][0]
    rng = np.random.default_rng(len(content))
    path = tmp_path / name
    for _ in range(12):
        damaged = np.frombuffer(content, np.uint8)[: rng.integers(1, len(content) + 1)].copy()
        damaged[rng.integers(0, len(damaged), 4)] = rng.integers(0, 256, 4)
        path.write_bytes(damaged.tobytes())
        with suppress(ImageError):
            assert load_image(ImageRef.at(path), max_pixels=10**6).mode == "RGB"


def test_resize_of_a_photograph_is_the_processors(tiny_model: Path, tmp_path: Path) -> None:
    _, processor = load_model(tiny_model)
    photo = Image.fromarray(data.astronaut())
    expected = processor(images=photo, text="<CAPTION>", return_tensors="pt").pixel_values
    model, _ = load_model(tiny_model)
    pixels = to_pixels(photo, (64, 64))[None]
    assert torch.equal(VisionEncoder(model, processor.image_processor).normalise(pixels), expected)
