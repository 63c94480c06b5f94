"""The programs that made the default models: what they draw, what they learn in a tiny run, what they write."""

from __future__ import annotations

import dataclasses
import math
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from api.models.formats import safetensors

ROOT = Path(__file__).resolve().parents[1]
RECIPES, MODELS = ROOT / "default/recipes", ROOT / "default/models"
sys.path.append(str(RECIPES))

people, portrait, frames, mappings, training = (import_module(n) for n in ("people", "portrait", "frame", "mapping", "training"))
directions, recognisers, faces = (import_module(n) for n in ("directions", "recogniser", "faces"))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def differ(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which pixels differ plainly."""
    return np.asarray(np.abs(a.astype(int) - b.astype(int)).max(-1) > 24)


def test_drawing_is_a_function_of_attributes() -> None:
    face = people.Face(length=0.2)
    picture = face.draw()
    assert picture.shape == (64, 64, 3)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, face.draw())
    assert face.draw(128).shape == (128, 128, 3)
    worn = differ(picture, dataclasses.replace(face, glasses=1.0).draw())
    assert 40 < worn.sum() < 900
    assert not worn[:20].any(), "glasses changed the hair"
    blue = differ(picture, dataclasses.replace(face, background=people.BACKGROUNDS["blue"]).draw())
    assert blue[:4].all()
    assert not blue[26:36, 26:38].any(), "the background changed the face"


def test_moods_change_the_face_alone() -> None:
    calm = people.Face().draw()
    for name, (valence, arousal) in people.MOODS.items():
        face = people.Face(valence=valence, arousal=arousal)
        assert face.mood == name
        changed = differ(calm, face.draw())
        assert changed.any() == (name != "neutral")
        assert not changed[:12].any()
    assert people.Face(valence=1, intensity=0.1).mood == "neutral"


def test_faces_travel_as_rows() -> None:
    for face in people.sample(20, seed=3):
        again = people.Face.of(face.row())
        np.testing.assert_allclose(again.row(), face.row())
    with pytest.raises(ValueError, match="31 features, not 3"):
        people.Face.of([0.0, 1.0, 2.0])


def test_captions_tell_what_is_drawn() -> None:
    face = people.Face(valence=1, hair=people.HAIRS["red"], length=0.9, glasses=1, background=people.BACKGROUNDS["blue"])
    assert people.caption(face) == "a smiling face with long red hair and round glasses, blue background"
    told = {people.caption(face).split(" face")[0] for face in people.sample(100, seed=0)}
    assert told == {"a smiling", "a surprised", "an angry", "a sad", "a calm"}


def test_a_latent_coordinate_rules_one_trait() -> None:
    z = torch.randn(1, 128, generator=torch.Generator().manual_seed(0))
    before = people.features(z)
    other = z.clone()
    other[:, people.KNOB["glasses"]] += 1.5
    moved = (people.features(other * z.norm() / other.norm()) - before).abs()[0]
    trait = portrait.INDEX["glasses"]
    rest = torch.cat([moved[:trait], moved[trait + 1 :]])
    assert moved[trait] > 0.5
    assert rest.max() < 0.3  # normalisation couples all coordinates a little


def test_the_frame_is_orthogonal_and_can_be_inverted() -> None:
    frame = faces.make_frame(64)
    gram = frame.axes @ frame.axes.T
    assert torch.allclose(gram, torch.eye(len(gram)) * gram[0, 0], atol=1e-4)
    rows = people.features(torch.randn(8, 64, generator=torch.Generator().manual_seed(1)))
    assert torch.allclose(frame.features(frame.styles(rows)), rows, atol=1e-4)
    happy = torch.from_numpy(directions.directions(frame)["happy"])
    moved = frame.features(frame.styles(rows) + happy) - rows
    changed = {portrait.FEATURES[i] for i in torch.nonzero(moved.abs().amax(0) > 1e-3).flatten()}
    assert changed == {"valence", "intensity"}


def test_the_mapping_learns_its_traits_and_passes_classes_on() -> None:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)

    def features(z: torch.Tensor) -> torch.Tensor:
        z = z * torch.rsqrt(z.square().mean(1, keepdim=True))
        return torch.stack([z[:, 0].tanh(), z[:, 1] * z[:, 2]], 1)

    frame = frames.Frame.make(features(torch.randn(4000, 24, generator=generator)), 24, generator, 3)
    fit = mappings.Fit(24, 4, [mappings.Block((0,), (0,), 5), mappings.Block((1, 2), (1,), 12)], 3)
    losses = list(mappings.train(fit, features, frame, 500, 0))
    assert losses[-1] < 0.1 < losses[0]
    network = mappings.Mapping(24, 4, 3)
    mappings.install(fit, frame, network)
    z, label = torch.randn(200, 24, generator=generator), torch.arange(200) % 3
    wanted = frame.styles(features(z)) + frame.classes[label] + mappings.SHIFT
    assert (network(z, torch.eye(3)[label]) - wanted).square().mean() < 0.1


def test_training_computes_what_the_served_network_computes() -> None:
    torch.manual_seed(0)
    synthesis = training.Synthesis(16, 4, 24, 8)
    training.prepare(synthesis)
    ws = torch.randn(3, 4, 16)
    assert torch.allclose(training.render(synthesis, ws, 4, torch.float32), synthesis(ws), atol=1e-5)


def test_training_learns_and_resumes_where_it_stopped(tmp_path: Path) -> None:
    def batch(count: int, side: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        w = torch.randn(count, 8, generator=generator)
        colour = w[:, :3].sigmoid()[:, :, None, None]
        return w[:, None].expand(-1, 2, -1), colour.expand(-1, -1, side, side)

    def trainer() -> training.Trainer:  # type: ignore[name-defined]
        torch.manual_seed(0)
        synthesis = training.Synthesis(8, 2, 8, 8)
        training.prepare(synthesis)
        phases = [training.Phase(1, 16, 20, 5e-3, 5e-3), training.Phase(2, 16, 60, 5e-3, 1e-3)]
        return training.Trainer(synthesis, batch, phases, tmp_path / "snapshot.pt", dtype=torch.float32, save_every=30)

    whole = trainer()
    losses = list(whole.run())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    halting = trainer()
    run = halting.run()
    for _ in range(30):
        next(run)
    resumed = trainer()
    resumed.resume()
    assert resumed.done == 30
    assert list(resumed.run()) == pytest.approx(losses[30:], rel=1e-3)


def test_faces_recipe_writes_a_checkpoint_that_is_served(tmp_path: Path) -> None:
    """The whole program, tiny: too short for good pictures, long enough for a whole file."""
    out = tmp_path / "faces.safetensors"
    steps = ["--steps", "3", "--mapping-steps", "30", "--recogniser-steps", "2", "--check-faces", "4"]
    command = [sys.executable, str(RECIPES / "faces.py"), "--out", str(out), "--work", str(tmp_path), *steps]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "4/4 loss" in done.stdout
    assert "happy" in done.stdout
    checkpoint = safetensors.read(out)
    assert checkpoint.description.family == "precure"
    assert checkpoint.tensors["mean_w"].shape == (128,)
    with np.load(tmp_path / "faces.directions.npz", allow_pickle=False) as vectors:
        assert {"happy", "sad", "angry", "surprised", "neutral", "glasses"} <= set(vectors.files)
        assert all(vectors[name].shape == (128,) and vectors[name].dtype == np.float32 for name in vectors.files)
    sheet = [sys.executable, str(RECIPES / "sheet.py"), str(out), str(tmp_path / "sheet.png"), "--rows", "2", "--columns", "3"]
    subprocess.run(sheet, check=True, timeout=60, cwd=tmp_path)
    assert (tmp_path / "sheet.png").stat().st_size > 100


def test_letters_are_drawn_from_fonts() -> None:
    lettering = import_module("lettering")
    if not shutil.which("fc-list") or "Lato-Black" not in subprocess.run(["fc-list"], capture_output=True, text=True).stdout:
        pytest.skip("the fonts that the recipe names are not installed")
    letters = lettering.Lettering.load("Iow")
    rows = lettering.features(torch.zeros(3, 128) + 1e-3)
    pictures = letters.draw(torch.arange(3), rows)
    assert pictures.shape == (3, 3, 32, 32)
    ink = (pictures.amax(1) > 0.55).float().mean((1, 2))
    assert 0.02 < ink[0] < ink[2] < 0.5
    bold = rows.clone()
    bold[:, lettering.INDEX["weight"]] = 1
    assert (letters.draw(torch.arange(3), bold).mean() > pictures.mean()).item()


def committed(name: str) -> Path:
    path = MODELS / name
    if not path.exists():
        pytest.skip(f"{name} is not in default/models")
    return path


def test_committed_directions_do_what_they_say() -> None:
    """At strength 1 nineteen of twenty faces show the mood, and the person stays the same."""
    checkpoint = safetensors.read(committed("faces.safetensors"))
    network = faces.Generator(**checkpoint.description.arguments)
    state = {name: torch.from_numpy(array.copy()) for name, array in checkpoint.tensors.items() if name != "mean_w"}
    network.load_state_dict(state)
    verdicts = directions.check(network.eval(), recognisers.load(committed("faces.recogniser.npz")), faces.make_frame(), count=400)
    for verdict in verdicts:
        assert verdict.share >= 0.95, verdict
        assert verdict.drift < 0.25, verdict
    vectors = directions.directions(faces.make_frame())
    with np.load(committed("faces.directions.npz"), allow_pickle=False) as stored:
        assert set(stored.files) == set(vectors)
        assert all(math.isclose(float(np.abs(stored[name] - vectors[name]).max()), 0, abs_tol=1e-4) for name in vectors)


def test_committed_models_draw_what_the_program_draws() -> None:
    """The mean error against the drawing program is small: the picture of a latent can be foretold."""
    checkpoint = safetensors.read(committed("faces.safetensors"))
    network = faces.Generator(**checkpoint.description.arguments)
    network.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in checkpoint.tensors.items() if name != "mean_w"})
    z = torch.from_numpy(np.random.RandomState(5).randn(24, 128).astype(np.float32))
    with torch.no_grad():
        found, wanted = network(z).clamp(0, 1), portrait.draw(people.features(z))
    assert (found - wanted).abs().mean() < 0.03
