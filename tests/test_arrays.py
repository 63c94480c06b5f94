"""Arrays in JSON: base64 of .npy files, from friends and from others."""

from __future__ import annotations

import base64
import io
import pickle
import struct
import subprocess
import sys
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.lib import format as npy

from api.engine.arrays import decode_array, encode_array, require, tame
from api.errors import BadArray, BadInput, Undecodable

MAX = 1 << 20


def saved(array: Any, version: tuple[int, int] = (1, 0)) -> bytes:
    buffer = io.BytesIO()
    npy.write_array(buffer, np.asanyarray(array), version)
    return buffer.getvalue()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def with_header(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> str:
    return b64(b"\x93NUMPY" + version + struct.pack("<H", len(header)) + header.encode("latin-1") + data)


def header_of(shape: str, descr: str = "'<f4'", order: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, max_side=9)
FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)


@given(hnp.arrays(np.float32, SHAPES, elements=FLOATS))
def test_what_is_encoded_is_what_numpy_saves_and_decodes_to_itself(array: np.ndarray[Any, Any]) -> None:
    text = encode_array(array)
    assert base64.b64decode(text) == saved(array)
    found = decode_array(text, max_bytes=MAX)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, array)


@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=4, max_side=6), elements=FLOATS), st.sampled_from("<>"), st.booleans())
def test_byte_and_axis_order_do_not_matter(array: np.ndarray[Any, Any], endian: str, fortran: bool) -> None:
    sent = array.astype(endian + "f4", order="F" if fortran else "C")
    found = decode_array(b64(saved(sent)).encode(), max_bytes=MAX)
    assert found.dtype.isnative
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("size", [1, 2, 9, 10, 512, 99_999])
def test_headers_of_all_lengths_are_numpy_s(size: int) -> None:
    array = np.arange(size, dtype=np.float32)
    assert base64.b64decode(encode_array(array)) == saved(array)
    assert base64.b64decode(encode_array(array.astype(np.float64))) == saved(array)


@pytest.mark.parametrize(
    "header",
    [
        "{'shape': (2,), 'fortran_order': False, 'descr': '<f4'}",
        '{"descr":"<f4","fortran_order":False,"shape":(2,)}',
        "{ 'descr' : '<f4' , 'fortran_order' : True , 'shape' : ( 2 , ) , }  \n",
    ],
)
def test_headers_of_other_writers_are_read(header: str) -> None:
    found = decode_array(with_header(header, struct.pack("<2f", 1, 2)), max_bytes=MAX)
    assert found.tolist() == [1, 2]


@pytest.mark.parametrize("dtype", ["<f8", "<f2", "<i4", "<u1", "|b1", "<c8", "<U3"])
def test_other_types_are_invalid(dtype: str) -> None:
    with pytest.raises(BadArray, match="only float32"):
        decode_array(b64(saved(np.zeros(2).astype(dtype))), max_bytes=MAX)


def test_structures_and_objects_are_invalid_and_nothing_is_unpickled() -> None:
    with pytest.raises(BadArray):
        decode_array(b64(saved(np.zeros(2, [("a", "<f4"), ("b", "<f4")]))), max_bytes=MAX)
    bomb = pickle.dumps(pytest.fail)
    with pytest.raises(BadArray):
        decode_array(with_header(header_of("(1,)", "'|O'"), bomb), max_bytes=MAX)


@pytest.mark.parametrize("shape", ["(0,)", "(3, 0)", "(0, 999999999999999999)"])
def test_arrays_without_elements_are_invalid(shape: str) -> None:
    with pytest.raises(BadArray, match="no element"):
        decode_array(with_header(header_of(shape)), max_bytes=MAX)


def test_a_promise_of_terabytes_costs_nothing() -> None:
    tracemalloc.start()
    for shape in ("(2500000000000,)", "(999999999999999999, 999999999999999999)", "(" + "9" * 400 + ",)"):
        with pytest.raises(Undecodable):
            decode_array(with_header(header_of(shape), bytes(8)), max_bytes=MAX)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


