"""Pictures to bytes and back: our PNG, recipes, the mark of origin, and clients' files, good and bad."""

from __future__ import annotations

import base64
import contextlib
import functools
import io
import itertools
import os
import random
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageOps, PngImagePlugin

from api.engine.codec import MIME_TYPES, Encoding, decode_picture, encode, parse_recipe, png, read_recipe, recipe_text, unpack_picture
from api.engine.codec.containers import ADAM7, MOST_SCANS, png_chunks
from api.engine.codec.crew import Crew
from api.engine.codec.metadata import exif_comment, read_comment, read_orientation
from api.engine.codec.png import (
    BARE,
    CLEAN,
    FLAT,
    LARGE,
    PLAIN,
    REPEATS,
    RUNS,
    Strip,
    Way,
    best_way,
    combine,
    compress,
    deflate,
    filter_none,
    flatness,
    middle,
)
from api.errors import BadInput, TooLarge, Undecodable
from api.models.jobs import Pixels
from bench.encode import PICTURES, drawing, photograph, shaded

RECIPE: dict[str, Any] = {"Seed": 7, "Model": "faces", "Size": "64x64", "Psi": 0.7, "Label": "7", "Noise": "random"}
PROMPTED = {"Prompt": "a fox in the snow, ☃ für 2", "Negative prompt": "blurry\ntext", "Steps": 20, "Seed": 7}
FORMATS = list(MIME_TYPES)
MAX = 1 << 20


