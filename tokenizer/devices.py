"""Where models run: the check that a device can be used, before anything is loaded onto it."""

from __future__ import annotations

from tokenizer.errors import InputError


def check_device(device: str) -> None:
    """Raise InputError unless PyTorch can put a tensor on `device` ("cpu", "cuda", "cuda:1")."""
    import torch

    try:
        if torch.device(device).type == "meta":
            raise RuntimeError("it holds no data")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n")[0].split(":")[0][:100]
        raise InputError(
            f"device '{device}' cannot be used ({reason}); expected \"cpu\" or a GPU of this machine"
        ) from None
