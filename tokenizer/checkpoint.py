"""Weights on disk: finding, reading and writing them, and the fingerprint that names a token space.

A codec is a JSON configuration beside a safetensors file (or a `.pt` file of plain tensors, read with
`weights_only=True`). Weights may be stored in half precision; in memory they are float32.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import pickle
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokenizer.config import CodecConfig
from tokenizer.errors import InputError, first_line
from tokenizer.files import write_atomically

READ_ERRORS = (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, zipfile.BadZipFile)
"""What reading a damaged PyTorch file raises."""

SHIPPED = Path(__file__).parent / "weights"
WEIGHT_SUFFIXES = (".safetensors", ".pt")
OLD_NAMES = (
    (r"^compressor\.layers\.(\d+)\.0\.", r"compressor.layers.\1.downscale."),
    (r"^compressor\.layers\.(\d+)\.1\.", r"compressor.layers.\1.focal_block."),
    (r"^decompressor\.layers\.(\d+)\.0\.", r"decompressor.layers.\1.focal_block."),
    (r"^decompressor\.layers\.(\d+)\.1\.", r"decompressor.layers.\1.upscale."),
)


def load(name: str) -> tuple[CodecConfig, dict[str, Tensor]]:
    """Find and read a codec.

    Args:
        name: shipped name, folder, `dir/name[.json]`, or Hub id; see `Codec.from_pretrained`.

    Returns:
        The configuration, and the weights by published name, as stored.

    Raises:
        InputError: naming what was looked for and what to do.
    """
    config_path, weights_path = locate(name)
    return CodecConfig.from_file(config_path), with_present_names(read_weights(weights_path))


def locate(name: str) -> tuple[Path, Path]:
    """The paths of a codec's configuration and weights; downloads them for a Hub id. Raises InputError."""
    for base in (SHIPPED / name if re.fullmatch(r"[\w.-]+", name) else Path(name), Path(name)):
        if base.is_dir() and (base / "config.json").is_file():
            return base / "config.json", _weights_beside(base / "model", name)
        config_path = base if base.suffix == ".json" or not base.name else base.with_name(f"{base.name}.json")
        if config_path.is_file():
            return config_path, _weights_beside(config_path.with_suffix(""), name)
    if Path(name).exists() or Path(name).is_absolute() or name.startswith("."):
        raise InputError(f"codec {name}: no config.json there; expected config.json beside model.safetensors")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return download(name, ("model.safetensors", "model.pt"))
    shipped = ", ".join(sorted(p.name for p in SHIPPED.iterdir() if p.is_dir())) if SHIPPED.is_dir() else "none"
    raise InputError(
        f"codec {name!r}: not found; expected shipped weights ({shipped}), a directory with config.json and "
        "model.safetensors, or a Hugging Face id such as lucadellalib/focalcodec_50hz_4k_causal"
    )


def _weights_beside(stem: Path, name: str) -> Path:
    for suffix in WEIGHT_SUFFIXES:
        path = stem.with_name(stem.name + suffix)
        if path.is_file():
            return path
    raise InputError(f"codec {name}: found its configuration but neither {stem}.safetensors nor {stem}.pt")


def download(repo: str, weights: tuple[str, ...]) -> tuple[Path, Path]:
    """config.json and the first of the files `weights` that a Hub repository has. Raises InputError."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        config = Path(hf_hub_download(repo, "config.json"))
        for name in weights[:-1]:
            with contextlib.suppress(EntryNotFoundError):
                return config, Path(hf_hub_download(repo, name))
        return config, Path(hf_hub_download(repo, weights[-1]))
    except Exception as error:  # offline, no such repository, no access: for the user to fix
        reason = first_line(error)
        raise InputError(
            f"{repo}: no such directory here, and the Hugging Face Hub did not give it ({reason}). "
            "Check the id and the network, or download it once and pass its directory."
        ) from None


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a `.safetensors` or PyTorch file by name. Raises InputError when it is damaged or holds code."""
    weights = read_plain(path)
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise InputError(f"{path}: expected a mapping of names to tensors, as `torch.save(model.state_dict(), ...)`")
    return weights


