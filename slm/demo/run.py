"""The whole path in one run: speech to shards, shards to a language model, a prompt to its continuation, and a page.

OUT/index.html         the page
OUT/*.wav              the continuations, and the clips before and after the codec
OUT/demo.json          every figure
OUT/lists/             the manifests of training and held-out cuts
OUT/tokens/            the two tokenized datasets
OUT/lm/                the training run
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.sources.manifests import SourceCut
from pipelines.storage.stable_bytes import json_bytes
from slm.checkpoint import load_lm
from slm.demo import stages as demo_stages
from slm.demo import story as demo_story
from slm.demo.demo_page import Clip, Continuation, render
from slm.demo.figures import DemoFigures
from slm.demo.split import load_wave, pick_clips, pick_prompt, split_data
from slm.model.transformer import ModelConfig
from slm.training.settings import TrainSettings, read_settings
from tokenizer import Codec
from tokenizer.audio import write_wav
from tokenizer.errors import InputError
from tokenizer.files import write_atomically

BUNDLED = Path(__file__).resolve().parent / "speech" / "cuts.jsonl.gz"
CONFIG = "tiny"  # of the model that is trained
CLIPS = 3
VALIDATIONS = 12  # points of the held-out curve
LONGEST_SECONDS = 60.0  # of a prompt or a continuation: the page holds them
MADE_BY = "focalstream demo"  # in demo.json: the mark of a folder that the next run may empty
FOLDERS = ("lists", "tokens", "lm")


@dataclass(frozen=True)
class DemoSettings:
    """What a demo run is told.

    Attributes:
        out: the folder to write; an earlier demo in it is replaced.
        data: a manifest, a folder of audio or a glob; None: the bundled synthetic speech.
        codec, lm: what `Codec.from_pretrained` and `load_lm` take.
        steps: optimizer steps of the training; None: those of the config.
        prompt_seconds, seconds: the length of the prompt and of its continuation.
        seed: of the training and of the sampling.
    """

    out: Path
    data: str | None = None
    codec: str = "small"
    lm: str = "small"
    steps: int | None = None
    prompt_seconds: float = 3.0
    seconds: float = 6.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("prompt_seconds", "seconds"):
            if not 0 < getattr(self, name) <= LONGEST_SECONDS:
                raise InputError(
                    f"{name} is {getattr(self, name)}; expected more than 0 and at most {LONGEST_SECONDS:g} seconds"
                )


def run_demo(settings: DemoSettings, say: Callable[[str, str], None]) -> DemoFigures:
    """Run everything and write `settings.out`.

    Args:
        settings: what to run on.
        say: called with the name of a step and what came of it, as the run goes on.

    Raises:
        InputError: no speech, no codec or language model under that name, one that belongs to another codec, or a
            folder that holds something else.
    """
    began = time.monotonic()
    out = settings.out
    codec = Codec.from_pretrained(settings.codec)
    shipped, vocabulary = load_lm(settings.lm)
    vocabulary.check(f"codec '{settings.codec}'", codec.fingerprint, codec.codebook_size)
    config, train_settings = training_settings(settings)
    split = split_data(settings.data or str(BUNDLED))
    claim(out)  # only now: bad input leaves an earlier demo as it was
    say("speech", demo_story.speech_line(split, settings.data))

    training = demo_stages.tokenize_part(split.train, "train", out, settings.codec)
    heldout = demo_stages.tokenize_part(split.heldout, "heldout", out, settings.codec)
    dataset = demo_stages.dataset_figures(settings.data or "bundled", settings.data is None, training, heldout)
    say("tokenize", demo_story.tokenize_line(dataset))
    say("verify", demo_story.verify_line(dataset))

    tokenized = keep_tokenized(split.heldout, heldout)
    clips, codec_figures = demo_stages.resynthesise(codec, heldout, pick_clips(tokenized, CLIPS))
    say("resynthesis", demo_story.resynthesis_line(codec_figures))

    say("train", demo_story.training_begins_line(train_settings.steps))
    curves = demo_stages.train_fresh(config, train_settings, training, heldout, out / "lm")
    models = {settings.lm: shipped, "trained here": load_lm(out / "lm")[0]}
    measured = [demo_stages.evaluate(name, model, heldout, train_settings) for name, model in models.items()]
    say("train", demo_story.training_line(curves, measured))

    source = pick_prompt(tokenized, settings.prompt_seconds)
    prompt = load_wave(source, codec.sample_rate_in)[: round(settings.prompt_seconds * codec.sample_rate_in)]
    shown, continued = [], []
    for file, (name, model) in zip(("continuation-shipped.wav", "continuation-fresh.wav"), models.items(), strict=True):
        sound, figures, tokens = demo_stages.continue_prompt(
            codec, model, vocabulary, prompt, settings.seconds, settings.seed, name, file
        )
        say("continue", demo_story.continuation_line(figures))
        continued.append(figures)
        shown.append(demo_story.shown_continuation(figures, sound, tokens, codec))
        write_wav(out / file, sound.wave, sound.sample_rate)

    everything = DemoFigures(
        codec=codec_figures,
        dataset=dataset,
        training=curves,
        shipped=measured[0],
        fresh=measured[1],
        prompt=source.cut["id"],
        continuations=continued,
        seconds=time.monotonic() - began,
        cpu_cores=cpu_cores(),
        version=importlib.metadata.version("focalstream"),
    )
    write_results(out, everything, shown, clips)
    return everything


def cpu_cores() -> int:
    """CPU cores this process may use; where the system does not say (macOS), those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def training_settings(settings: DemoSettings) -> tuple[ModelConfig, TrainSettings]:
    """Those of the config, but validated often enough for a curve, and warmed up in proportion."""
    _, training = read_settings(CONFIG, {})
    steps = training.steps if settings.steps is None else settings.steps
    return read_settings(
        CONFIG,
        {
            "steps": steps,
            "warmup_steps": steps // 10,
            "validate_every": max(1, steps // VALIDATIONS),
            "seed": settings.seed,
        },
    )


def claim(out: Path) -> None:
    """Make the folder, or empty it of an earlier demo.

    Raises:
        InputError: it holds anything else.
    """
    if out.exists() and any(out.iterdir()):
        if not is_demo(out):
            raise InputError(f"{out}: holds files that no demo wrote; give another --out, or empty it")
        for name in FOLDERS:
            shutil.rmtree(out / name, ignore_errors=True)
        for path in [*out.glob("*.wav"), out / "index.html"]:
            path.unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "demo.json", json_bytes({"made_by": MADE_BY, "finished": False}))


def is_demo(out: Path) -> bool:
    """Whether a demo, finished or not, wrote this folder."""
    try:
        content = json.loads((out / "demo.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("made_by") == MADE_BY


def keep_tokenized(cuts: Sequence[SourceCut], part: demo_stages.Part) -> list[SourceCut]:
    """The cuts that are in the dataset: others could not be read, and cannot be shown."""
    ids = {part.dataset.cut_id(index) for index in range(len(part.dataset))}
    return [source for source in cuts if source.cut["id"] in ids]


def write_results(
    out: Path, figures: DemoFigures, continuations: Sequence[Continuation], clips: Sequence[Clip]
) -> None:
    """The clips as WAV, the page, and, last, the figures."""
    for number, clip in enumerate(clips, 1):
        write_wav(out / f"clip-{number}-original.wav", clip.original.wave, clip.original.sample_rate)
        write_wav(out / f"clip-{number}-resynthesis.wav", clip.resynthesis.wave, clip.resynthesis.sample_rate)
    page = render(demo_story.tell(figures, continuations, clips))
    write_atomically(out / "index.html", page.encode())
    write_atomically(out / "demo.json", json_bytes({"made_by": MADE_BY, "finished": True, **figures.to_dict()}))
