"""Trains default/models/tiny-diffusion: a text-to-image pipeline in the layout of Stable Diffusion, small enough for two CPU cores.

    python default/recipes/diffusion.py --work DIR --out default/models/tiny-diffusion STAGE ...

Stages, in order, each resuming where it stopped: ``render`` (faces and their attributes into memory-mapped arrays), ``tokenizer``,
``vae`` (64×64×3 ↦ 8×8×8, an autoencoder without norms, as small as can be; run it a second time to go on), ``encode`` (all faces to
latents), ``decoder`` (a last round for it alone), ``unet`` (network and text encoder jointly, v-prediction, Salimans & Ho 2022; captions
dropped for classifier-free guidance, Ho & Salimans 2021), ``reader`` (a classifier of the attributes, the judge), ``export`` and
``measure`` (how often prompts with unseen combinations are obeyed).
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from math import cos, pi
from pathlib import Path

import numpy as np
import torch
from captions import CHOICES, attributes, describe, held_out
from diffusers import AutoencoderTiny, DDIMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from people import Face, caption, pictures, sample
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

COUNT, SIDE, WINDOW, WIDTH = 8192, 64, 32, 128
CHANNELS, GRID = 8, 8
DROP = 0.12  # captions left out
START, END = "<|startoftext|>", "<|endoftext|>"
OTHER_WORDS = (  # what people write beside the captions' own words: known as whole tokens, so that prompts stay short
    "man woman girl boy lady guy people someone head hair eyes mouth nose skin wearing spectacles without smile cute pretty "
    "old young beautiful drawing painting picture photo image style art of in at by and or the an is has his her very big small "
    "dark light bright colour color"
)


# Faces.


def find_faces(count: int, seed: int, unseen: bool = False) -> list[Face]:
    """``count`` random faces whose combination of attributes is, or is not, held out."""
    found: list[Face] = []
    while len(found) < count:
        found += [pose(face) for face in sample(count, seed) if held_out(face) == unseen]
        seed += 1000
    return found[:count]


def pose(face: Face) -> Face:
    """The face looking straight ahead, its traits there or not: what a caption does not tell hardly varies, so less is to be learned."""
    length = 0.15 if face.length < 1 / 3 else 0.5 if face.length < 2 / 3 else 0.9
    plain = {"turn": 0.0, "tilt": 0.0, "width": 0.5, "chin": 0.5, "eyes": 0.5, "parting": 0.3, "volume": 0.5, "intensity": 1.0}
    return replace(face, length=length, curl=float(face.curl > 0.6), fringe=float(face.fringe > 0.5), **plain)


def render(work: Path) -> None:
    faces = find_faces(COUNT, 1)
    rows = np.stack([face.row() for face in faces])
    np.save(work / "rows.npy", rows)
    np.save(work / "attributes.npy", np.array([attributes(face) for face in faces]))
    file = np.lib.format.open_memmap(work / "pictures.part", "w+", np.uint8, (COUNT, SIDE, SIDE, 3))
    for start in range(0, COUNT, 64):
        file[start : start + 64] = pictures(rows[start : start + 64])
    file.flush()
    (work / "pictures.part").rename(work / "pictures.npy")


def load_pictures(work: Path) -> np.ndarray:
    return np.load(work / "pictures.npy", mmap_mode="r")


def to_tensor(images: np.ndarray) -> Tensor:
    """uint8 (N, H, W, 3) ↦ (N, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


# The tokenizer: byte-pair encoding (Sennrich et al. 2016) learned from captions, in the files that CLIP's tokenizer reads.


def build_tokenizer(work: Path) -> None:
    rng = np.random.default_rng(2)
    words = Counter(OTHER_WORDS.split() * 50)
    for face in find_faces(4000, 900):
        words.update(split_words(describe(face, rng)))
    merges = learn_merges(words)
    letters = sorted(byte_letters())
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges), START, END]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=WINDOW)
    tokenizer.save_pretrained(work / "tokenizer")
    # The files that older readers know, beside the one that the library writes today.
    (work / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), "utf-8")
    (work / "tokenizer" / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), "utf-8")


def split_words(text: str) -> list[str]:
    return text.replace(",", " , ").split()


