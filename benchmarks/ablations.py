"""What each part of the codec's recipe brings: small codecs trained alike but for one thing, measured alike.

    python benchmarks/ablations.py --train TRAIN --held-out TEST --out runs/ablations [--steps 2000] [--only NAME ...]

Every codec is that of `configs/codec/ablation.yaml` with one change, trained for the same number of steps from the same
seed, then measured by what `focalstream eval-codec` uses, on the first clips of each held-out source. A run that was
stopped goes on; the table is printed from all that are done. The distilled codecs learn from a teacher of their own
size, trained once for as many steps again; "then the decoder tuned" has a quarter more steps than the others.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pipelines.commands.train_codec import corpus
from pipelines.evaluation.evaluate import Options, evaluate
from pipelines.evaluation.measures import MEASURES
from pipelines.evaluation.systems import CODEC, LATENTS
from tokenizer import Codec
from tokenizer.config import CodecConfig
from tokenizer.files import write_atomically
from tokenizer.training.config import StageConfig, TeacherConfig, TrainingConfig
from tokenizer.training.corpus import Corpus
from tokenizer.training.recipe import read_config
from tokenizer.training.train import train

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "codec" / "ablation.yaml"
SHOWN = ("pesq_wb", "stoi", "estoi", "mel_db")


class Variant(NamedTuple):
    """A codec of the table.

    Attributes:
        config: its training.
        after: the variant whose codec, and teacher, it starts from.
        row: the system of the evaluation that is its own; None: not measured.
    """

    config: TrainingConfig
    after: str | None = None
    row: str | None = CODEC


def variants(base: TrainingConfig, steps: int) -> dict[str, Variant]:
    """All codecs of the table, by name, in an order in which each follows the one that it starts from."""
    recipe = resized(base.stages["end_to_end"], steps)

    def scratch(model: CodecConfig = base.model, **changes: Any) -> Variant:
        return Variant(TrainingConfig(model, None, {"end_to_end": dataclasses.replace(recipe, **changes)}))

    def staged(after: str | None, **stages: StageConfig) -> Variant:
        return Variant(TrainingConfig(base.model, TeacherConfig(), stages), after)

    def taught(share: float, rate: float, **losses: float) -> StageConfig:
        """A stage of distillation: as the recipe, but with these losses."""
        return dataclasses.replace(resized(recipe, round(share * steps)), learning_rate=rate, losses=losses)

    heard = {name: weight for name, weight in recipe.losses.items() if name != "entropy"}
    entropy = recipe.losses["entropy"]
    joint = taught(0.5, 5e-4, features=1.0, entropy=entropy)
    return {
        "from scratch, 12 bits": scratch(),
        "without the refiner": scratch(freeze=("decompressor.refiner",)),
        "11 bits": scratch(with_bits(base.model, 11)),
        "16 bits": scratch(with_bits(base.model, 16)),
        "not quantized": scratch(binarise=False)._replace(row=LATENTS),
        "teacher": staged(
            None,
            teacher=dataclasses.replace(
                recipe, crop_seconds=None, longest_seconds=4.0, losses={**heard, "recognition": 0.5}
            ),
        )._replace(row=None),
        "distilled to the quantizer": staged(
            "teacher",
            posemb=taught(0.05, 1e-3, position=1.0),
            encoder=taught(0.2, 5e-4, layers=1.0),
            quantizer=taught(0.25, 1e-3, features=1.0, entropy=entropy),
        )._replace(row=None),
        "distilled": staged("distilled to the quantizer", joint=joint),
        "distilled, without the refiner": staged(
            "distilled to the quantizer", joint=dataclasses.replace(joint, freeze=("decompressor.refiner",))
        ),
        "distilled, then the decoder tuned": staged("distilled", tune=taught(0.25, 5e-4, **heard)),
        "distilled to the quantizer, then end to end": staged(
            "distilled to the quantizer", end_to_end=taught(0.5, recipe.learning_rate, **recipe.losses)
        ),
    }


def resized(stage: StageConfig, steps: int) -> StageConfig:
    return dataclasses.replace(stage, steps=steps, warmup_steps=steps // 20)


def with_bits(model: CodecConfig, bits: int) -> CodecConfig:
    return dataclasses.replace(
        model,
        compressor=dataclasses.replace(model.compressor, output_dim=bits),
        quantizer=dataclasses.replace(model.quantizer, codebook_size=1 << bits),
        decompressor=dataclasses.replace(model.decompressor, input_dim=bits),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True)
    parser.add_argument("--held-out", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--per-source", type=int, default=12, help="held-out clips of each source")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of the table's rows")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    base = read_config(CONFIG)
    rate = base.model.sample_rate_out
    spoken = corpus([args.train], args.out / "corpus" / "train", rate)
    held_out = corpus([args.held_out], args.out / "corpus" / "held_out", rate)
    table = variants(base, args.steps)
    for name, variant in table.items():
        if args.only is None or name in args.only:
            finish(args, name, variant, spoken, held_out)
    print(markdown({name: figures for name in table if (figures := figures_of(args.out, name)) is not None}))


def finish(args: argparse.Namespace, name: str, variant: Variant, spoken: Corpus, held_out: Corpus) -> None:
    """Train and measure a codec of the table, or what of that is still to do."""
    out, initial = args.out / slug(name), None
    if (out / "last_stage").exists():
        return
    if variant.after is not None:
        before = args.out / slug(variant.after)
        initial = Codec.from_pretrained(str(codec_of(before)))
        shutil.copytree(before / "teacher" / "teacher", out / "teacher" / "teacher", dirs_exist_ok=True)
    codec, stopped = train(variant.config, spoken, held_out, out, initial=initial, device=args.device)
    if stopped:
        raise SystemExit(f"stopped by {stopped}; the same command goes on")
    if variant.row is not None:
        measure(args, codec, variant.row, out / "figures.json")
    (out / "last_stage").write_text(list(variant.config.stages)[-1])


def measure(args: argparse.Namespace, codec: Codec, row: str, record: Path) -> None:
    """Write the figures of one system of a codec's evaluation."""
    result, _ = evaluate(codec.cpu(), Options(args.held_out, per_source=args.per_source, workers=args.threads))
    means = result["systems"][row]["mean_over_sources"]
    figures = {name: means[name] for name in SHOWN}
    figures |= {"used": result["codes"]["used"], "entropy": result["codes"]["normalised_entropy"]}
    write_atomically(record, json.dumps(figures).encode())
    print(markdown({record.parent.name: figures}), flush=True)


def slug(name: str) -> str:
    return name.replace(" ", "-").replace(",", "")


def codec_of(run: Path) -> Path:
    """The codec that a finished run made."""
    return run / (run / "last_stage").read_text() / "codec"


def figures_of(out: Path, name: str) -> dict[str, float] | None:
    record = out / slug(name) / "figures.json"
    return json.loads(record.read_text()) if record.exists() else None


def markdown(rows: dict[str, dict[str, float]]) -> str:
    titles = [MEASURES[measure].title for measure in SHOWN]
    lines = [f"| codec | {' | '.join(titles)} | codes used | entropy |", "|---" * (len(SHOWN) + 3) + "|"]
    for name, figures in rows.items():
        shown = [MEASURES[measure].text(figures[measure]) for measure in SHOWN]
        lines.append(f"| {name} | {' | '.join(shown)} | {figures['used']:.1%} | {figures['entropy']:.3f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
