"""HDF5 and safetensors checkpoints: what is read, and what is refused."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from api.errors import ConfigError
from api.models import formats
from api.models.base import Array, Checkpoint, Description
from api.models.formats import diffusers, hdf5, safetensors
from api.models.formats.confinement import confined
from tests import golden
from tests.tiny import tiny_precure

WHERE = "synthesizer/init/wmconv/w"


@pytest.mark.parametrize("suffix", ["hdf5", "safetensors"])
@pytest.mark.parametrize("categories", [0, 3])
def test_what_is_written_is_read(tmp_path: Path, suffix: str, categories: int) -> None:
    path = tmp_path / f"net.{suffix}"
    made = tiny_precure(path, categories=categories)
    found = formats.find(path).read(path)
    assert dict(found.description.arguments) == dict(made.description.arguments)
    assert found.description.labels == made.description.labels
    assert found.description.family == "precure"
    assert found.description.tensors == len(made.tensors)
    assert found.description.parameters == sum(array.size for array in made.tensors.values())
    assert formats.find(path).describe(path) == found.description
    assert set(found.tensors) == set(made.tensors)
    assert all(np.array_equal(found.tensors[name], made.tensors[name]) for name in made.tensors)


def test_formats_are_told_by_content_not_by_name(tmp_path: Path) -> None:
    tiny_precure(tmp_path / "a.hdf5")
    tiny_precure(tmp_path / "b.safetensors")
    (tmp_path / "a.hdf5").rename(tmp_path / "a.pkl")
    (tmp_path / "b.safetensors").rename(tmp_path / "b.hdf5")
    assert formats.find(tmp_path / "a.pkl") is formats.known()["hdf5"]
    assert formats.find(tmp_path / "b.hdf5") is formats.known()["safetensors"]


@pytest.mark.parametrize("content", [b"", b"x", b"GIF89a" * 9, b"\0" * 4096, b"\x08" + b"\0" * 7 + b"{      }", b"\xff" * 8 + b"{}"])
def test_other_files_are_no_checkpoints(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ConfigError, match=r"file: no known checkpoint format.*hdf5.*safetensors"):
        formats.find(tmp_path / "file")


def test_absent_files_and_pipes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none: cannot be read: No such file"):
        formats.find(tmp_path / "none")
    with pytest.raises(ConfigError, match="neither a file nor a folder"):
        formats.find(Path("/dev/zero"))


def test_the_mnist_checkpoint() -> None:
    description = formats.find(golden.mnist()).describe(golden.mnist())
    assert description.labels == ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    assert description.arguments["levels"] == 4


# HDF5


def replace(file: h5py.File, **options: Any) -> None:
    """The same dataset, stored otherwise."""
    array = file[WHERE][()]
    del file[WHERE]
    file.create_dataset(WHERE, **{"data": array, **options})


def point(file: h5py.File, link: Any) -> None:
    del file[WHERE]
    file[WHERE] = link


def hide_in_virtual(file: h5py.File) -> None:
    shape = file[WHERE].shape
    del file[WHERE]
    source = h5py.VirtualLayout(shape, np.float32)
    source[:] = h5py.VirtualSource("elsewhere.hdf5", "w", shape)
    file.create_virtual_dataset(WHERE, source)


def keep_outside(file: h5py.File) -> None:
    shape = file[WHERE].shape
    del file[WHERE]
    file.create_dataset(WHERE, shape, np.float32, external=[("/etc/hostname", 0, h5py.h5f.UNLIMITED)])


def change(name: str, value: Any) -> Callable[[h5py.File], None]:
    return lambda file: file.attrs.__setitem__(name, value)


def use_unknown_filter(file: h5py.File) -> None:
    array = file[WHERE][()]
    del file[WHERE]
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk(array.shape)
    properties.set_filter(h5py.h5z.FILTER_SZIP if h5py.h5z.filter_avail(h5py.h5z.FILTER_SZIP) else h5py.h5z.FILTER_NBIT, 1, (4, 4))
    space = h5py.h5s.create_simple(array.shape)
    h5py.h5d.create(file[WHERE.rpartition("/")[0]].id, b"w", h5py.h5t.NATIVE_FLOAT, space, properties)


HOSTILE: dict[str, tuple[Callable[[h5py.File], Any], str]] = {
    "missing": (lambda file: file.__delitem__(WHERE), f"{WHERE}' is missing"),
    "external link": (lambda file: point(file, h5py.ExternalLink("other.hdf5", "/w")), "ExternalLink"),
    "soft link": (lambda file: point(file, h5py.SoftLink("/embedder/w")), "SoftLink"),
    "group": (lambda file: (file.__delitem__(WHERE), file.create_group(WHERE)), "Group"),
    "virtual": (hide_in_virtual, "outside the file"),
    "external storage": (keep_outside, "outside the file"),
    "unknown filter": (use_unknown_filter, "unknown filters"),
    "integers": (lambda file: replace(file, dtype=np.int32), "int32"),
    "references": (lambda file: replace(file, data=file.ref, dtype=h5py.ref_dtype), "object"),
    "texts": (lambda file: replace(file, data="weights"), "object"),
    "shape": (lambda file: replace(file, data=np.zeros((2, 3), np.float32)), r"shape \(2, 3\)"),
    "vast": (lambda file: replace(file, data=None, shape=(1 << 40,), dtype=np.float32, chunks=(1 << 10,)), "shape"),
    "no size": (lambda file: file.attrs.__delitem__("size"), "'size' is missing"),
    "size text": (change("size", "128"), "an integer"),
    "size float": (change("size", 16.0), "an integer"),
    "size array": (change("size", np.arange(4)), "an integer"),
    "size zero": (change("size", 0), "'size' is 0"),
    "levels": (change("levels", 1 << 30), "'levels' is 1073741824"),
    "parameters": (lambda file: [change(name, 8192)(file) for name in ("first_channels", "last_channels")], "parameters"),
    "labels": (change("labels", ["a", "b"]), "'labels'"),
    "labels numbers": (change("labels", np.zeros(3)), "'labels'"),
    "label length": (change("labels", ["a", "b", "c" * 5000]), "longer"),
    "label references": (lambda file: file.attrs.create("labels", [file.ref] * 3, dtype=h5py.ref_dtype), "'labels'"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hdf5_that_is_refused(tmp_path: Path, case: str) -> None:
    path = tmp_path / "net.hdf5"
    tiny_precure(path, categories=3)
    spoil, message = HOSTILE[case]
    with h5py.File(path, "r+") as file:
        spoil(file)
    with pytest.raises(ConfigError, match=message) as caught:
        hdf5.read_here(path)
    assert str(path) in str(caught.value)


def test_damaged_hdf5_is_told(tmp_path: Path) -> None:
    path = tmp_path / "net.hdf5"
    tiny_precure(path, categories=3)
    whole = path.read_bytes()
    random = np.random.default_rng(11)
    for _ in range(8):
        data = bytearray(whole[: random.integers(len(whole))] if random.random() < 0.2 else whole)
        for _ in range(random.integers(1, 20)):
            data[random.integers(min(len(data), 8192))] = random.integers(256)
        path.write_bytes(data)
        try:
            hdf5.read(path)
        except ConfigError as error:
            assert str(path) in str(error)  # noqa: PT017


def test_a_reader_that_does_not_come_back(tmp_path: Path) -> None:
    """The ninth file of such a row keeps the HDF5 library in a loop; its processor time is bounded."""
    path = tmp_path / "net.hdf5"
    path.write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"net\.hdf5: cannot be read, .* signal 9"):
        confined("tests.tiny", "loop", path, seconds=1)
    with pytest.raises(ConfigError, match=r"net\.hdf5: cannot be read, .* signal 11"):
        confined("tests.tiny", "crash", path)


def test_hdf5_in_other_precisions_and_compressed(tmp_path: Path) -> None:
    path = tmp_path / "net.hdf5"
    made = tiny_precure(path)
    with h5py.File(path, "r+") as file:
        replace(file, dtype=np.float64, compression="gzip", shuffle=True, fletcher32=True)
    assert np.array_equal(
        hdf5.read(path).tensors["synthesis.levels.0.layers.0.conv.weight"], made.tensors["synthesis.levels.0.layers.0.conv.weight"]
    )


# safetensors


def test_all_types_of_arrays_and_scalars(tmp_path: Path) -> None:
    path = tmp_path / "any.safetensors"
    tensors: dict[str, Array] = {
        "half": np.array([[1.5]], np.float16),
        "double": np.arange(3.0),
        "long": np.array(7),
        "empty": np.zeros((0, 3), np.float32),
        "flag": np.array([True]),
        "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "big": np.arange(3, dtype=">f4"),
    }
    description = Description(format="x", family="stylegan3", arguments={"filters": [1, 2], "radial": True}, labels=("ä", "b"))
    safetensors.write(path, Checkpoint(description=description, tensors=tensors))
    found = safetensors.read(path)
    assert found.description.arguments == description.arguments
    assert found.description.labels == description.labels
    for name, array in tensors.items():
        assert found.tensors[name].shape == array.shape
        assert np.array_equal(found.tensors[name], array), name
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_the_official_library_reads_it(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.numpy")
    made = tiny_precure(tmp_path / "net.safetensors")
    found = library.load_file(tmp_path / "net.safetensors")
    assert all(np.array_equal(found[name], made.tensors[name]) for name in made.tensors)


def test_bfloat16_comes_as_float32(tmp_path: Path) -> None:
    path = pack(tmp_path, {"w": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}, struct.pack("<HH", 0x3F80, 0xC000))
    array = safetensors.read(path).tensors["w"]
    assert array.dtype == np.float32
    assert array.tolist() == [1.0, -2.0]


def test_unwritable_types(tmp_path: Path) -> None:
    description = Description(format="x", family="x", arguments={})
    with pytest.raises(ConfigError, match="'w' of type complex128"):
        safetensors.write(tmp_path / "x", Checkpoint(description=description, tensors={"w": np.zeros(1, complex)}))
    assert not list(tmp_path.iterdir())


METADATA = {"format": "stylegan-fastapi", "version": "1", "family": "precure", "arguments": "{}", "labels": "null"}


def pack(folder: Path, entries: Any, data: bytes = b"", metadata: Any = METADATA) -> Path:
    header = json.dumps({"__metadata__": metadata, **entries} if isinstance(entries, dict) else entries).encode()
    path = folder / "net.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def entry(shape: Any = (1,), start: Any = 0, end: Any = 4, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("entries", "data", "message"),
    [
        ({"w": entry()}, b"abc", "has 3; it may be cut short"),
        ({"w": entry()}, b"abcde", "has 5"),
        ({"w": entry(), "v": entry()}, b"abcd", "gap or overlap"),
        ({"w": entry(start=4, end=8)}, b"abcdefgh", "gap or overlap"),
        ({"w": entry([1 << 40], 0, 1 << 42)}, b"", "cut short"),
        ({"w": entry([2])}, b"abcd", "not sound"),
        ({"w": entry([-1])}, b"abcd", "not sound"),
        ({"w": entry([True])}, b"abcd", "not sound"),
        ({"w": entry([1.0])}, b"abcd", "not sound"),
        ({"w": entry(1)}, b"abcd", "not sound"),
        ({"w": entry([1] * 50)}, b"abcd", "not sound"),
        ({"w": entry(dtype="F8_E4M3")}, b"abcd", "not sound"),
        ({"w": entry(dtype=[])}, b"abcd", "not sound"),
        ({"w": entry(start="0")}, b"abcd", "not sound"),
        ({"w": 3}, b"abcd", "not sound"),
        ({"w": {}}, b"abcd", "not sound"),
        ({}, b"", "no object of 1"),
        ([1, 2], b"", "no object of 1"),
        ("x" * 9, b"", "no object of 1"),
    ],
)
def test_safetensors_headers_that_are_refused(tmp_path: Path, entries: Any, data: bytes, message: str) -> None:
    path = pack(tmp_path, entries, data)
    for use in (safetensors.describe, safetensors.read):
        with pytest.raises(ConfigError, match=message) as caught:
            use(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", "pt", "format 'pt'"),
        ("version", "2", "version '2'"),
        ("arguments", "[]", "does not tell the architecture"),
        ("arguments", "{", "does not tell the architecture"),
        ("arguments", "[" * 100_000, "does not tell the architecture"),
        ("labels", "[1]", "does not tell the architecture"),
        ("labels", "3", "does not tell the architecture"),
        ("family", None, "no __metadata__ of texts"),
    ],
)
def test_metadata_that_is_refused(tmp_path: Path, key: str, value: Any, message: str) -> None:
    path = pack(tmp_path, {"w": entry()}, b"abcd", METADATA | {key: value})
    with pytest.raises(ConfigError, match=message):
        safetensors.describe(path)


@pytest.mark.parametrize("length", [0, 1, 60, 1 << 24, (1 << 63) - 1, (1 << 64) - 1])
def test_header_lengths_that_the_file_does_not_have(tmp_path: Path, length: int) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b'{"stylegan-fastapi"')
    with pytest.raises(ConfigError, match=f"a header of {length} bytes in a file of 27"):
        safetensors.read(path)


def test_headers_that_are_not_json(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    for text in (b"{]", b"\xff\xfe", b"[" * 200_000, b'{"a": 1e999999}{'):
        path.write_bytes(struct.pack("<Q", len(text)) + text)
        with pytest.raises(ConfigError, match="not valid JSON"):
            safetensors.read(path)


@pytest.mark.parametrize("shape", ["[1e999]", f"[1{4000 * '0'}]", "[1.5]", "[-1]", "[true]", '["1"]', str([1] * 9)])
def test_shapes_of_other_programs_that_are_refused(tmp_path: Path, shape: str) -> None:
    path = tmp_path / "net.safetensors"
    text = f'{{"a": {{"shape": {shape}}}}}'.encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(ConfigError, match="whose shape is not at most eight sizes"):
        diffusers.read_shapes(path)