def byte_letters() -> list[str]:
    """The printable letters that byte-level BPE writes the 256 bytes with."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in plain] + [chr(256 + i) for i in range(256 - len(plain))]


def learn_merges(words: Counter[str]) -> list[tuple[str, str]]:
    """Merges until every word is one token."""
    spelled = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    merges: list[tuple[str, str]] = []
    while True:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in spelled.items():
            for pair in pairwise(parts):
                pairs[pair] += words[word]
        if not pairs:
            return merges
        best = max(sorted(pairs), key=lambda pair: pairs[pair])
        merges.append(best)
        for word, parts in spelled.items():
            spelled[word] = merge(parts, best)


def merge(parts: list[str], pair: tuple[str, str]) -> list[str]:
    found: list[str] = []
    for part in parts:
        if found and (found[-1], part) == pair:
            found[-1] += part
        else:
            found.append(part)
    return found


# Training in general.


class Average:
    """Exponential moving average of a module's parameters."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.values = [p.detach().clone() for p in module.parameters()]
        self.decay, self.count = decay, 0

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.count += 1
        torch._foreach_lerp_(
            self.values, [p.detach() for p in module.parameters()], 1 - min(self.decay, (1 + self.count) / (10 + self.count))
        )

    @torch.no_grad()
    def restore(self, module: nn.Module) -> None:
        for parameter, value in zip(module.parameters(), self.values, strict=True):
            parameter.copy_(value)


def train(module: nn.Module, loss: Callable[[int], Tensor], file: Path, steps: int, minutes: float, rate: float, decay: float) -> None:
    """Minimises ``loss(step)`` with AdamW, warm-up and a cosine that ends after ``steps`` or ``minutes``, whichever is first.

    Leaves the average in ``module``. ``file`` is where it goes on.
    """
    average = Average(module, decay)
    optimiser = torch.optim.AdamW(module.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.01)
    done, spent = 0, 0.0
    if file.exists():
        state = torch.load(file, weights_only=True)
        done, spent, average.count, average.values = state["done"], state["spent"], state["done"], state["average"]
        module.load_state_dict(state["module"])
        optimiser.load_state_dict(state["optimiser"])
    began, total, shown = time.monotonic() - spent, 0.0, done
    way = done / steps
    for step in range(done, steps):
        if way >= 1:
            break
        way = max((step + 1) / steps, (time.monotonic() - began) / (60 * minutes))
        for group in optimiser.param_groups:
            group["lr"] = rate * min((step + 1) / 100, 0.02 + 0.98 * (1 + cos(pi * min(way, 1.0))) / 2)
        optimiser.zero_grad(set_to_none=True)
        value = loss(step)
        value.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        average.update(module)
        total += value.item()
        if (step + 1) % 50 == 0:
            print(f"{file.stem} {step + 1}/{steps} loss {total / (step + 1 - shown):.4f} {time.monotonic() - began:.0f} s", flush=True)
            total, shown = 0.0, step + 1
        if (step + 1) % 100 == 0 or way >= 1:
            spent = time.monotonic() - began
            state = {
                "done": step + 1 if way < 1 else steps,
                "spent": spent,
                "module": module.state_dict(),
                "average": average.values,
                "optimiser": optimiser.state_dict(),
            }
            torch.save(state, file.with_suffix(".part"))
            file.with_suffix(".part").rename(file)
    average.restore(module)


def seeded(step: int) -> torch.Generator:
    """What a step draws depends on its number alone, so that a resumed training goes the same way."""
    return torch.Generator().manual_seed(step)


# The autoencoder.


CROP, OFFSETS = 32, (0, 8, 16, 16, 16, 24, 32)  # it is trained on parts of pictures, mostly on those that show the face


def build_vae() -> AutoencoderTiny:
    torch.manual_seed(3)
    return AutoencoderTiny(
        encoder_block_out_channels=(40, 40, 40, 40),
        decoder_block_out_channels=(40, 40, 40, 40),
        num_encoder_blocks=(0, 1, 1, 1),
        num_decoder_blocks=(3, 2, 1, 0),
        latent_channels=CHANNELS,
        scaling_factor=1.0,
    ).to(memory_format=torch.channels_last)


