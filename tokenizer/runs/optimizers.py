"""AdamW, or Muon for the matrices between layers and AdamW for the rest, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import nn

from tokenizer.machine import training_precision
from tokenizer.runs.divided_muon import DividedMuon
from tokenizer.runs.ranks import Ranks
from tokenizer.runs.stacked_muon import StackedMuon

SMALLEST = 64  # matrices narrower than this are not worth orthogonalizing
OWN = ("lr", "capturable")  # of a group: what it is made with, whatever a checkpoint says
LARGEST = 1_000_000  # entries: a larger matrix costs Muon more than all the rest of a step on a CPU


class OptimizerSettings(Protocol):
    """The settings of a training that the optimizers use."""

    @property
    def optimizer(self) -> str: ...  # "adamw" or "muon"

    @property
    def beta1(self) -> float: ...

    @property
    def beta2(self) -> float: ...

    @property
    def weight_decay(self) -> float: ...


def between_layers(name: str, parameter: nn.Parameter) -> bool:
    """Whether a codec's parameter maps one layer's channels to another's; a head that makes samples does not."""
    wide = parameter.ndim == 2 and min(parameter.shape) >= SMALLEST and parameter.numel() < LARGEST
    return wide and ".head." not in name


class Optimizers:
    """One or two optimizers of torch, stepped together.

    Args:
        named: names and parameters to train. Norms, biases and scales are not decayed.
        config: the training's settings.
        rate: learning rate. Muon's updates are scaled to the size of AdamW's, so one rate serves both.
        for_muon: given a name and a parameter, whether Muon takes it, if it is the optimizer.
        ranks: the processes that step together; Muon's work is divided among them.
        on_device: keep the learning rate beside the parameters, so that a step can be captured as a CUDA graph.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        config: OptimizerSettings,
        rate: float,
        for_muon: Callable[[str, nn.Parameter], bool] = between_layers,
        ranks: Ranks = Ranks(),  # noqa: B008
        on_device: bool = False,
    ) -> None:
        self.rate = rate
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in named:
            (matrices if config.optimizer == "muon" and for_muon(name, parameter) else others).append(parameter)
        groups = [
            {"params": [p for p in others if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.parameters = matrices + others
        betas = (config.beta1, config.beta2)
        first = torch.tensor(rate, device=self.parameters[0].device) if on_device else rate
        self.members: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(groups, lr=first, betas=betas, fused=True, capturable=on_device)
        ]
        if matrices:
            decay = config.weight_decay
            device = str(matrices[0].device)
            one_by_one = device == "cpu" and training_precision(device).value == "bfloat16"
            alone = torch.optim.Muon if one_by_one else StackedMuon
            muon = DividedMuon if ranks.world > 1 else alone
            self.members.append(muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
        for group in self._groups() if on_device else ():
            group["lr"] = first

    def _groups(self) -> list[dict[str, Any]]:
        return [group for member in self.members for group in member.param_groups]

    def set_rate(self, share: float) -> None:
        """The next steps are at `share` of the learning rate."""
        for group in self._groups():
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(self.rate * share)
            else:
                group["lr"] = self.rate * share

    def step(self) -> None:
        """Take a step."""
        for member in self.members:
            member.step()

    def zero_grad(self) -> None:
        for member in self.members:
            member.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return {str(index): member.state_dict() for index, member in enumerate(self.members)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        own = [{name: group[name] for name in OWN if name in group} for group in self._groups()]
        for index, member in enumerate(self.members):
            member.load_state_dict(state[str(index)])
        for group, settings in zip(self._groups(), own, strict=True):
            group.update(settings)