def save(image: Image.Image, name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def reopen(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunk(png: bytes, kind: bytes, content: bytes) -> bytes:
    """The PNG with another chunk behind its header."""
    return png[:33] + png_chunk(kind, content) + png[33:]


# Writing PNG.

SHAPES = st.tuples(st.integers(1, 70), st.integers(1, 20), st.sampled_from([1, 3, 4]))


@settings(deadline=None)
@given(hnp.arrays(np.uint8, SHAPES, elements=st.integers(0, 255), fill=st.integers(0, 255)))
def test_png_keeps_every_pixel(image: Pixels) -> None:
    data = encode(image, Encoding("png"))
    picture = reopen(data)
    assert picture.mode == {1: "L", 3: "RGB", 4: "RGBA"}[image.shape[2]]
    np.testing.assert_array_equal(np.asarray(picture).reshape(image.shape), image)


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("size", [64, 200, 600])
def test_png_is_a_valid_file_of_known_chunks(name: str, size: int) -> None:
    image = PICTURES[name](size)
    data = encode(image, Encoding("png"), RECIPE)
    with Image.open(io.BytesIO(data)) as picture:
        picture.verify()
    np.testing.assert_array_equal(np.asarray(reopen(data)), image)
    assert [part.name for part in png_chunks(data)] == [b"IHDR", b"iTXt", b"tEXt", b"IDAT", b"IEND"]
    # With the check sum of what is compressed, which Pillow does not look at.
    assert len(zlib.decompress(next(data[part.inner : part.end] for part in png_chunks(data) if part.name == b"IDAT"))) == size * (
        3 * size + 1
    )


@pytest.mark.parametrize("size", [64, 256])
@pytest.mark.parametrize("name", ["photograph", "soft"])
def test_png_of_a_photograph_is_at_most_fifteen_per_cent_larger_than_pillow_s(name: str, size: int) -> None:
    image = PICTURES[name](size)
    assert len(encode(image, Encoding("png"), RECIPE)) <= 1.15 * len(save(Image.fromarray(image), "PNG"))


@pytest.mark.parametrize(("paint", "kind"), [(drawing, range(CLEAN, 101)), (shaded, range(FLAT, CLEAN))])
def test_png_of_a_large_drawing_is_at_most_fifteen_per_cent_larger_than_pillow_s(paint: Callable[[int], Pixels], kind: range) -> None:
    image = paint(768)
    assert flatness(as_rows(image)) in kind
    assert len(encode(image, Encoding("png"), RECIPE)) <= 1.15 * len(save(Image.fromarray(image), "PNG"))


def test_a_small_drawing_finds_its_own_filter() -> None:
    """On one this small, ISA-L without a filter is better than all else."""
    image = drawing(64)
    assert image.size < LARGE
    assert compress(as_rows(image), filter_none) in encode(image, Encoding("png"))


def pressed(image: Pixels, way: Way) -> bytes:
    """The picture in one piece."""
    return way.press(as_rows(image), slice(0, len(image)), True).data


@pytest.mark.parametrize(("paint", "size", "way"), [(drawing, 400, BARE), (drawing, 768, REPEATS), (shaded, 768, RUNS)])
def test_a_larger_drawing_finds_its_own_way(paint: Callable[[int], Pixels], size: int, way: Way) -> None:
    rows = as_rows(paint(size))
    assert best_way(rows, middle(size), flatness(rows)) is way


def test_flat_light_that_runs_would_blow_up_is_left_to_matches() -> None:
    slope = np.mgrid[:768, :768].sum(0) * 255 // 1536
    rows = as_rows(np.repeat(slope[:, :, None], 3, 2).astype(np.uint8))
    assert FLAT <= flatness(rows) < CLEAN
    assert best_way(rows, middle(768), flatness(rows)) is PLAIN


# Large pictures, in strips.


@pytest.mark.parametrize("way", [PLAIN, BARE, RUNS, REPEATS])
@pytest.mark.parametrize("cuts", [[0, 1, 40], [0, 13, 39, 40], list(range(41))])
def test_strips_are_one_stream(way: Way, cuts: list[int]) -> None:
    rows = as_rows(shaded(40))
    strips = [way.press(rows, slice(start, end), end == 40) for start, end in itertools.pairwise(cuts)]
    stream = b"\x78\x01" + b"".join(strip.data for strip in strips)
    whole = functools.reduce(combine, strips)
    assert zlib.decompress(stream + whole.adler.to_bytes(4)) == way.filter(rows, None).tobytes()  # which looks at the check sum
    assert whole.size == rows.size + 40


@given(st.binary(max_size=3000), st.binary(max_size=3000))
def test_check_sums_of_two_parts_make_that_of_the_whole(upper: bytes, lower: bytes) -> None:
    strips = [Strip(b"", zlib.adler32(part), len(part)) for part in (upper, lower)]
    assert combine(*strips) == Strip(b"", zlib.adler32(upper + lower), len(upper + lower))


@pytest.mark.parametrize("shape", [(1, 700_000, 3), (3, 900_000, 1), (2_000_000, 1, 1)])
def test_pictures_of_any_shape_can_be_cut(shape: tuple[int, int, int]) -> None:
    image = np.random.default_rng(6).integers(0, 9, shape, np.uint8)
    stream = b"".join(deflate(as_rows(image)))
    unfiltered = np.frombuffer(zlib.decompress(stream), np.uint8).reshape(shape[0], -1)
    assert (unfiltered[:, 0] == 2).all()
    np.testing.assert_array_equal(np.cumsum(unfiltered[:, 1:], 0, np.uint8), as_rows(image))


@pytest.mark.parametrize("size", [500, 1024])
def test_bytes_do_not_depend_on_the_cores(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    image = photograph(size)
    found = set()
    for cores in (1, 2, 6):
        monkeypatch.setattr(png, "CREW", Crew(cores))
        found.add(encode(image, Encoding("png"), RECIPE))
    assert len(found) == 1


def test_a_crew_takes_no_more_cores_than_there_are_and_are_allowed() -> None:
    assert Crew(1).helpers is None
    crew, there = Crew(3), len(os.sched_getaffinity(0))
    meeting = threading.Barrier(min(3, there))  # they can only all be there on as many threads
    assert len(set(crew.share_out([lambda: meeting.wait(10.0)] * min(3, there)))) == min(3, there)


def test_who_has_no_helper_does_all_the_work_itself() -> None:
    held, crew = threading.Event(), Crew(8)
    crew.helpers = ThreadPoolExecutor(1)
    crew.helpers.submit(held.wait, 10.0)  # the only helper is busy with somebody else's picture
    assert crew.share_out([functools.partial(pow, 2, power) for power in range(5)]) == [1, 2, 4, 8, 16]
    assert not held.is_set()
    held.set()


def test_a_failure_of_a_part_is_told() -> None:
    with pytest.raises(ZeroDivisionError):
        Crew(8).share_out([functools.partial(divmod, 1, number) for number in (1, 1, 0)])


def faint(size: int) -> Pixels:
    """Dark and nearly flat: runs would save a tenth."""
    return PICTURES["soft"](size) // 40


@pytest.mark.parametrize("paint", [photograph, PICTURES["soft"], PICTURES["static"], faint])
def test_what_is_not_flat_takes_the_fast_way(paint: Callable[[int], Pixels]) -> None:
    image = paint(300)
    assert pressed(image, PLAIN) in encode(image, Encoding("png"))


@pytest.mark.parametrize(("step", "flat"), [(0, 100), (1, 0)])
def test_flatness_counts_values_that_equal_the_one_above(step: int, flat: int) -> None:
    rows = np.repeat(np.arange(64, dtype=np.uint8)[:, None] * step, 90, 1)
    assert flatness(rows) == flat
    rows[:, :45] = 7
    assert flatness(rows) == (100 + flat) // 2


def as_rows(image: Pixels) -> Pixels:
    return image.reshape(len(image), -1)


def test_views_are_written_as_they_look() -> None:
    image = photograph(32)
    for view in (image[::-1], image[:, ::2], image.transpose(1, 0, 2), image[:, :, ::-1]):
        np.testing.assert_array_equal(np.asarray(reopen(encode(view, Encoding("png")))), view)


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4, 3), np.uint8)]
)
def test_other_arrays_are_refused(image: Any) -> None:
    with pytest.raises(ValueError, match="a picture is uint8"):
        encode(image, Encoding("png"))