def train_vae(work: Path, steps: int, minutes: float, batch: int = 32) -> None:
    vae, images = build_vae(), load_pictures(work)
    if (work / "vae").exists():  # a second round
        vae.load_state_dict(AutoencoderTiny.from_pretrained(work / "vae").state_dict())
    weight = torch.ones(SIDE, SIDE)
    weight[38:56, 20:44] = 4.0  # the mouth: few pixels that matter much

    def loss(step: int) -> Tensor:
        generator = seeded(step)
        chosen = torch.randint(COUNT, (batch,), generator=generator).numpy()
        top, left = (int(OFFSETS[i]) for i in torch.randint(len(OFFSETS), (2,), generator=generator))
        x = to_tensor(images[chosen, top : top + CROP, left : left + CROP]).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            latents = vae.encoder(x).float()
        # Latents about as N(0, 1) as the noise that the denoising network knows, and a decoder that forgives small errors of it.
        spread = latents.mean((0, 2, 3)).square().mean() + (latents.std((0, 2, 3)) - 1).square().mean()
        with torch.autocast("cpu", torch.bfloat16):
            found = vae.decoder(latents + 0.05 * torch.randn(latents.shape, generator=generator))
        return difference(found.float(), x, weight[top : top + CROP, left : left + CROP]) + 0.02 * spread

    train(vae, loss, work / "vae.pt", steps, minutes, 2e-3, 0.99)
    vae.save_pretrained(work / "vae")


