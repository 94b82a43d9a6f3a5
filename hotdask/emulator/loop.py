"""The optimization of one network: Adam under a one-cycle schedule, stopped early by a validation set."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from hotdask.errors import EmulatorError


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to learn.

    Attributes
    ----------
    passes : int
        Passes over the drawn spectra, if nothing stops it before.
    batch : int
        Spectra per step.
    learning_rate : float
        Peak of the one-cycle schedule.
    patience : int
        Passes without a better validation loss after which to stop.
    """

    passes: int
    batch: int
    learning_rate: float
    patience: int


@dataclass
class History:
    """Loss of each pass, and where validation was best (passes count from 1; 0: none yet)."""

    train: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    best: int = 0


class Optimization:
    """One network being trained.

    Parameters
    ----------
    network : torch.nn.Module
        On the device where it shall be trained.
    loss : callable
        (network, inputs, targets) to a scalar, the mean over spectra.
    learned, validation : (inputs, targets)
        Tensors on that device, (n, 17) and (n, m).
    schedule : Schedule
    seed : int
        Of the order of the spectra.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        loss: Callable,
        learned: tuple[torch.Tensor, torch.Tensor],
        validation: tuple[torch.Tensor, torch.Tensor],
        schedule: Schedule,
        *,
        seed: int,
    ):
        self.network, self._loss = network, loss
        self._learned, self._validation, self.schedule = learned, validation, schedule
        self.history = History()
        self._steps = -(-len(learned[0]) // schedule.batch)
        self._optimizer = torch.optim.Adam(network.parameters(), lr=schedule.learning_rate, fused=True)
        self._rate = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer,
            max_lr=schedule.learning_rate,
            # With ten steps the rise would be one step long, by whose length torch divides.
            total_steps=max(11, schedule.passes * self._steps),
            pct_start=0.1,
        )
        self._order = torch.Generator().manual_seed(seed)
        self._best = {name: p.detach().clone() for name, p in network.named_parameters()}

    @property
    def finished(self) -> bool:
        """Whether all passes are done or validation has not improved for too long."""
        done = len(self.history.train)
        return done >= self.schedule.passes or done - self.history.best >= self.schedule.patience

    def step(self) -> tuple[float, float]:
        """One pass over the spectra; returns its mean loss and the validation loss after it.

        Raises
        ------
        EmulatorError
            If a loss is not finite.
        """
        inputs, targets = self._learned
        order = torch.randperm(len(inputs), generator=self._order).to(inputs.device)
        total = torch.zeros((), device=inputs.device, dtype=torch.float64)
        for rows in order.split(self.schedule.batch):
            loss = self._loss(self.network, inputs[rows], targets[rows])
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
            self._rate.step()
            total += loss.detach() * len(rows)
        history = self.history
        history.train.append(float(total) / len(inputs))
        history.validation.append(self.validate())
        if not np.isfinite([history.train[-1], history.validation[-1]]).all():
            raise EmulatorError(f"the loss is not finite after pass {len(history.train)}; lower the learning rate")
        if not history.best or history.validation[-1] < history.validation[history.best - 1]:
            history.best = len(history.validation)
            for name, parameter in self.network.named_parameters():
                self._best[name].copy_(parameter.detach())
        return history.train[-1], history.validation[-1]

    def validate(self) -> float:
        """Loss on the validation set."""
        inputs, targets = self._validation
        with torch.no_grad():
            parts = [
                float(self._loss(self.network, x, y)) * len(x)
                for x, y in zip(inputs.split(512), targets.split(512), strict=True)
            ]
        return sum(parts) / len(inputs)

    def best(self) -> dict[str, np.ndarray]:
        """Parameters with the lowest validation loss."""
        return {name: tensor.cpu().numpy() for name, tensor in self._best.items()}

    def state(self) -> tuple[dict[str, torch.Tensor], dict]:
        """Everything a stopped training needs to go on: tensors, and JSON values."""
        adam = self._optimizer.state_dict()
        tensors = {f"adam.{i}.{name}": t for i, moments in adam["state"].items() for name, t in moments.items()}
        tensors |= {f"network.{name}": p for name, p in self.network.named_parameters()}
        tensors |= {f"best.{name}": t for name, t in self._best.items()}
        tensors["order"] = self._order.get_state()
        history = {"train": self.history.train, "validation": self.history.validation, "best": self.history.best}
        return tensors, {"groups": adam["param_groups"], "rate": self._rate.state_dict(), "history": history}

    def restore(self, tensors: dict[str, torch.Tensor], state: dict) -> None:
        """Go on from what `state` gave."""
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for key, tensor in tensors.items():
            if key.startswith("adam."):
                _, index, name = key.split(".")
                moments.setdefault(int(index), {})[name] = tensor
        self._rate.load_state_dict(state["rate"])
        # After the schedule, whose construction has set rates of its own.
        self._optimizer.load_state_dict({"state": moments, "param_groups": state["groups"]})
        with torch.no_grad():
            for name, parameter in self.network.named_parameters():
                parameter.copy_(tensors[f"network.{name}"])
                self._best[name].copy_(tensors[f"best.{name}"])
        self._order.set_state(tensors["order"])
        self.history = History(**state["history"])