# All formats.


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("name", FORMATS)
def test_each_format_shows_the_picture(name: Any, channels: int) -> None:
    image = np.dstack([photograph(64), photograph(64)[:, :, :1]])[:, :, :channels]
    picture = reopen(encode(np.ascontiguousarray(image), Encoding(name), RECIPE))
    assert Image.MIME[picture.format or ""] == Encoding(name).mime_type == MIME_TYPES[name]
    found = np.asarray(picture.convert({1: "L", 3: "RGB", 4: "RGBA" if name != "jpeg" else "RGB"}[channels])).astype(float)
    found = found.reshape(64, 64, -1)
    assert np.abs(found - image[:, :, : found.shape[2]]).mean() < 9


def test_lossless_webp_keeps_every_pixel_also_under_full_transparency() -> None:
    image = np.dstack([photograph(40), np.zeros((40, 40, 1), np.uint8)])
    picture = reopen(encode(image, Encoding("webp", lossless=True), RECIPE))
    np.testing.assert_array_equal(np.asarray(picture), image)


@pytest.mark.parametrize("name", ["jpeg", "webp", "avif"])
def test_quality_makes_larger_files(name: Any) -> None:
    image = photograph(64)
    sizes = [len(encode(image, Encoding(name, quality))) for quality in (1, 50, 100)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2]


@pytest.mark.parametrize(("values", "message"), [(("gif",), "png, jpeg"), (("jpeg", 0), "1 … 100"), (("jpeg", None, True), "lossless")])
def test_an_encoding_that_does_not_exist_is_refused(values: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Encoding(*values)


@pytest.mark.parametrize("name", FORMATS)
def test_same_picture_and_recipe_same_bytes_also_on_threads(name: Any) -> None:
    images = [paint(48) for paint in PICTURES.values()] + [paint(600) for paint in (drawing, shaded) if name == "png"]
    expected = [encode(image, Encoding(name), PROMPTED) for image in images]
    order = list(range(len(images))) * 6
    random.Random(5).shuffle(order)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda index: encode(images[index], Encoding(name), PROMPTED), order))
    assert found == [expected[index] for index in order]


@pytest.mark.parametrize("name", FORMATS)
def test_every_picture_tells_that_a_model_made_it(name: Any) -> None:
    packet = reopen(encode(drawing(16), Encoding(name))).info["xmp"]
    root = ElementTree.fromstring(packet)
    description = root.find(".//{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description")
    assert description is not None
    kind = description.get("{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType")
    assert kind == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


