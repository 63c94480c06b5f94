"""Directions: factors of style layers, arithmetic on styles, and files of arrays read as data."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from api.conf import load_config
from api.errors import BadInput, ConfigError
from api.models import registry
from api.models.arrays import parse_npy, read_arrays
from api.models.base import Checkpoint, Model, go_on
from api.models.directions import Direction, factorise, factors, fit, move, named, style_weights
from api.models.formats.safetensors import write
from api.models.jobs import Edit, Floats, Generate, Job
from tests.checkpoints import SMALL, THIRD, made
from tests.hostile import pickling as p
from tests.serving import write_config
from tests.test_stylegan3 import small
from tests.tiny import tiny_precure

SEED = 11


def test_factors_are_the_directions_to_which_layers_respond_most() -> None:
    random = np.random.default_rng(SEED)
    basis = np.linalg.qr(random.standard_normal((6, 6)))[0]
    weights = [np.outer(random.standard_normal(40), basis[0]) * 3 + np.outer(random.standard_normal(40), basis[1]) for _ in range(2)]
    weights = [weight + 0.01 * random.standard_normal((40, 6)) for weight in weights]
    vectors, shares = factorise(weights)
    assert vectors.shape == (6, 6)
    assert np.allclose(vectors @ vectors.T, np.eye(6), atol=1e-5)
    assert abs(float(vectors[0] @ basis[0])) > 0.95
    assert abs(float(vectors[1] @ basis[1])) > 0.95
    assert list(shares) == sorted(shares, reverse=True)
    assert abs(float(shares.sum()) - 1) < 1e-5
    rows = np.concatenate([weight / np.linalg.norm(weight, axis=1, keepdims=True) for weight in weights])
    responses = np.square(rows @ vectors.T).sum(axis=0)
    assert list(responses) == sorted(responses, reverse=True)
    assert all(vector[np.abs(vector).argmax()] > 0 for vector in vectors)


def test_factors_are_invariant_to_order_and_deterministic() -> None:
    random = np.random.default_rng(SEED)
    weights = [random.standard_normal((30, 8)).astype(np.float32) for _ in range(3)]
    first, second = factorise(weights)[0], factorise(weights[::-1])[0]
    assert np.allclose(first, second, atol=1e-5)
    with pytest.raises(ValueError, match="at least one"):
        factorise([])


def test_every_family_has_style_layers_for_each_level(tmp_path: Path) -> None:
    second, third = made("stylegan2", **SMALL), made("stylegan3", **THIRD)
    second_rows = style_weights(second)
    assert [len(row) for row in second_rows] == [1, 2, 1, 2, 1, 2, 1, 1]
    assert sum(map(len, second_rows)) == sum("affine.weight" in name for name in second.tensors)
    residual = style_weights(made("stylegan2", **SMALL, architecture="resnet"))
    assert [len(row) for row in residual] == [1] * 8
    precure = tiny_precure(tmp_path / "x.hdf5")
    rows = style_weights(precure)
    assert len(rows) == precure.description.arguments["levels"]
    assert sum(map(len, rows)) == sum("affine.weight" in name for name in precure.tensors)
    geometry: dict[str, Any] = {"critical": 2, "radial": False, "taps": 6, "oversampling": 2, "kernel": 3, "image_channels": 3}
    geometry |= {"first_cutoff": 2, "first_stopband": 2**2.1, "last_stopband": 2**0.3}
    told = type(third.description)(format="t", family="stylegan3", arguments={**third.description.arguments, **geometry})
    assert len(style_weights(type(third)(description=told, tensors=third.tensors))) == 6
    found = factors(second, np.eye(16, dtype=np.float32), 4)
    assert [direction.name for direction in found] == ["sefa-1", "sefa-2", "sefa-3", "sefa-4"]
    assert all(direction.vector.shape == (16,) and direction.description for direction in found)


@pytest.mark.parametrize("family", ["precure", "stylegan2", "stylegan3"])
def test_an_amount_of_one_is_a_standard_deviation_of_w(family: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    makers: dict[str, Callable[[], Checkpoint]] = {
        "precure": lambda: tiny_precure(path, categories=3),
        "stylegan2": lambda: made("stylegan2", **SMALL),
        "stylegan3": small,
    }
    checkpoint = makers[family]()
    write(path, checkpoint)
    model = registry.load_model(load_config(write_config(tmp_path, {"m": {"file": path.name, "relative": True}})), "m")
    jobs = [Generate(model="m", seed=seed, noise="none") for seed in range(400)]
    w = styles_of(model, *jobs)[:, 0]
    for factor in factors(checkpoint, w):
        told = next(one for one in model.info.extra["directions"] if one["name"] == factor.name)
        assert told["strength"] == pytest.approx(factor.strength, rel=0.2)  # 400 and 2048 draws agree so far
        assert told["strength"] == pytest.approx(float(np.std(w @ factor.vector)), rel=0.2)
        moved = styles_of(model, Edit(model="m", seed=1, noise="none", directions={factor.name: 1.0}))[0]
        assert np.allclose((moved - w[1]) @ factor.vector, told["strength"], rtol=1e-3)


def styles_of(model: Model, *jobs: Job) -> Floats:
    outputs = model.run([model.prepare(job) for job in jobs], go_on)
    return np.stack([output.styles for output in outputs if output.styles is not None])


def test_moves_add_up_and_keep_to_their_levels() -> None:
    styles = np.random.default_rng(SEED).standard_normal((5, 4)).astype(np.float32)
    flat = Direction(name="a", vector=np.ones(4, np.float32), strength=2.0)
    deep = Direction(name="b", vector=np.arange(20, dtype=np.float32).reshape(5, 4), levels=(1, 3))
    assert np.allclose(move(styles, flat, 0.5), styles + 1)
    moved = move(styles, deep, -1.0)
    assert np.allclose(moved[[1, 3]], (styles - deep.vector)[[1, 3]])
    assert np.array_equal(moved[[0, 2, 4]], styles[[0, 2, 4]])
    assert np.array_equal(move(styles, deep, 1.0, [0])[1:], styles[1:])
    assert np.allclose(move(move(styles, flat, 1), deep, 1), move(move(styles, deep, 1), flat, 1), atol=1e-6)
    assert np.array_equal(move(styles, flat, 0.0), styles)
    for bad in ([5], [-1]):
        with pytest.raises(BadInput, match="levels"):
            move(styles, flat, 1.0, bad)
    with pytest.raises(BadInput, match="finite"):
        move(styles, flat, float("nan"))
    with pytest.raises(ConfigError, match="shape"):
        move(styles, Direction(name="c", vector=np.ones(3, np.float32)), 1.0)
    with pytest.raises(ConfigError, match="finite"):
        Direction(name="d", vector=np.array([np.inf], np.float32))


def test_files_of_every_kind_give_the_same_arrays(tmp_path: Path) -> None:
    random = np.random.default_rng(SEED)
    happy, deep = random.standard_normal((1, 6)).astype(np.float32), random.standard_normal((3, 6))
    path = tmp_path / "no suffix"
    with path.open("wb") as file:
        np.save(file, happy)
    assert np.array_equal(read_arrays(path).arrays[""], happy)
    for save in (np.savez, np.savez_compressed):
        with path.open("wb") as file:
            save(file, happy=happy, deep=deep)
        check(read_arrays(path).arrays, happy, deep)
    for zipped in (True, False):
        content = {"happy": torch.from_numpy(happy), "deep": torch.from_numpy(deep), "note": "text", "n": 3}
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        check(read_arrays(path).arrays, happy, deep)
        torch.save([torch.from_numpy(happy)], path, _use_new_zipfile_serialization=zipped)
        assert np.array_equal(read_arrays(path).arrays["0"], happy)
    save_file({"happy": happy, "deep": deep}, path, {"about": "x"})
    check(read_arrays(path).arrays, happy, deep)
    assert read_arrays(path).metadata == {"about": "x"}
    assert fit(happy, 3, 6).shape == (6,)
    assert fit(deep, 3, 6).dtype == np.float32
    assert named({"": happy}, None, "x") is happy
    assert named({"a": happy, "b": deep}, "b", "x") is deep
    for entry in (None, "c"):
        with pytest.raises(ConfigError, match="a, b"):
            named({"a": happy, "b": deep}, entry, "x")


def check(arrays: Any, happy: Any, deep: Any) -> None:
    assert set(arrays) == {"happy", "deep"}
    assert np.array_equal(arrays["happy"], happy)
    assert np.array_equal(arrays["deep"], deep)


def npy(header: str, body: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + body


def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", content)
    return buffer.getvalue()


def safe(header: bytes, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + body


BIG = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (33554432,), }\n", bytes(1 << 27))
HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "text": b"hello, directions",
    "bare pickle": pickle.dumps([1, 2, 3]),
    "object array": npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n", pickle.dumps(1)),
    "npy told larger": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }\n", bytes(4)),
    "npy with code": npy("{'descr': __import__('os').system('x'), 'fortran_order': False, 'shape': (1,), }\n", bytes(4)),
    "npy with a deep header": npy("(" * 4000),
    "npy cut short": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4,), }\n")[:20],
    "npz bomb": zipped(BIG),
    "npz of objects": zipped(npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n", pickle.dumps(1))),
    "npz damaged": zipped(BIG)[:200] + zipped(BIG)[-200:],
    "zip of nothing known": b"PK\x03\x04" + bytes(100),
    "torch file that calls": p.legacy(p.call("os system", p.text("true"))),
    "torch file that loads": p.legacy(p.call("torch.storage _load_from_bytes", p.blob(b""))),
    "torch expanded": p.legacy(
        p.call("torch._utils _rebuild_tensor_v2", p.storage(), p.number(0), p.items(p.number(1 << 39)), p.items(p.number(0)))
    ),
    "safetensors told larger": safe(b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'),
    "safetensors nested": safe(b'{"a":' + b"[" * 100_000),
    "safetensors of a list": safe(b"[]      "),
    "safetensors without bounds": safe(b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,-4]}}'),
}


@pytest.mark.parametrize("title", list(HOSTILE))
def test_hostile_files_are_refused(title: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(HOSTILE[title])
    with pytest.raises(ConfigError):
        read_arrays(path)


def test_lists_that_share_lists_cost_little(tmp_path: Path) -> None:
    path = tmp_path / "x"
    lists = b"".join(b"](" + b"h" + bytes([i]) + (b"h" + bytes([i])) * 99 + b"eq" + bytes([i + 1]) + b"0" for i in range(60))
    path.write_bytes(p.legacy(b"]q\x000" + lists + b"h\x3c"))
    assert read_arrays(path).arrays == {}


def test_npy_of_every_kind_and_order() -> None:
    for dtype in ("<f4", ">f8", "<f2", "|u1", "<i8"):
        for order in ("C", "F"):
            array = np.arange(12).reshape(3, 4).astype(dtype)
            buffer = io.BytesIO()
            np.save(buffer, np.asarray(array, order="F" if order == "F" else "C"))
            assert np.array_equal(parse_npy(buffer.getvalue()), array)