def train_decoder(work: Path, steps: int, minutes: float, batch: int = 32) -> None:
    """A last round for the decoder alone, on the latents as they are: it may go on beside the denoising network's training."""
    vae = AutoencoderTiny.from_pretrained(work / "vae").to(memory_format=torch.channels_last)
    images, latents = load_pictures(work), np.load(work / "latents.npy", mmap_mode="r")
    weight = torch.ones(SIDE, SIDE)
    weight[38:56, 20:44] = 6.0

    def loss(step: int) -> Tensor:
        generator = seeded(step + 100_000)
        chosen = torch.randint(COUNT, (batch,), generator=generator).numpy()
        top, left = (int(OFFSETS[i]) for i in torch.randint(len(OFFSETS), (2,), generator=generator))
        x = to_tensor(images[chosen, top : top + CROP, left : left + CROP])
        z = torch.from_numpy(latents[chosen, :, top // 8 : (top + CROP) // 8, left // 8 : (left + CROP) // 8]).float()
        with torch.autocast("cpu", torch.bfloat16):
            found = vae.decoder((z + 0.05 * torch.randn(z.shape, generator=generator)).contiguous(memory_format=torch.channels_last))
        return difference(found.float(), x, weight[top : top + CROP, left : left + CROP])

    train(vae.decoder, loss, work / "decoder.pt", steps, minutes, 2e-3, 0.99)
    vae.save_pretrained(work / "vae")


def difference(found: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
    """Mean absolute error of pixels, of their slopes, which keeps edges crisp, and of a coarse view; ``weight`` is (H, W)."""
    error = (found - wanted) * weight
    slopes = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + 0.5 * slopes + 0.5 * F.avg_pool2d(error, 4).abs().mean()


@torch.no_grad()
def encode(work: Path) -> None:
    vae, images = AutoencoderTiny.from_pretrained(work / "vae").to(memory_format=torch.channels_last), load_pictures(work)
    latents = np.empty((COUNT, CHANNELS, GRID, GRID), np.float16)
    for start in range(0, COUNT, 64):
        latents[start : start + 64] = vae.encode(to_tensor(images[start : start + 64])).latents.numpy()
    np.save(work / "latents.npy", latents)
    found = torch.cat([vae.decode(torch.from_numpy(latents[s : s + 64]).float()).sample for s in range(0, 256, 64)])
    print(f"latents: mean {latents.mean():.2f}, deviation {latents.astype(np.float32).std():.2f}")
    print(f"mean absolute error of the autoencoder: {(found - to_tensor(images[:256])).abs().mean() * 127.5:.2f} of 255")


# The denoising network and the text encoder.


class Denoiser(nn.Module):
    """The two networks that are trained together."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.unet = UNet2DConditionModel(
            sample_size=GRID,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
            up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
            block_out_channels=[64, 128],
            layers_per_block=1,
            cross_attention_dim=WIDTH,
            attention_head_dim=4,
            norm_num_groups=16,
        ).to(memory_format=torch.channels_last)
        # START and END are the two last tokens.
        vocabulary = 790
        config = CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=WINDOW,
            hidden_act="gelu",
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
        )
        self.text = CLIPTextModel(config)


def build_scheduler() -> DDIMScheduler:
    """A linear schedule (Ho et al. 2020): unlike Stable Diffusion's it ends in pure noise, which such small latents need."""
    return DDIMScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
    )


def tell_all(work: Path, forms: int = 4) -> np.ndarray:
    """Tokens (forms, COUNT, WINDOW) of random captions of every face."""
    file = work / "tokens.npy"
    if not file.exists():
        tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
        rng, faces = np.random.default_rng(5), [Face.of(row) for row in np.load(work / "rows.npy")]
        np.save(file, np.stack([tokenise(tokenizer, [describe(face, rng) for face in faces]) for _ in range(forms)]))
    return np.load(file, mmap_mode="r")


def tokenise(tokenizer: CLIPTokenizer, texts: list[str]) -> np.ndarray:
    return np.array(tokenizer(texts, padding="max_length", max_length=WINDOW, truncation=True).input_ids, np.int16)


def train_unet(work: Path, steps: int, minutes: float, batch: int = 32) -> None:
    model = Denoiser()
    tokens, latents = tell_all(work), np.load(work / "latents.npy", mmap_mode="r")
    silence = torch.from_numpy(tokenise(CLIPTokenizer.from_pretrained(work / "tokenizer"), [""]).astype(np.int64))
    bars = build_scheduler().alphas_cumprod
    # Plain attention: for heads as small as these it is much faster backwards than the fused one.
    model.unet.set_attn_processor(AttnProcessor())
    model.text.set_attn_implementation("eager")

    def loss(step: int) -> Tensor:
        generator = seeded(step)
        chosen = torch.randint(COUNT, (batch,), generator=generator).numpy()
        form = int(torch.randint(len(tokens), (1,), generator=generator))
        ids = torch.from_numpy(tokens[form, chosen].astype(np.int64))
        ids = torch.where(torch.rand(batch, 1, generator=generator) < DROP, silence, ids)
        t = torch.randint(1000, (batch,), generator=generator)
        a, s = bars[t].sqrt()[:, None, None, None], (1 - bars[t]).sqrt()[:, None, None, None]
        x = torch.from_numpy(latents[chosen]).float()
        noise = torch.randn(x.shape, generator=generator)
        found = model.unet(a * x + s * noise, t, model.text(ids).last_hidden_state).sample
        return F.mse_loss(found, a * noise - s * x)

    train(model, loss, work / "unet.pt", steps, minutes, 1e-3, 0.995)


def export(work: Path, out: Path) -> None:
    """Writes the pipeline from what ``unet.pt`` holds, in half precision: the server computes in single precision all the same."""
    model = Denoiser()
    state = torch.load(work / "unet.pt", weights_only=True)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), state["average"], strict=True):
            parameter.copy_(value)
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderTiny.from_pretrained(work / "vae"),
        text_encoder=model.text,
        tokenizer=CLIPTokenizer.from_pretrained(work / "tokenizer"),
        unet=model.unet,
        scheduler=DPMSolverMultistepScheduler.from_config(build_scheduler().config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(dtype=torch.float16).save_pretrained(out)
    for name in ("vocab.json", "merges.txt"):
        (out / "tokenizer" / name).write_bytes((work / "tokenizer" / name).read_bytes())


# The judge.


class Reader(nn.Module):
    """Pictures (N, 3, 64, 64) in [-1, 1] ↦ logits of mood, hair colour, glasses and background."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        widths = (3, 24, 48, 96, 96)
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.BatchNorm2d(b), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2))
        self.heads = nn.ModuleList([nn.Linear(96 * 16, len(options)) for options in CHOICES.values()])

    def forward(self, x: Tensor) -> list[Tensor]:
        y = self.body(x)
        return [head(y) for head in self.heads]


def train_reader(work: Path, steps: int, minutes: float, batch: int = 64) -> None:
    """The last 1,024 faces are kept for its own test."""
    reader, images = Reader(), load_pictures(work)
    wanted = torch.from_numpy(np.load(work / "attributes.npy"))

    def loss(step: int) -> Tensor:
        generator = seeded(step)
        chosen = torch.randint(COUNT - 1024, (batch,), generator=generator)
        x = to_tensor(images[chosen.numpy()])
        x = x + 0.1 * torch.rand(1, generator=generator) * torch.randn(x.shape, generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            logits = reader(x)
        return sum((F.cross_entropy(found.float(), wanted[chosen, i]) for i, found in enumerate(logits)), torch.zeros(()))

    train(reader, loss, work / "reader.pt", steps, minutes, 2e-3, 0.98)
    reader.eval()
    torch.save(reader.state_dict(), work / "reader.done")
    right = (read(reader, images[COUNT - 1024 :]) == wanted[COUNT - 1024 :].numpy()).mean(0)
    print("the reader on unseen drawings:", tell_shares(right))


@torch.no_grad()
def read(reader: Reader, images: np.ndarray) -> np.ndarray:
    """uint8 pictures (N, 64, 64, 3) ↦ indices (N, 4) into ``CHOICES``."""
    return torch.stack([found.argmax(1) for found in reader(to_tensor(images))], 1).numpy()


def tell_shares(shares: np.ndarray) -> str:
    return ", ".join(f"{name} {share:.1%}" for name, share in zip(CHOICES, shares, strict=True))


def measure(work: Path, out: Path, count: int = 500, steps: int = 20, guidance: float = 3.0) -> None:
    """Draws ``count`` prompts of unseen combinations and tells how many pictures the reader finds to obey."""
    reader = Reader().eval()
    reader.load_state_dict(torch.load(work / "reader.done", weights_only=True))
    pipeline = StableDiffusionPipeline.from_pretrained(out, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    faces, images, began = find_faces(count, 5_000_000, unseen=True), [], time.monotonic()
    for start in range(0, count, 25):
        prompts = [caption(face) for face in faces[start : start + 25]]
        generators = [torch.Generator().manual_seed(start + i) for i in range(len(prompts))]
        found = pipeline(prompts, num_inference_steps=steps, guidance_scale=guidance, generator=generators, output_type="np").images
        images.append((found * 255).round().astype(np.uint8))
    drawn = np.concatenate(images)
    right = read(reader, drawn) == np.array([attributes(face) for face in faces])
    smiling = np.array([face.mood == "happy" for face in faces])
    print(
        f"{count} unseen prompts, {steps} steps, guidance {guidance}, {(time.monotonic() - began) / count:.2f} s a picture in batches of 25"
    )
    print(f"obeyed: {tell_shares(right.mean(0))}; smiles {right[smiling, 0].mean():.1%}; all four {right.all(1).mean():.1%}", flush=True)
    np.save(work / "drawn.npy", drawn[:64])


STAGES = ("render", "tokenizer", "vae", "encode", "decoder", "unet", "reader", "export", "measure")


def run(stage: str, work: Path, out: Path, options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    match stage:
        case "render":
            render(work)
        case "tokenizer":
            build_tokenizer(work)
        case "vae":
            train_vae(work, options.vae_steps, options.minutes)
        case "encode":
            encode(work)
        case "decoder":
            train_decoder(work, options.vae_steps, options.minutes)
        case "unet":
            train_unet(work, options.unet_steps, options.minutes)
        case "reader":
            train_reader(work, options.reader_steps, options.minutes)
        case "export":
            export(work, out)
        case "measure":
            measure(work, out, guidance=options.guidance)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where data and checkpoints are kept")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "models" / "tiny-diffusion")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--vae-steps", type=int, default=3000)
    parser.add_argument("--unet-steps", type=int, default=6000)
    parser.add_argument("--reader-steps", type=int, default=300)
    parser.add_argument("--minutes", type=float, default=120.0, help="longest time of a stage; its learning rate falls accordingly")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("stages", nargs="*", default=list(STAGES), help=f"in this order: {', '.join(STAGES)}")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    for stage in options.stages:
        run(stage, options.work, options.out, options)


if __name__ == "__main__":
    main()