@pytest.mark.parametrize("recipe", [RECIPE, PROMPTED])
@pytest.mark.parametrize("name", FORMATS)
def test_every_picture_keeps_its_recipe(name: Any, recipe: dict[str, Any]) -> None:
    assert read_recipe(encode(drawing(16), Encoding(name), recipe)) == recipe
    assert read_recipe(encode(drawing(16), Encoding(name))) is None


@pytest.mark.parametrize("recipe", [RECIPE, PROMPTED])
def test_other_programs_find_the_recipe_where_web_uis_put_it(recipe: dict[str, Any]) -> None:
    assert reopen(encode(drawing(16), Encoding("png"), recipe)).info["parameters"] == recipe_text(recipe)
    for name in ("jpeg", "webp", "avif"):
        comment = reopen(encode(drawing(16), Encoding(name), recipe)).getexif().get_ifd(0x8769)[0x9286]
        assert comment[:8] == b"UNICODE\0"
        assert comment[8:].decode("utf-16-be") == recipe_text(recipe)


def test_a_recipe_too_long_for_a_jpeg_segment_is_left_out() -> None:
    recipe = {"Prompt": "x" * 40_000, "Seed": 7}
    assert read_recipe(encode(drawing(16), Encoding("jpeg"), recipe)) is None
    assert read_recipe(encode(drawing(16), Encoding("webp"), recipe)) == recipe


# Recipes.

KEYS = st.from_regex(r"\w([\w /-]{0,12}\w)?", fullmatch=True).filter(str.isascii)
TEXTS = st.one_of(
    st.text(max_size=30), st.text('ab1,:"\\\n .-e{}', max_size=12), st.sampled_from(["7", "True", "-0", "1e5", "0.5", "nan", '""'])
)
VALUES = st.one_of(TEXTS, st.booleans(), st.integers(-(2**64), 2**64), st.floats(allow_nan=False, allow_infinity=False))
LINES = st.lists(st.one_of(TEXTS, st.sampled_from(["Negative prompt: a", "Steps: 20, Seed: 1", "Prompt: b", "", " "])), max_size=4).map(
    "\n".join
)
RECIPES = st.builds(
    lambda rest, prompt, negative: (
        rest | ({"Prompt": prompt} if prompt is not None else {}) | ({"Negative prompt": negative} if negative is not None else {})
    ),
    st.dictionaries(KEYS.filter(lambda key: key not in ("Prompt", "Negative prompt")), VALUES, max_size=5),
    st.none() | LINES,
    st.none() | LINES,
)


def exact(recipe: dict[str, Any]) -> list[tuple[str, type, str]]:
    return sorted((key, type(value), repr(value)) for key, value in recipe.items())


@settings(max_examples=250, deadline=None)
@given(RECIPES)
def test_parsing_is_the_inverse_of_writing(recipe: dict[str, Any]) -> None:
    text = recipe_text(recipe)
    assert exact(parse_recipe(text)) == exact(recipe)
    text.encode("utf-8")


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(), st.text('ab:,"\\\n P')))
def test_any_text_can_be_parsed(text: str) -> None:
    assert isinstance(parse_recipe(text), dict)


def test_the_text_is_what_web_uis_write() -> None:
    recipe = {"Prompt": "a fox", "Negative prompt": "blurry", "Steps": 20, "Sampler": "DDIM", "Seed": 7, "Psi": 0.7, "Note": "a, b"}
    text = 'a fox\nNegative prompt: blurry\nSteps: 20, Sampler: DDIM, Seed: 7, Psi: 0.7, Note: "a, b"'
    assert recipe_text(recipe) == text
    assert recipe_text(RECIPE) == 'Seed: 7, Model: faces, Size: 64x64, Psi: 0.7, Label: "7", Noise: random'