def read_plain(path: Path) -> Any:
    """The content of a `.safetensors` or PyTorch file, on the CPU. Raises InputError: it is damaged or holds code."""
    import safetensors
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        _refuse_bomb(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (*READ_ERRORS, safetensors.SafetensorError) as error:
        reason = first_line(error)
        raise InputError(
            f"{path}: not a readable file of plain tensors ({reason}). It is damaged, or would run code when loaded; "
            "fetch it again from its source."
        ) from None


def _refuse_bomb(path: Path) -> None:
    """Raise ValueError where a zip archive unfolds to far more than it is: PyTorch stores tensors as they are."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unfolded = sum(entry.file_size for entry in archive.infolist())
        if unfolded > 2 * path.stat().st_size + (1 << 20):
            raise ValueError(f"it unfolds to {unfolded} bytes")


def with_present_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the first published files (version 0.0.1) under the names of the later ones; others as they are.

    Those files hold separate query, key and value projections, number the two halves of a focal layer where later files
    name them, and carry a norm that nothing uses.
    """
    if not any(".q_proj." in name for name in weights):
        return weights
    used = {name: tensor for name, tensor in weights.items() if not name.startswith("encoder.encoder.norm.")}
    return with_fused_attention(renamed(used, OLD_NAMES))


def check_size(config: CodecConfig, weights: dict[str, Tensor], source: str) -> None:
    """Raise InputError where a configuration takes more weights than there are, before memory is taken for them."""
    stored, least = sum(tensor.numel() for tensor in weights.values()), config.parameters_at_least
    if least > stored:
        raise InputError(
            f"{source}: its configuration makes at least {least:,} weights, but the file holds {stored:,}; weights and "
            "configuration do not belong together"
        )


def assign(module: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Copy weights into the module, as float32. Raises InputError unless names and shapes match exactly.

    `source` is what error messages call the weights, such as "codec small".
    """
    expected = module.state_dict()
    for name, tensor in expected.items():
        if name not in weights:
            raise InputError(f"{source}: weights lack {name!r}; they do not belong to this configuration")
        if weights[name].shape != tensor.shape:
            raise InputError(
                f"{source}: {name} has shape {tuple(weights[name].shape)}, but the configuration makes it "
                f"{tuple(tensor.shape)}; weights and configuration do not belong together"
            )
        if not torch.isfinite(weights[name]).all():
            raise InputError(f"{source}: {name} holds NaN or infinite values; the file is damaged")
    if extra := sorted(set(weights) - set(expected)):
        raise InputError(f"{source}: weights hold {extra[0]!r}, which the configuration does not know")
    module.load_state_dict({name: tensor.float() for name, tensor in weights.items()})


def save(config: CodecConfig, weights: dict[str, Tensor], directory: Path, dtype: torch.dtype | None = None) -> None:
    """Write config.json and model.safetensors, each atomically."""
    from safetensors.torch import save as serialize

    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().to("cpu", dtype or tensor.dtype).contiguous() for name, tensor in weights.items()}
    write_atomically(directory / "model.safetensors", serialize(tensors))
    text = json.dumps(config.to_dict(), indent=2) + "\n"
    write_atomically(directory / "config.json", text.encode())


def fingerprint(config: CodecConfig, weights: dict[str, Tensor]) -> str:
    """sha256 in hex over the canonical JSON of `config` and every weight's name, shape and float32 bytes."""
    digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode())
    for name in sorted(weights):
        tensor = weights[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def renamed(weights: dict[str, Tensor], rules: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    """Weights with every name rewritten by all (pattern, replacement) rules in order, as by `re.sub`."""
    out = {}
    for name, tensor in weights.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        out[name] = tensor
    return out


def with_fused_attention(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights with query, key and value projections joined into `qkv_proj`; a missing one makes its shape too small."""
    out = {}
    for name, tensor in weights.items():
        if ".q_proj." in name:
            parts = (weights.get(name.replace(".q_proj.", f".{part}_proj."), tensor[:0]) for part in "qkv")
            out[name.replace(".q_proj.", ".qkv_proj.")] = torch.cat(list(parts))
        elif ".k_proj." not in name and ".v_proj." not in name:
            out[name] = tensor
    return out