GOOD = header_of("(2,)")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "=",
        "hello",
        "$$$$",
        "ünicode!",
        b64(saved(np.zeros(2, np.float32)))[:-1],
        b64(saved(np.zeros(2, np.float32))) + "\n",
        " " + b64(saved(np.zeros(2, np.float32))),
        b64(saved(np.zeros(2, np.float32))) + "AAAA",
        "data:application/octet-stream;base64," + b64(saved(np.zeros(2, np.float32))),
        b64(b"\x93NUMPY\x01\x00"),
        b64(b"\x93NUMPY\x01\x00\xff"),
        b64(b"\x93NUMPY\x01\x00\xff\xff{"),
        b64(saved(np.zeros(2, np.float32), (2, 0))),
        b64(saved(np.zeros(2, np.float32))[:-1]),
        b64(saved(np.zeros(2, np.float32)) + b"\0"),
        b64(b"PK\x03\x04" + bytes(60)),
        b64(pickle.dumps([1.0, 2.0])),
        with_header(GOOD, bytes(8), b"\x03\x00"),
        with_header(GOOD.replace("'shape'", "'size'"), bytes(8)),
        with_header(GOOD.replace("'shape': (2,)", "'descr': '<f4'"), bytes(8)),
        with_header(GOOD.replace("}", "'more': 1}"), bytes(8)),
        with_header(GOOD.replace("(2,)", "(1+1,)"), bytes(8)),
        with_header(GOOD.replace("(2,)", "(-2,)"), bytes(8)),
        with_header(GOOD.replace("(2,)", "(2)"), bytes(8)),
        with_header(GOOD.replace("(2,)", "[2]"), bytes(8)),
        with_header(GOOD.replace("(2,)", "(,2)"), bytes(8)),
        with_header(GOOD.replace("(2,)", "(2 2)"), bytes(8)),
        with_header(GOOD.replace("(2,)", "(" + "1," * 40 + ")"), bytes(4)),
        with_header(GOOD.replace("False", "__import__('os').abort()"), bytes(8)),
        with_header("(" * 60_000, bytes(8)),
        with_header("{" + "'descr':[]," * 90, bytes(8)),
        with_header(" " * 1020, bytes(8)),
    ],
)
def test_garbage_is_unsupported(text: str) -> None:
    before = time.perf_counter()
    with pytest.raises(Undecodable) as caught:
        decode_array(text, max_bytes=MAX)
    assert caught.value.status == 415
    assert str(caught.value.detail).startswith("unsupported array")
    assert time.perf_counter() - before < 10


@pytest.mark.parametrize("size", [1030, 5_000, 5_001, 5_002, 100_000])
def test_a_real_array_beyond_the_bound_is_invalid_and_garbage_beyond_it_unsupported(size: int) -> None:
    text = encode_array(np.zeros(size, np.float32))
    with pytest.raises(BadArray, match="at most 4096"):
        decode_array(text, max_bytes=4096)
    for garbage in ("A" * len(text), text + "AAAA", text[:-4]):
        with pytest.raises(Undecodable):
            decode_array(garbage, max_bytes=4096)


@given(st.binary(max_size=200), st.integers(0, 140), st.integers(0, 255))
def test_damage_never_crashes(tail: bytes, place: int, value: int) -> None:
    data = bytearray(saved(np.zeros(4, np.float32)) + tail)
    data[place] = value
    try:
        found = decode_array(b64(bytes(data)), max_bytes=MAX)
    except BadInput:
        return
    assert found.nbytes <= len(data)


def test_require_names_both_shapes() -> None:
    array = np.zeros((3,), np.float32)
    assert require(array, (3,)) is array
    with pytest.raises(BadArray, match=r"\(3,\).*\(512,\)") as caught:
        require(array, (512,))
    assert caught.value.status == 422


def test_tame_leaves_numbers_alone_and_takes_the_wild_ones_in() -> None:
    wild = np.array([1.5, -100, 100, 101, -1e30, np.inf, -np.inf, np.nan], np.float32)
    wild.flags.writeable = False
    tamed = tame(wild)
    assert tamed.dtype == np.float32
    assert tamed.tolist() == [1.5, -100, 100, 100, -100, 100, -100, 0]
    assert tame(np.array(np.nan, np.float32)).tolist() == 0


def test_the_module_brings_neither_torch_nor_pillow() -> None:
    code = "import sys, api.engine.arrays; print([name for name in ('torch', 'PIL') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