def test_a_web_ui_s_text_is_read() -> None:
    text = (
        "portrait of a (fox:1.2), <lora:x:0.5>\nsecond line, too\nNegative prompt: lowres,\nbad hands\n"
        "Steps: 25, Sampler: DPM++ 2M Karras, CFG scale: 7.5, Seed: 12, Size: 512x768, "
        'Model hash: 6ce0161689, Lora hashes: "x: 12, y: 3", Version: v1.9.4\n'
    )
    assert parse_recipe(text) == {
        "Prompt": "portrait of a (fox:1.2), <lora:x:0.5>\nsecond line, too",
        "Negative prompt": "lowres,\nbad hands",
        "Steps": 25,
        "Sampler": "DPM++ 2M Karras",
        "CFG scale": 7.5,
        "Seed": 12,
        "Size": "512x768",
        "Model hash": "6ce0161689",
        "Lora hashes": "x: 12, y: 3",
        "Version": "v1.9.4",
    }


def test_what_only_looks_like_a_number_stays_a_text() -> None:
    text = "Model hash: 1234567e89, Strength: 0.70, Zip: 007, CFG scale: 7.0, Steps: -3"
    assert parse_recipe(text) == {"Model hash": "1234567e89", "Strength": "0.70", "Zip": "007", "CFG scale": 7.0, "Steps": -3}


def test_numpy_s_numbers_lists_and_nothing_have_their_place() -> None:
    recipe = {"Psi": np.float32(0.5), "Seed": np.uint32(7), "Levels": [0, 1], "Label": None}
    assert recipe_text(recipe) == 'Psi: 0.5, Seed: 7, Levels: "[0, 1]"'


@pytest.mark.parametrize("key", ["", " a", "a ", "a:b", "a,b", "ü", "a\nb"])
def test_a_key_that_could_not_be_read_back_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="cannot be a recipe's key"):
        recipe_text({key: 1})


def test_long_hostile_texts_are_parsed_in_no_time() -> None:
    before = time.perf_counter()
    for text in ("a" * 500_000, 'a: "' + "\\" * 500_000, 'a:"x,' * 100_000, "a " * 250_000, "\n" * 500_000, "a:" * 250_000):
        parse_recipe(text)
    assert time.perf_counter() - before < 30


# Reading recipes from files that are not ours.


def test_all_kinds_of_png_text_are_read() -> None:
    text = recipe_text(PROMPTED)
    for zipped in (False, True):
        info = PngImagePlugin.PngInfo()
        info.add_itxt("parameters", text, lang="en", tkey="Rezept", zip=zipped)
        assert read_recipe(save(Image.new("RGB", (4, 4)), "PNG", pnginfo=info)) == PROMPTED
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", recipe_text(RECIPE), zip=True)
    assert read_recipe(save(Image.new("RGB", (4, 4)), "PNG", pnginfo=info)) == RECIPE


def test_exif_of_either_byte_order_is_read() -> None:
    text = recipe_text(PROMPTED)
    comment = b"UNICODE\0" + text.encode("utf-16-le")
    little = (
        b"II*\0" + struct.pack("<IHHHIII", 8, 1, 0x8769, 4, 1, 26, 0) + struct.pack("<HHHIII", 1, 0x9286, 7, len(comment), 44, 0) + comment
    )
    assert read_comment(little) == text
    assert read_comment(exif_comment(text)) == text
    assert read_recipe(save(Image.new("RGB", (4, 4)), "JPEG", exif=b"Exif\0\0" + little)) == PROMPTED


def test_compressed_text_is_unpacked_within_a_bound() -> None:
    bomb = zlib.compress(bytes(64 << 20), 9)
    data = encode(drawing(16), Encoding("png"))
    tracemalloc.start()
    for content in (b"parameters\0\0" + bomb, b"parameters\0\1\0\0\0" + bomb):
        read_recipe(with_chunk(data, b"zTXt" if content[11:12] == b"\0" else b"iTXt", content))
        read_recipe(with_chunk(data, b"iTXt", content))
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()
    assert read_recipe(with_chunk(data, b"zTXt", b"parameters\0\0garbage")) is None


@pytest.mark.parametrize("name", FORMATS)
def test_damage_never_crashes_a_reader(name: Any) -> None:
    rng = random.Random(11)
    data = encode(drawing(16), Encoding(name), PROMPTED)
    for cut in rng.sample(range(len(data)), 60):
        read_recipe(data[:cut])
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(data))] = rng.randrange(256)
        read_recipe(bytes(damaged))
        if name != "avif":
            with contextlib.suppress(BadInput):
                assert decode_picture(bytes(damaged), max_pixels=MAX).shape[2] in (3, 4)


