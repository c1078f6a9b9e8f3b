"""The whole pipeline in one run: speech to shards, shards to a language model, a prompt to a continuation, and a page.

OUT/index.html         the page
OUT/*.wav              the continuations, and clips before and after the codec
OUT/demo.json          every figure
OUT/lists/             the manifests of training and held-out cuts
OUT/tokens/            the two tokenized datasets
OUT/lm/                the training run
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.sources.audio import read_wave
from pipelines.sources.manifests import SourceCut
from pipelines.storage.stable_bytes import json_bytes
from slm.checkpoint import load_lm
from slm.demo.demo_page import ShownClip, ShownContinuation, render
from slm.demo.figures import DemoFigures
from slm.demo.split import pick_clips, pick_prompt, split_data
from slm.demo.stages import (
    TokenizedPart,
    continue_prompt,
    dataset_figures,
    evaluate,
    resynthesise,
    tokenize_part,
    train_fresh,
)
from slm.demo.story import (
    continuation_line,
    resynthesis_line,
    shown_continuation,
    speech_line,
    tell,
    tokenize_line,
    training_begins_line,
    training_line,
    verify_line,
)
from slm.model.transformer import ModelConfig
from slm.training.settings import TrainSettings, read_settings
from tokenizer import Codec
from tokenizer.audio import write_wav
from tokenizer.errors import InputError
from tokenizer.files import write_atomically
from tokenizer.machine import available_cores, training_precision

BUNDLED = Path(__file__).resolve().parent / "speech" / "cuts.jsonl.gz"
CONFIG = "tiny"  # of the model that is trained
CLIPS = 3
VALIDATIONS = 12  # points on the held-out curve
LONGEST_SECONDS = 60.0  # of a prompt or a continuation, because the page embeds them
MADE_BY = "focalstream demo"  # in demo.json; marks a folder that the next run may empty
FOLDERS = ("lists", "tokens", "lm")


@dataclass(frozen=True)
class DemoSettings:
    """Settings of a demo run.

    Attributes:
        out: the folder to write; an earlier demo in it is replaced.
        data: a manifest, a folder of audio or a glob; None: the bundled synthetic speech.
        codec, lm: what `Codec.from_pretrained` and `load_lm` take.
        steps: optimizer steps of the training, at most; None: those of the config.
        train_seconds: of the training, at most.
        prompt_seconds, seconds: length of the prompt and of the continuation.
        seed: of training and sampling.
    """

    out: Path
    data: str | None = None
    codec: str = "small"
    lm: str = "small"
    steps: int | None = None
    train_seconds: float = 60.0
    prompt_seconds: float = 3.0
    seconds: float = 6.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.train_seconds > 0:
            raise InputError(f"train_seconds is {self.train_seconds}; expected more than 0")
        for name in ("prompt_seconds", "seconds"):
            if not 0 < getattr(self, name) <= LONGEST_SECONDS:
                raise InputError(
                    f"{name} is {getattr(self, name)}; expected more than 0 and at most {LONGEST_SECONDS:g} seconds"
                )


def run_demo(settings: DemoSettings, say: Callable[[str, str], None]) -> DemoFigures:
    """Run everything and write `settings.out`.

    Args:
        settings: of the run.
        say: called with the name of each step and its result.

    Raises:
        InputError: there is no speech, the codec or the language model cannot be loaded or do not belong together, or
            the folder holds other files.
    """
    began = time.monotonic()
    out = settings.out
    codec = Codec.from_pretrained(settings.codec)
    shipped, vocabulary = load_lm(settings.lm)
    vocabulary.check(f"codec '{settings.codec}'", codec.fingerprint, codec.codebook_size)
    config, train_settings = training_settings(settings)
    split = split_data(settings.data or str(BUNDLED))
    claim(out)  # after the checks, so that bad input leaves an earlier demo unchanged
    say("speech", speech_line(split, settings.data))

    training = tokenize_part(split.train, "train", out, settings.codec)
    held_out = tokenize_part(split.held_out, "heldout", out, settings.codec)
    dataset = dataset_figures(settings.data or "bundled", settings.data is None, training, held_out)
    say("tokenize", tokenize_line(dataset))
    say("verify", verify_line(dataset))

    tokenized = keep_tokenized(split.held_out, held_out)
    clips, codec_figures = resynthesise(codec, held_out, pick_clips(tokenized, CLIPS))
    say("resynthesis", resynthesis_line(codec_figures))

    say("train", training_begins_line(train_settings.steps, settings.train_seconds, training_precision("cpu")))
    curves = train_fresh(config, train_settings, settings.train_seconds, training, held_out, out / "lm")
    models = {settings.lm: shipped, "trained here": load_lm(out / "lm")[0]}
    measured = [evaluate(name, model, held_out, train_settings) for name, model in models.items()]
    say("train", training_line(curves, measured))

    source = pick_prompt(tokenized, settings.prompt_seconds)
    prompt = read_wave(source, codec.sample_rate_in)[: round(settings.prompt_seconds * codec.sample_rate_in)]
    shown, continued = [], []
    for file, (name, model) in zip(("continuation-shipped.wav", "continuation-fresh.wav"), models.items(), strict=True):
        sound, figures, tokens = continue_prompt(
            codec, model, vocabulary, prompt, settings.seconds, settings.seed, name, file
        )
        say("continue", continuation_line(figures))
        continued.append(figures)
        shown.append(shown_continuation(figures, sound, tokens, codec))
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
        cpu_cores=available_cores(),
        version=importlib.metadata.version("focalstream"),
    )
    write_results(out, everything, shown, clips)
    return everything


def training_settings(settings: DemoSettings) -> tuple[ModelConfig, TrainSettings]:
    """The settings of the config, with enough validations for a curve and a warm-up of a tenth of the steps."""
    _, training = read_settings(CONFIG, {})
    steps = training.steps if settings.steps is None else settings.steps
    return read_settings(
        CONFIG,
        {
            "steps": steps,
            "warmup_steps": steps // 10,
            "validate_every": max(1, steps // VALIDATIONS),
            "seed": settings.seed,
            "bfloat16": training_precision("cpu").value == "bfloat16",
        },
    )


def claim(out: Path) -> None:
    """Create the folder, or remove an earlier demo from it.

    Raises:
        InputError: the folder holds other files.
    """
    if out.exists() and any(out.iterdir()):
        if not is_demo(out):
            raise InputError(f"{out}: holds files that are not from a demo; give another --out, or empty it")
        for name in FOLDERS:
            shutil.rmtree(out / name, ignore_errors=True)
        for path in [*out.glob("*.wav"), out / "index.html"]:
            path.unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "demo.json", json_bytes({"made_by": MADE_BY, "finished": False}))


def is_demo(out: Path) -> bool:
    """Whether the folder was written by a demo, finished or not."""
    try:
        content = json.loads((out / "demo.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("made_by") == MADE_BY


def keep_tokenized(cuts: Sequence[SourceCut], part: TokenizedPart) -> list[SourceCut]:
    """The cuts that are in the dataset; the others could not be read."""
    ids = {part.dataset.cut_id(index) for index in range(len(part.dataset))}
    return [source for source in cuts if source.cut["id"] in ids]


def write_results(
    out: Path, figures: DemoFigures, continuations: Sequence[ShownContinuation], clips: Sequence[ShownClip]
) -> None:
    """Write the clips as WAV, the page, and last the figures."""
    for number, clip in enumerate(clips, 1):
        write_wav(out / f"clip-{number}-original.wav", clip.original.wave, clip.original.sample_rate)
        write_wav(out / f"clip-{number}-resynthesis.wav", clip.resynthesis.wave, clip.resynthesis.sample_rate)
    page = render(tell(figures, continuations, clips))
    write_atomically(out / "index.html", page.encode())
    write_atomically(out / "demo.json", json_bytes({"made_by": MADE_BY, "finished": True, **figures.to_dict()}))
