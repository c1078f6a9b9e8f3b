"""A trained language model on disk: config.json, vocabulary.json, model.safetensors.

`load_lm` also reads folders in the layout of `transformers.LlamaForCausalLM` (`slm.llama`).

Weights may be stored in half precision; in memory they are float32. To export the best model of a training run to a
small file:  model, vocabulary = load_lm("runs/lm"); save_lm(model, vocabulary, Path("exported"), torch.float16)
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from slm.llama import is_llama, model_config, own_names
from slm.model.transformer import LanguageModel, ModelConfig
from slm.vocabulary import Vocabulary
from tokenizer.checkpoint import read_weights
from tokenizer.errors import InputError
from tokenizer.files import write_atomically
from tokenizer.parsed import dataclass_from_dict

SHIPPED = Path(__file__).parent / "weights"
FORMAT = "focalstream language model"
BEST = "best.json"  # in a run's folder; names its best checkpoint


def load_lm(name_or_path: str | Path, device: str | torch.device = "cpu") -> tuple[LanguageModel, Vocabulary]:
    """Load a trained model for generation.

    Args:
        name_or_path: the name of shipped weights ("small"), a checkpoint folder, an exported folder, or the folder of a
            training run, which means its best checkpoint (or the latest one before the first validation).
        device: of the weights.

    Returns:
        The model, in evaluation mode and float32, and its vocabulary.

    Raises:
        InputError: there is no such model, or its files are damaged or do not fit together.
    """
    folder = locate(str(name_or_path))
    raw = read_json(folder / "config.json")
    exported = is_llama(raw)
    if exported and not (folder / "vocabulary.json").is_file():
        raise InputError(
            f"{folder}: is a transformers model without a vocabulary.json, so it is not a speech model; to train one "
            f"from it: `focalstream train-lm --init-from {folder}`"
        )
    config = model_config(raw, folder / "config.json") if exported else parse_config(raw, folder / "config.json")
    vocabulary = Vocabulary.load(folder / "vocabulary.json")
    if exported and raw.get("vocab_size") != vocabulary.size:
        raise InputError(
            f"{folder}: config.json has a vocabulary of {raw.get('vocab_size')} ids, vocabulary.json one of "
            f"{vocabulary.size}; they do not belong together"
        )
    if not (folder / "model.safetensors").is_file():
        raise InputError(f"{folder}: has a config.json but no model.safetensors; copy the folder again")
    weights = read_weights(folder / "model.safetensors")
    if exported:
        weights = own_names(weights, config.tied_embeddings)
    if (
        f"layers.{config.layers - 1}.input_layernorm.weight" not in weights
    ):  # before building a model of a size that the file claims
        raise InputError(
            f"{folder}: config.json says {config.layers} layers, model.safetensors has fewer; copy it again"
        )
    check_fit(without_weights(config, vocabulary), weights, folder / "model.safetensors")  # before memory is taken
    return model_of(config, vocabulary, weights, device), vocabulary


def model_of(
    config: ModelConfig, vocabulary: Vocabulary, weights: dict[str, Tensor], device: str | torch.device
) -> LanguageModel:
    """A model for generation in evaluation mode and float32, from weights that fit its configuration."""
    model = without_weights(config, vocabulary)
    materialise(model, device)
    copy_weights(model, weights)
    return model.eval().requires_grad_(False)


class _NoInitialisation(TorchFunctionMode):
    """Skips `torch.nn.init`, which on the meta device would import torch._dynamo: seconds of loading time."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return self._initialised(kwargs.get("tensor", *args[:1]), func, args, kwargs)
        return func(*args, **kwargs)

    def _initialised(self, tensor: Tensor, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
        return tensor


class _DrawnAside(_NoInitialisation):
    """Draws the random numbers of `torch.nn.init` into tensors on the CPU that are dropped one after the other, so that
    the random state is afterwards that of a model with weights."""

    def _initialised(self, tensor: Tensor, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
        aside = torch.empty(tensor.shape, device="cpu")
        func(
            *(aside if value is tensor else value for value in args),
            **{**kwargs, **({"tensor": aside} if "tensor" in kwargs else {})},
        )
        return tensor


def without_weights(config: ModelConfig, vocabulary: Vocabulary, draw: bool = False) -> LanguageModel:
    """A model on the meta device: names and shapes, without memory, and unless `draw` without random numbers."""
    with torch.device("meta"), _DrawnAside() if draw else _NoInitialisation():
        return LanguageModel(config, vocabulary.size, vocabulary.pieces)


def materialise(model: LanguageModel, device: str | torch.device) -> None:
    """Give a model on the meta device, or the shards of one, memory with arbitrary content."""
    model.to_empty(device=device)
    if model.config.tied_embeddings:
        model.lm_head.weight = model.embed_tokens.weight


def locate(name: str) -> Path:
    """The folder that holds a model's files. Raises InputError."""
    for folder in (SHIPPED / name if re.fullmatch(r"[\w.-]+", name) else Path(name), Path(name)):
        if (folder / "config.json").is_file():
            return folder
        if (folder / BEST).is_file():
            return folder / read_best(folder)["checkpoint"]
        if (folder / "run.json").is_file() and (found := checkpoints_of(folder)):
            return found[-1]  # stopped before the first validation
    shipped = ", ".join(sorted(p.name for p in SHIPPED.iterdir() if p.is_dir())) if SHIPPED.is_dir() else ""
    raise InputError(
        f"language model '{name}': no such model; expected a folder with config.json, vocabulary.json and "
        f"model.safetensors, the folder of a training run, or a shipped name ({shipped or 'none in this installation'})"
    )


def checkpoints_of(run: Path) -> list[Path]:
    """The complete checkpoints of a training run, oldest first."""
    return sorted(
        (folder for folder in run.iterdir() if re.fullmatch(r"step-\d+", folder.name)),
        key=lambda folder: int(folder.name[5:]),
    )


def read_best(run: Path) -> dict:
    """best.json of a training run: `checkpoint` (a folder in the run), `step`, `bits_per_token`. Raises InputError."""
    try:
        best = json.loads((run / BEST).read_text(encoding="utf-8"))
        if re.fullmatch(r"step-\d+", best["checkpoint"]) and (run / best["checkpoint"] / "config.json").is_file():
            return best
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise InputError(f"{run / BEST}: does not name a checkpoint of this run; name one of its step-* folders instead")


def read_json(path: Path) -> Any:
    """Read a model's config.json. Raises InputError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a JSON file ({error}); expected a language model's config.json") from None


def parse_config(raw: Any, path: Path) -> ModelConfig:
    """The configuration in our own config.json, read from `path`. Raises InputError."""
    if not isinstance(raw, dict) or raw.get("format") != FORMAT or set(raw) != {"format", "model"}:
        raise InputError(f"{path}: is not a language model's config.json (expected format: '{FORMAT}', and model)")
    try:
        return dataclass_from_dict(ModelConfig, raw["model"], "model")
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def check_fit(model: LanguageModel, weights: dict[str, Tensor], path: Path) -> None:
    """Raise InputError unless weights read from `path` are finite and have the names and shapes of the model."""
    check_tensors(model.stored_weights(), weights, path)


def check_tensors(expected: dict[str, Tensor], weights: dict[str, Tensor], path: Path) -> None:
    """Raise InputError unless tensors of a file have the names and shapes of `expected`, and finite values."""
    if set(weights) != set(expected):
        odd = sorted(set(weights) ^ set(expected))[0]
        state = "lacks" if odd in expected else "has an unknown"
        raise InputError(f"{path}: {state} {odd}; weights and config.json do not belong together")
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            raise InputError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, but config.json and vocabulary.json make it "
                f"{tuple(expected[name].shape)}; they do not belong together"
            )
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise InputError(f"{path}: {name} holds values that are not finite numbers; the file is damaged")


def copy_weights(model: LanguageModel, weights: dict[str, Tensor]) -> None:
    """Copy weights that fit into the model's tensors. For FSDP's shards see `slm.training.parallel`."""
    with torch.no_grad():
        for name, tensor in model.stored_weights().items():
            tensor.copy_(weights[name])


def save_lm(model: LanguageModel, vocabulary: Vocabulary, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a model that `load_lm` reads; each file is replaced atomically.

    Args:
        model: on any device, not sharded.
        vocabulary: its vocabulary.
        folder: made when missing.
        dtype: of the stored weights; float16 halves the file.
    """
    weights = {name: tensor.detach().cpu() for name, tensor in model.stored_weights().items()}
    write_lm(model.config, weights, vocabulary, folder, dtype)


def write_lm(
    config: ModelConfig, weights: dict[str, Tensor], vocabulary: Vocabulary, folder: Path, dtype: torch.dtype
) -> None:
    """`save_lm` for weights without their model."""
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    stored = {name: tensor.to(dtype).contiguous() for name, tensor in weights.items()}
    write_atomically(folder / "model.safetensors", save(stored))
    vocabulary.save(folder / "vocabulary.json")
    text = json.dumps({"format": FORMAT, "model": config.to_dict()}, indent=2) + "\n"
    write_atomically(folder / "config.json", text.encode())