@settings(deadline=None)
@given(st.binary(max_size=120), st.sampled_from([b"MM\0*", b"II*\0", b"Exif\0\0MM\0*", b""]))
def test_any_exif_block_can_be_looked_at(tail: bytes, head: bytes) -> None:
    assert 1 <= read_orientation(head + tail) <= 8
    read_comment(head + tail)


@settings(deadline=None)
@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe1", b"RIFF\x60\0\0\0WEBPVP8 ", b"\0\0\0\x1cftypavif"]),
)
def test_any_bytes_can_be_looked_at(tail: bytes, head: bytes) -> None:
    assert read_recipe(head + tail) is None
    with pytest.raises(Undecodable):
        decode_picture(head + tail, max_pixels=MAX)


# Opening clients' pictures.


def rgba_picture() -> Image.Image:
    return Image.fromarray(np.dstack([photograph(40), np.tile(np.arange(40, dtype=np.uint8) * 6, (40, 1))]))


def see_through(mode: str) -> Image.Image:
    image = Image.fromarray(photograph(40)).convert(mode)
    image.info["transparency"] = {"P": 3, "RGB": (1, 2, 3), "L": 77}[mode]
    return image


GOOD: dict[str, tuple[str, Callable[[], Image.Image], dict[str, Any]]] = {
    "rgb png": ("PNG", lambda: Image.fromarray(photograph(40)), {}),
    "alpha png": ("PNG", rgba_picture, {}),
    "grey png": ("PNG", lambda: rgba_picture().convert("L"), {}),
    "grey alpha png": ("PNG", lambda: rgba_picture().convert("LA"), {}),
    "black and white png": ("PNG", lambda: rgba_picture().convert("1"), {}),
    "palette png": ("PNG", lambda: Image.fromarray(photograph(40)).convert("P"), {}),
    "transparent palette png": ("PNG", lambda: see_through("P"), {"transparency": 3}),
    "transparent rgb png": ("PNG", lambda: see_through("RGB"), {"transparency": (1, 2, 3)}),
    "transparent grey png": ("PNG", lambda: see_through("L"), {"transparency": 77}),
    "jpeg": ("JPEG", lambda: Image.fromarray(photograph(40)), {}),
    "progressive jpeg": ("JPEG", lambda: Image.fromarray(photograph(40)), {"progressive": True}),
    "grey jpeg": ("JPEG", lambda: rgba_picture().convert("L"), {}),
    "cmyk jpeg": ("JPEG", lambda: Image.fromarray(photograph(40)).convert("CMYK"), {}),
    "annotated jpeg": (
        "JPEG",
        lambda: Image.fromarray(photograph(40)),
        {"comment": "hello", "icc_profile": bytes(1000), "restart_marker_rows": 1},
    ),
    "webp": ("WEBP", lambda: Image.fromarray(photograph(41)), {}),
    "alpha webp": ("WEBP", rgba_picture, {"quality": 50}),
    "lossless alpha webp": ("WEBP", rgba_picture, {"lossless": True}),
    "annotated alpha webp": ("WEBP", rgba_picture, {"icc_profile": bytes(1000), "xmp": b"<x/>"}),
}


@pytest.mark.parametrize("name", GOOD)
def test_pictures_of_all_kinds_are_opened_as_pillow_shows_them(name: str) -> None:
    kind, make, options = GOOD[name]
    data = save(make(), kind, **options)
    picture = reopen(data)
    expected = np.asarray(picture.convert("RGBA" if picture.has_transparency_data else "RGB"))
    found = decode_picture(data, max_pixels=41 * 41)
    assert found.dtype == np.uint8
    assert found.shape[2] == (4 if "alpha" in name or "transparent" in name else 3)
    np.testing.assert_array_equal(found, expected)


def test_adobe_s_mark_tells_the_colours_of_a_jpeg() -> None:
    data = bytearray(save(Image.fromarray(photograph(40)), "JPEG", keep_rgb=True))
    frame, scan = data.index(b"\xff\xc0"), data.index(b"\xff\xda")
    assert bytes(data[frame + 10 : frame + 17 : 3]) == b"RGB"
    # Without names that tell it, only the mark says that the components are not luma and chroma.
    data[frame + 10 : frame + 17 : 3] = data[scan + 5 : scan + 10 : 2] = b"\1\2\3"
    found = decode_picture(bytes(data), max_pixels=MAX)
    assert np.abs(found.astype(int) - photograph(40)).mean() < 9


