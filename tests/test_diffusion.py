"""The family ``diffusion``: every architecture in every mode, prompts, schedulers, sizes, cancel, previews, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the libraries warn of their own ways while they are imported
    import torch

    from tests import tiny_pipelines as tiny

from api.conf import DiffusionConf, ModelConf, is_hub, parse_config, resolve
from api.engine.wire import pack, unpack
from api.errors import BadInput, Cancelled, ConfigError
from api.models import formats
from api.models.base import Place
from api.models.diffusion import prompts, schedulers
from api.models.diffusion.pipelines import quiet
from api.models.diffusion.prompts import read
from api.models.families import diffusion as family
from api.models.families.diffusion import Diffusion
from api.models.formats import diffusers as folder_format
from api.models.jobs import Diffuse, Generate, Output, Pixels

SEED = 20
ROOT = Path(__file__).resolve().parents[1]
NAMES = sorted(tiny.BUILDERS)
MODES = dict.fromkeys(NAMES, ("txt2img", "img2img", "inpaint")) | {"lcm": ("txt2img", "img2img"), "sd_inpaint": ("inpaint",)}
CASES = [(name, mode) for name in NAMES for mode in MODES[name]]
SIDE = 32


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pipelines")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {name: tiny.save(name, folder) for name in NAMES}


@pytest.fixture(scope="module")
def models(saved: dict[str, Path]) -> Iterator[dict[str, Diffusion]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    print(f"seed {SEED}")
    yield {name: load(saved[name]) for name in NAMES}
    torch.set_num_threads(threads)


def load(file: Path, **keys: Any) -> Diffusion:
    conf = ModelConf(file=file, warmup=False, diffusion=DiffusionConf(**{"steps": 3, **keys}))
    model = family.load(formats.find(file).read(file), conf, Place(id=file.name))
    assert isinstance(model, Diffusion)
    return model


def picture(side: int = SIDE) -> Pixels:
    return np.random.default_rng(SEED).integers(0, 256, (side, side, 3), np.uint8)


def half_mask(side: int = SIDE) -> Pixels:
    mask = np.zeros((side, side), np.uint8)
    mask[: side // 2] = 255
    return mask


def make(model: Diffusion, mode: str, prompt: str = "a red face", **fields: Any) -> Diffuse:
    side = max(SIDE, model.info.extra["min_size"])
    given: dict[str, Any] = {
        "txt2img": {},
        "img2img": {"image": picture(side)},
        "inpaint": {"image": picture(side), "mask": half_mask(side)},
    }
    return model.prepare(
        Diffuse(model=model.info.id, **{"prompt": prompt, "seed": SEED, "width": side, "height": side, **given[mode], **fields})
    )


def ignore(index: int, total: int, previews: Any = None) -> None:
    """A lane that has nothing else to do."""


def run(model: Diffusion, *jobs: Diffuse) -> list[Pixels]:
    return [output.image for output in model.run(jobs, ignore)]


# Every architecture, every mode.


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_a_picture_is_the_same_alone_and_in_company(models: dict[str, Diffusion], name: str, mode: str) -> None:
    model = models[name]
    texts = ["a red face", "a (green:1.4) [cat|dog]", "some face"]
    jobs = [make(model, mode, text, seed=SEED + i) for i, text in enumerate(texts)]
    assert len({model.key(job) for job in jobs}) == 1
    together = run(model, *jobs)
    assert len({image.tobytes() for image in together}) == len(jobs)
    for job, image in zip(jobs, together, strict=True):
        assert image.shape == (job.height, job.width, 3)
        assert np.array_equal(run(model, job)[0], image)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_tells_what_it_can_do(models: dict[str, Diffusion], name: str) -> None:
    info = models[name].info
    assert tuple(info.extra["modes"]) == MODES[name]
    assert info.long
    assert info.kinds == ("Diffuse",)
    assert info.extra["scheduler"] in info.extra["schedulers"]
    assert unpack(pack(info)[4:]) == info
    json.dumps(dict(info.extra))


def test_modes_share_one_set_of_weights(models: dict[str, Diffusion]) -> None:
    found = models["sd"].pipelines
    assert len({id(pipeline.unet) for pipeline in found.values()}) == 1
    assert len({id(pipeline.vae) for pipeline in found.values()}) == 1


def test_what_the_mask_keeps_is_kept_pixel_for_pixel(models: dict[str, Diffusion]) -> None:
    mask = half_mask()
    mask[SIDE // 2 :, : SIDE // 2] = 64  # a soft part
    image = run(models["sd"], make(models["sd"], "inpaint", mask=mask))[0]
    kept, new = picture()[SIDE // 2 :, SIDE // 2 :], image[SIDE // 2 :, SIDE // 2 :]
    assert np.array_equal(kept, new)
    assert not np.array_equal(image[: SIDE // 2], picture()[: SIDE // 2])
    soft = np.abs(image[SIDE // 2 :, : SIDE // 2].astype(int) - picture()[SIDE // 2 :, : SIDE // 2])
    assert 0 < soft.max() <= 64  # a quarter of the greatest possible change


def test_strength_tells_how_far_the_picture_is_left(models: dict[str, Diffusion]) -> None:
    model = models["sd_wide"]
    near, far = run(model, make(model, "img2img", strength=0.2, steps=20))[0], run(model, make(model, "img2img", strength=1.0, steps=20))[0]
    base = run(model, make(model, "img2img", strength=0.05, steps=20))[0].astype(int)
    assert np.abs(near - base).mean() < np.abs(far - base).mean()


def test_the_output_tells_what_was_used(models: dict[str, Diffusion]) -> None:
    model = models["sd"]
    job = model.prepare(Diffuse(model="sd", prompt="x", negative_prompt="y"))
    assert job.seed is not None
    (output,) = model.run([job], ignore)
    assert isinstance(output, Output)
    assert output.seed == job.seed
    expected = {"prompt": "x", "negative_prompt": "y", "steps": 3, "guidance_scale": 7.0, "width": 32, "height": 32, "scheduler": "pndm"}
    assert output.extra == expected | {"strength": None}


@pytest.mark.parametrize("change", [{"seed": 1}, {"prompt": "b"}, {"negative_prompt": "b"}, {"guidance_scale": 3.0}, {"steps": 5}])
def test_parameters_change_the_picture(models: dict[str, Diffusion], change: dict[str, Any]) -> None:
    model = models["sd"]
    job = make(model, "txt2img")
    assert not np.array_equal(run(model, job)[0], run(model, make(model, "txt2img", **change))[0])
    assert np.array_equal(run(model, job)[0], run(model, job)[0])


def test_guidance_of_one_needs_no_negative_pass_and_is_steady_too(models: dict[str, Diffusion]) -> None:
    model = models["sd"]
    jobs = [make(model, "txt2img", guidance_scale=1.0, seed=seed) for seed in range(3)]
    assert [image.tobytes() for image in run(model, *jobs)] == [run(model, job)[0].tobytes() for job in jobs]


def test_other_sizes(models: dict[str, Diffusion]) -> None:
    model = models["sd"]
    assert run(model, make(model, "txt2img", width=40, height=64))[0].shape == (64, 40, 3)
    job = model.prepare(Diffuse(model="sd", prompt="", image=np.zeros((70, 45, 3), np.uint8)))
    assert (job.width, job.height) == (40, 64)  # of 45×70, made to fit 64 and the unit


# Schedulers.


@pytest.mark.parametrize("name", list(schedulers.SCHEDULERS))
def test_every_scheduler(models: dict[str, Diffusion], name: str) -> None:
    model = models["sd_wide"]
    jobs = [make(model, "txt2img", scheduler=name, seed=seed, steps=4) for seed in range(2)]
    images = run(model, *jobs)
    assert np.array_equal(run(model, jobs[1])[0], images[1])
    image = run(model, make(model, "img2img", scheduler=name, steps=4))[0]
    assert image.std() > 0


@pytest.mark.parametrize(
    ("given", "meant"), [("K_LMS", "k-lms"), ("DPMPP 2M Karras", "dpm++ 2m karras"), ("euler_a", "euler-a"), ("PLMS", "plms")]
)
def test_names_of_schedulers_are_read_kindly(given: str, meant: str) -> None:
    assert schedulers.canonical(given, tuple(schedulers.SCHEDULERS)) == meant


def test_linear_multistep_weights() -> None:
    sigmas = np.array([4.0, 3.0, 2.0, 1.0])
    assert schedulers.adams_bashforth(sigmas[:2], 1) == pytest.approx([-1.0])
    # Adams–Bashforth on even steps: 3/2, -1/2 and 23/12, -16/12, 5/12 (Hairer, Nørsett & Wanner 1993, III.1).
    assert schedulers.adams_bashforth(sigmas[:3], 2) == pytest.approx([-1.5, 0.5])
    assert schedulers.adams_bashforth(sigmas, 3) == pytest.approx([-23 / 12, 16 / 12, -5 / 12])


def test_linear_multistep_solves_a_linear_equation_better_than_euler() -> None:
    """A denoiser of Gaussian data of deviation 1: dx/dσ = x σ / (1 + σ²), so x(0) = x(σ) / √(1 + σ²)."""
    errors = {}
    for name in ("euler", "k-lms"):
        with quiet():
            errors[name] = solve(name)
    assert errors["k-lms"] < errors["euler"] / 2, errors


def solve(name: str) -> float:
    """How far 20 steps from the largest noise end from the truth."""
    own = schedulers.SCHEDULERS["euler"][0](prediction_type="sample", timestep_spacing="trailing")
    scheduler: Any = schedulers.build(name, own)
    scheduler.set_timesteps(20)
    x = torch.full((1, 1, 8, 8), float(scheduler.init_noise_sigma))
    wanted = float(x[0, 0, 0, 0]) / float((1 + scheduler.sigmas[0] ** 2) ** 0.5)
    for i, t in enumerate(scheduler.timesteps):
        sigma = float(scheduler.sigmas[i])
        scheduler.scale_model_input(x, t)
        x = scheduler.step(x / (1 + sigma**2), t, x, return_dict=False)[0]
    return abs(float(x[0, 0, 0, 0]) - wanted)


# Prompts.


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a face", (("a face", 1.0),)),
        ("a (red) face", (("a ", 1.0), ("red", 1.1), (" face", 1.0))),
        ("((red))", (("red", pytest.approx(1.21)),)),
        ("(red:1.3)", (("red", 1.3),)),
        ("[red]", (("red", pytest.approx(1 / 1.1)),)),
        ("[red, blue]", (("red, blue", pytest.approx(1 / 1.1)),)),
        ("(a (b:2):0.5)", (("a ", 0.5), ("b", 1.0))),
        (r"a \(b\) \[c\] \| \n", ((r"a (b) [c] | \n", 1.0),)),
        ("(a", (("(a", 1.0),)),
        ("a) b] (c", (("a) b] (c", 1.0),)),
        ("(a]", (("(a]", 1.0),)),
        ("", ()),
        ("()", ()),
        ("(time: now)", (("time: now", 1.1),)),
    ],
)
def test_emphasis(text: str, pieces: object) -> None:
    assert read(text).at(0, 10) == pieces


def test_alternation() -> None:
    prompt = read("a [cat|dog|(cow:1.5)] here")
    assert ["".join(text for text, _ in prompt.at(i, 4)) for i in range(4)] == ["a cat here", "a dog here", "a cow here", "a cat here"]
    assert prompt.at(2, 4)[1] == ("cow", 1.5)
    prompt = read("[cat,dog,0.4]")
    assert ["".join(text for text, _ in prompt.at(i, 10)) for i in range(10)] == ["cat"] * 4 + ["dog"] * 6
    assert len(prompt.variants(10)) == 2
    assert len(read("no turns").variants(1000)) == 1


@pytest.mark.parametrize(("text", "told"), [("(" * 17 + "x", "deep"), ("(x:11)", "too large")])
def test_prompts_that_are_refused(text: str, told: str) -> None:
    with pytest.raises(BadInput, match=told):
        read(text)


def test_any_text_is_read_in_little_time() -> None:
    rng = np.random.default_rng(SEED)
    for _ in range(200):
        text = "".join(rng.choice(list("ab:1.,|()[]\\ "), 200))
        try:
            prompt = read(text)
        except BadInput:
            continue
        for pieces in prompt.variants(5):
            assert all(isinstance(piece, str) and 0 <= weight < 10.0**prompts.MAX_DEPTH for piece, weight in pieces)


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux"])
def test_long_prompts_are_used_whole(models: dict[str, Diffusion], name: str) -> None:
    model = models[name]
    long = "abcdefg " * 12  # each letter is a token here
    jobs = [make(model, "txt2img", long + end) for end in ("red", "green")]
    assert model.key(jobs[0])[-1] > 1  # type: ignore[index]
    assert model.key(jobs[0]) != model.key(make(model, "txt2img"))
    first, second = run(model, *jobs)
    assert not np.array_equal(first, second)
    assert np.array_equal(run(model, jobs[0])[0], first)


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "lcm"])
def test_emphasis_and_alternation_are_seen_in_pictures(models: dict[str, Diffusion], name: str) -> None:
    model = models[name]
    texts = ["a red face", "a (red:3) face", "a [red|blue] face", "a [red,blue,0.4] face", "a [red,blue,1.0] face"]
    images = [run(model, make(model, "txt2img", text, steps=6, guidance_scale=30.0))[0].tobytes() for text in texts]
    assert len(set(images[:4])) == 4
    assert images[4] == images[0]  # never turns


def test_a_batch_of_prompts_that_turn(models: dict[str, Diffusion]) -> None:
    model = models["sdxl"]
    jobs = [make(model, "img2img", text, steps=6) for text in ("[a|b]", "[c,d,0.5]", "e")]
    assert [image.tobytes() for image in run(model, *jobs)] == [run(model, job)[0].tobytes() for job in jobs]


# The lane's side: steps, cancel, previews.


def test_steps_are_told_and_previews_made_on_wish_only(models: dict[str, Diffusion]) -> None:
    model = models["sd_wide"]
    seen: list[tuple[int, int]] = []
    shown: list[Any] = []

    def step(index: int, total: int, previews: Any = None) -> None:
        seen.append((index, total))
        if previews is not None and index == 2:
            shown.extend(previews())

    jobs = [make(model, "txt2img", seed=seed, steps=4, scheduler="ddim") for seed in range(2)]
    plain = run(model, *jobs)
    watched = [output.image for output in model.run(jobs, step)]
    assert [image.tobytes() for image in plain] == [image.tobytes() for image in watched]
    assert seen[:5] == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert len(shown) == 2
    assert all(image.dtype == np.uint8 and image.shape[2] == 3 for image in shown)


def test_previews_of_large_latents_are_a_linear_map(models: dict[str, Diffusion]) -> None:
    decoder = models["sd"].decoder
    latents = torch.randn(2, 4, 20, 24, generator=torch.Generator().manual_seed(SEED))
    images = decoder.preview(latents)
    assert [image.shape for image in images] == [(20, 24, 3)] * 2
    flat = torch.nn.functional.interpolate(torch.randn(1, 4, 5, 5), scale_factor=4)
    small = decoder.preview(flat)[0].astype(float)
    true = (decoder.render(flat)[0] * 255).permute(1, 2, 0).numpy()[::2, ::2]
    assert np.corrcoef(small.ravel(), true.ravel())[0, 1] > 0.2


@pytest.mark.parametrize(("name", "mode"), [("sd", "txt2img"), ("sdxl", "inpaint"), ("flux", "img2img"), ("sd3", "txt2img")])
def test_cancel_takes_effect_within_one_step_and_leaves_nothing_behind(models: dict[str, Diffusion], name: str, mode: str) -> None:
    model, calls = models[name], []

    def step(index: int, total: int, previews: Any = None) -> None:
        calls.append(index)
        if index == 2:
            raise Cancelled()

    job = make(model, mode, steps=8)
    before = run(model, job)[0]
    with pytest.raises(Cancelled):
        model.run([job], step)
    assert calls == [0, 1, 2]
    assert np.array_equal(run(model, job)[0], before)


def test_a_step_may_run_another_model(models: dict[str, Diffusion]) -> None:
    """The lane lets short jobs in between; here another pipeline stands for them."""
    outer, inner = models["sd"], models["sd_wide"]
    job, other = make(outer, "txt2img"), make(inner, "txt2img")
    wanted = run(outer, job)[0]

    def step(index: int, total: int, previews: Any = None) -> None:
        inner.run([other], ignore)

    found = outer.run([job], step)
    assert np.array_equal(found[0].image, wanted)


# What is refused.


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"width": 36}, "multiple of 8"),
        ({"width": 4096}, "width is 4096"),
        ({"height": 8}, "height is 8"),
        ({"height": -8}, "height is -8"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 151}, "steps is 151"),
        ({"guidance_scale": -1.0}, "guidance_scale"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"seed": 1 << 32}, "seed"),
        ({"scheduler": "magic"}, "known: ddim"),
        ({"strength": 0.5}, "no.* initial|there is none"),
        ({"prompt": "x" * 100_001}, "100001 characters"),
        ({"prompt": "x" * 10_000}, "windows"),
        ({"prompt": "(" * 40}, "deep"),
        ({"safe": True}, "no safety checker"),
        ({"mask": np.zeros((32, 32), np.uint8)}, "no initial picture"),
        ({"image": picture(), "mask": np.zeros((16, 32), np.uint8)}, "both must agree"),
        ({"image": picture().astype(np.float32)}, "uint8"),
        ({"image": np.zeros((32, 32), np.uint8)}, "uint8"),
        ({"image": np.zeros((0, 32, 3), np.uint8)}, "uint8"),
        ({"image": picture(), "strength": 0.0}, "strength is 0"),
        ({"image": picture(), "strength": float("nan")}, "strength is nan"),
        ({"image": picture(), "strength": 0.1}, "no step would be left"),
        ({"scheduler": "lcm", "steps": 60}, "at most 50"),
    ],
)
def test_bad_jobs(models: dict[str, Diffusion], fields: dict[str, Any], told: str) -> None:
    with pytest.raises(BadInput, match=told):
        models["sd"].prepare(Diffuse(**{"model": "sd", "prompt": "a", **fields}))


def test_what_a_pipeline_cannot_do_is_refused_by_name(models: dict[str, Diffusion]) -> None:
    with pytest.raises(BadInput, match="cannot do txt2img; it can do inpaint"):
        models["sd_inpaint"].prepare(Diffuse(model="sd_inpaint", prompt="a"))
    with pytest.raises(BadInput, match="cannot do inpaint"):
        models["lcm"].prepare(Diffuse(model="lcm", prompt="a", image=picture(), mask=half_mask()))
    for name in ("flux", "lcm"):
        with pytest.raises(BadInput, match="no negative_prompt"):
            models[name].prepare(Diffuse(model=name, prompt="a", negative_prompt="b"))
    with pytest.raises(BadInput, match="known: euler"):
        models["sd3"].prepare(Diffuse(model="sd3", prompt="a", scheduler="ddim"))
    with pytest.raises(BadInput, match="diffusion model"):
        models["sd"].prepare(Generate(model="sd"))


# Configuration.


def test_keys_are_used(saved: dict[str, Path]) -> None:
    model = load(saved["sd"], scheduler="Euler A", guidance=2.0, max_size=40, max_steps=10, max_pictures=3, steps=30)
    job = model.prepare(Diffuse(model="sd", prompt="a"))
    assert (job.scheduler, job.guidance_scale, job.steps) == ("euler-a", 2.0, 10)
    assert (model.info.extra["max_size"], model.info.extra["max_steps"], model.info.extra["max_pictures"]) == (40, 10, 3)
    with pytest.raises(BadInput, match="width is 48"):
        model.prepare(Diffuse(model="sd", prompt="a", width=48))
    with pytest.raises(ConfigError, match="magic"):
        load(saved["sd"], scheduler="magic")
    with pytest.raises(ConfigError, match="for GPUs"):
        load(saved["sd"], offload="model")


def test_slices_and_tiles_give_about_the_same_picture(models: dict[str, Diffusion], saved: dict[str, Path]) -> None:
    model = load(saved["sd"], attention_slicing=True, vae_tiling=True)
    found, wanted = run(model, make(model, "txt2img"))[0], run(models["sd"], make(models["sd"], "txt2img"))[0]
    assert np.abs(found.astype(int) - wanted).max() <= 2


def test_the_hub_is_no_path(tmp_path: Path) -> None:
    config = resolve(parse_config({"models": {"a": {"file": "hub:own/na.me-2", "relative": True}}}), tmp_path)
    assert str(config.models["a"].file) == "hub:own/na.me-2"
    assert is_hub(config.models["a"].file)
    assert formats.find(config.models["a"].file).describe(config.models["a"].file).family == "diffusion"


@pytest.mark.parametrize("name", ["hub:", "hub:a", "hub:a/b/c", "hub:../x", "hub:a/..", "hub:a b/c"])
def test_names_that_are_none_of_the_hub(name: str) -> None:
    with pytest.raises(ConfigError, match="owner/name"):
        folder_format.hub_name(Path(name))


def test_offline_the_hub_says_so(models: dict[str, Diffusion], tmp_path: Path) -> None:
    tiny.single_file(models["sd"].pipeline, tmp_path / "one.safetensors")
    script = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from api.conf import DiffusionConf\n"
        "from api.errors import ConfigError\n"
        "from api.models.diffusion.pipelines import download, open_file\n"
        "for call in (\n"
        "    lambda: download('nobody/nothing', DiffusionConf()),\n"
        "    lambda: open_file(Path(sys.argv[1]), 'StableDiffusionPipeline', DiffusionConf(), torch.float32),\n"
        "):\n"
        "    try:\n        call()\n"
        "    except ConfigError as error:\n        print(error)\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", script, str(tmp_path / "one.safetensors")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    first, second = done.stdout.splitlines() or [done.stderr, ""]
    assert first.startswith("hub:nobody/nothing: cannot be had")
    assert "offline" in first
    assert "offline, name a folder" in second
    assert "diffusion.config" in second


def test_a_single_file_is_the_same_pipeline(models: dict[str, Diffusion], saved: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "one.safetensors"
    tiny.single_file(models["sd"].pipeline, file)
    found = formats.find(file).describe(file)
    assert (found.arguments["pipeline"], found.parameters) == ("StableDiffusionPipeline", models["sd"].info.parameters)
    model = load(file, config=saved["sd"])
    for mode in MODES["sd"]:
        assert np.array_equal(run(model, make(model, mode))[0], run(models["sd"], make(models["sd"], mode))[0])


# Folders.


def test_a_folder_is_described_without_loading(saved: dict[str, Path]) -> None:
    found = formats.find(saved["sdxl"]).describe(saved["sdxl"])
    assert (found.format, found.family) == ("diffusers", "diffusion")
    assert found.arguments["pipeline"] == "StableDiffusionXLPipeline"
    assert found.parameters == load(saved["sdxl"]).info.parameters


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"_class_name": "EvilPipeline"}, "not served"),
        ({"_class_name": ["pipeline", "Mine"]}, "not served"),
        ({"unet": ["my_module", "UNet"]}, "never code"),
        ({"unet": ["diffusers", 7]}, "never code"),
    ],
)
def test_only_known_classes_are_built(saved: dict[str, Path], tmp_path: Path, change: dict[str, Any], told: str) -> None:
    index = json.loads((saved["sd"] / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps(index | change))
    with pytest.raises(ConfigError, match=told):
        formats.find(tmp_path).describe(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"null", b"[" * 100_000])
def test_a_broken_index(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model_index.json").write_bytes(content)
    with pytest.raises(ConfigError):
        formats.find(tmp_path).describe(tmp_path)


def test_pickles_are_taken_on_wish_only(saved: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(saved["sd"], tmp_path / "sd"))
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    from safetensors.torch import load_file

    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(OSError, match="safetensors"):
        load(folder)
    model = load(folder, allow_pickle=True)
    assert np.array_equal(run(model, make(model, "txt2img"))[0].shape, (SIDE, SIDE, 3))


def test_loras_change_the_picture_by_their_weight(models: dict[str, Diffusion], saved: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "style.safetensors"
    write_lora(models["sd"].pipeline, file)
    plain = run(models["sd"], make(models["sd"], "txt2img"))[0]
    images = {
        weight: run(model, make(model, "txt2img"))[0] for weight in (0.0, 1.0) for model in [load(saved["sd"], loras={str(file): weight})]
    }
    assert np.abs(images[0.0].astype(int) - plain).max() <= 1
    assert np.abs(images[1.0].astype(int) - plain).max() > 2
    for name in ("absent.safetensors", "x" * 300 + ".safetensors", "x" * 5000):
        with pytest.raises(ConfigError, match="none of this name"):
            load(saved["sd"], loras={str(tmp_path / name): 1.0})


def write_lora(pipeline: Any, file: Path) -> None:
    """Rank 2, random, for one attention layer."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(SEED)
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    weight = pipeline.unet.get_submodule(name).weight
    save_file(
        {
            f"unet.{name}.lora_A.weight": torch.randn(2, weight.shape[1], generator=generator),
            f"unet.{name}.lora_B.weight": torch.randn(weight.shape[0], 2, generator=generator),
        },
        file,
    )


def test_an_engine_starts_without_a_word_of_what_is_not_needed() -> None:
    done = subprocess.run([sys.executable, "-c", "import api.models.families.diffusion"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_jobs_cross_the_wire(models: dict[str, Diffusion]) -> None:
    job = make(models["sd"], "inpaint")
    back = unpack(pack(job)[4:])
    assert isinstance(back, Diffuse)
    assert np.array_equal(run(models["sd"], back)[0], run(models["sd"], job)[0])