def test_sixteen_bits_become_eight() -> None:
    deep = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    found = decode_picture(save(Image.fromarray(deep), "PNG"), max_pixels=MAX)
    np.testing.assert_array_equal(found, np.repeat((deep >> 8).astype(np.uint8)[:, :, None], 3, 2))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(10))
def test_pictures_stand_upright(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = save(Image.fromarray(photograph(40)[:, :24]), kind, exif=exif)
    upright = ImageOps.exif_transpose(reopen(data))
    np.testing.assert_array_equal(decode_picture(data, max_pixels=MAX), np.asarray(upright))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_truncated_pictures_are_refused(kind: str) -> None:
    data = save(Image.fromarray(photograph(40)), kind)
    for cut in [*range(0, len(data), 97), len(data) - 1, len(data) - 2]:
        with pytest.raises(Undecodable):
            decode_picture(data[:cut], max_pixels=MAX)


def test_a_png_whose_pixels_end_early_is_refused() -> None:
    whole = zlib.compress(bytes(40 * 121))
    short = zlib.compress(bytes(20 * 121))
    head = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 40, 40, 8, 2, 0, 0, 0))
    for stream in (short, whole[: len(whole) // 2], b""):
        with pytest.raises(Undecodable):
            decode_picture(head + png_chunk(b"IDAT", stream) + png_chunk(b"IEND", b""), max_pixels=MAX)
    halves = png_chunk(b"IDAT", whole[:9]) + png_chunk(b"IDAT", whole[9:])
    assert decode_picture(head + halves + png_chunk(b"IEND", b""), max_pixels=MAX).max() == 0


def interlaced(rows: Pixels) -> bytes:
    """An interlaced grey PNG, which Pillow reads and does not write."""
    passes = [rows[y::dy, x::dx] for x, y, dx, dy in ADAM7]
    stream = b"".join(b"\0" + row.tobytes() for part in passes if part.size for row in part)
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", rows.shape[1], rows.shape[0], 8, 0, 0, 0, 1))
    return b"\x89PNG\r\n\x1a\n" + head + png_chunk(b"IDAT", zlib.compress(stream)) + png_chunk(b"IEND", b"")


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (5, 5), (9, 17), (40, 33)])
def test_interlaced_png_is_opened(shape: tuple[int, int]) -> None:
    grey = photograph(40)[: shape[0], : shape[1], 0]
    np.testing.assert_array_equal(decode_picture(interlaced(grey), max_pixels=MAX)[:, :, 0], grey)


def huge_png() -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(bytes(1 << 20))) + png_chunk(b"IEND", b"")


def huge_jpeg() -> bytes:
    data = bytearray(save(Image.new("RGB", (16, 16)), "JPEG"))
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = struct.pack(">HH", 60_000, 60_000)
    return bytes(data)


def huge_webp() -> bytes:
    data = bytearray(save(Image.new("RGB", (16, 16)), "WEBP", lossless=True))
    data[21:25] = struct.pack("<I", 0x0FFFFFFF)
    return bytes(data)


def flat_webp(width: int, height: int) -> bytes:
    """The head of a lossy picture of this size, and transparency for it."""
    picture = b"\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", width, height) + bytes(20)
    body = b"WEBP" + b"".join(name + struct.pack("<I", len(part)) + part for name, part in ((b"VP8 ", picture), (b"ALPH", bytes(2))))
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("make", [huge_png, huge_jpeg, huge_webp])
def test_too_many_pixels_are_refused_before_anything_is_decoded(make: Callable[[], bytes]) -> None:
    data = make()
    tracemalloc.start()
    before = time.perf_counter()
    with pytest.raises(TooLarge, match="at most 4194304") as caught:
        decode_picture(data, max_pixels=2048 * 2048)
    assert caught.value.status == 413
    assert time.perf_counter() - before < 10
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_the_limit_counts_exactly_and_is_the_call_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    data = encode(photograph(20), Encoding("png"))
    assert decode_picture(data, max_pixels=400).shape == (20, 20, 3)
    with pytest.raises(TooLarge):
        decode_picture(data, max_pixels=399)
    assert Image.MAX_IMAGE_PIXELS == 1


def animated(kind: str) -> bytes:
    frames = [Image.fromarray(drawing(16)), Image.fromarray(photograph(16))]
    return save(frames[0], kind, save_all=True, append_images=frames[1:])


def many_scans() -> bytes:
    data = save(Image.fromarray(photograph(16)), "JPEG", progressive=True)
    start, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    return data[:end] + data[start:end] * MOST_SCANS + data[end:]


def many_chunks() -> bytes:
    data = encode(drawing(16), Encoding("png"))
    return data[:33] + png_chunk(b"teXt", b"") * 70_000 + data[33:]


BAD: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"hello",
    "svg": lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "gif": lambda: save(Image.new("RGB", (4, 4)), "GIF"),
    "bmp": lambda: save(Image.new("RGB", (4, 4)), "BMP"),
    "tiff": lambda: save(Image.new("RGB", (4, 4)), "TIFF"),
    "avif": lambda: encode(drawing(16), Encoding("avif")),
    "animated webp": lambda: animated("WEBP"),
    "jpeg of many scans": many_scans,
    "png of many chunks": many_chunks,
    "png without width": lambda: huge_png().replace(struct.pack(">I", 60_000), bytes(4)),
    "webp without width": lambda: flat_webp(0, 5),
    "webp without height": lambda: flat_webp(5, 0),
    "wrong crc": lambda: encode(drawing(16), Encoding("png"))[:-1] + b"\0",
    "png with a second head": lambda: with_chunk(
        encode(drawing(16), Encoding("png")), b"IHDR", struct.pack(">IIBBBBB", 9, 9, 3, 7, 9, 9, 9)
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_other_formats_and_broken_files_are_refused(name: str) -> None:
    with pytest.raises(Undecodable) as caught:
        decode_picture(BAD[name](), max_pixels=MAX)
    assert caught.value.status == 415


def test_an_animated_png_is_its_first_frame() -> None:
    np.testing.assert_array_equal(decode_picture(animated("PNG"), max_pixels=MAX), drawing(16))


def test_only_the_formats_asked_for_are_opened() -> None:
    data = encode(drawing(16), Encoding("jpeg"))
    with pytest.raises(Undecodable, match="JPEG; send PNG"):
        decode_picture(data, max_pixels=MAX, formats=("PNG",))


def test_profiles_and_texts_never_reach_pillow() -> None:
    """Pillow warns of each of these, and a warning is an error here."""
    data = encode(drawing(16), Encoding("png"))
    for kind, content in [(b"iCCP", b"x\0\0garbage"), (b"zTXt", b"a\0\0garbage"), (b"acTL", struct.pack(">II", 0, 0)), (b"pHYs", b"")]:
        np.testing.assert_array_equal(decode_picture(with_chunk(data, kind, content), max_pixels=MAX), drawing(16))
    jpeg = save(Image.fromarray(drawing(16)), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(9))
    assert decode_picture(jpeg, max_pixels=MAX).shape == (16, 16, 3)


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,", "DATA:image/svg+xml;base64,"])
def test_pictures_in_json_may_be_data_urls(prefix: str) -> None:
    data = encode(drawing(16), Encoding("png"))
    text = prefix + base64.b64encode(data).decode()
    assert unpack_picture(text, max_bytes=len(data)) == data
    with pytest.raises(TooLarge, match="at most 100"):
        unpack_picture(text, max_bytes=100)


@pytest.mark.parametrize(
    "text", ["data:image/png,hello", "https://example.org/a.png", "abc", "aGVsbG8=\n", "ü", "data:image/png;base64,data:image/png;base64,"]
)
def test_what_is_not_base64_is_refused(text: str) -> None:
    with pytest.raises(Undecodable, match="not base64"):
        unpack_picture(text, max_bytes=100)


def test_the_module_brings_no_torch() -> None:
    code = "import sys, api.engine.codec; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
