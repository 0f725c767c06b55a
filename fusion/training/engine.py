"""The processes of a training: one, or as many as torchrun has started, by Lightning Fabric."""

import os
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..extras import require


class Engine:
    """One process, which needs no engine; also what :class:`_Processes` does differently."""

    rank, processes = 0, 1

    def device(self, wanted: torch.device) -> torch.device:
        """Where this process computes, if the features are on `wanted`."""
        return wanted

    def setup(self, step: nn.Module) -> nn.Module:
        """The module whose gradients all processes share."""
        return step

    def backward(self, loss: Tensor) -> None:
        """Gradients of the loss, averaged over the processes."""
        loss.backward()

    def from_main(self, thing: Any) -> Any:
        """What the main process has, in all of them, once all have come here."""
        return thing

    def wait(self) -> None:
        """Go on when every process has come here."""


class _Processes(Engine):
    """Several processes with a share of every batch each, through DistributedDataParallel."""

    def __init__(self, accelerator: str) -> None:
        fabric = require("lightning_fabric", "distributed")
        here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
        nodes = int(os.environ["WORLD_SIZE"]) // here
        self.fabric = fabric.Fabric(accelerator=accelerator, devices=here, num_nodes=nodes, strategy="ddp")
        self.fabric.launch()
        self.rank, self.processes = self.fabric.global_rank, self.fabric.world_size

    def device(self, wanted: torch.device) -> torch.device:
        return cast(torch.device, self.fabric.device)

    def setup(self, step: nn.Module) -> nn.Module:
        return cast(nn.Module, self.fabric.setup_module(step))

    def backward(self, loss: Tensor) -> None:
        self.fabric.backward(loss)

    def from_main(self, thing: Any) -> Any:
        return self.fabric.broadcast(thing)

    def wait(self) -> None:
        self.fabric.barrier()


def engine_for(device: torch.device) -> Engine:
    """The engine of this process, by the environment that torchrun leaves.

    Raises:
        ModuleNotFoundError: torchrun has started several processes, and lightning-fabric is not installed.
    """
    return _processes(device.type) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else Engine()


@cache
def _processes(accelerator: str) -> Engine:
    return _Processes(accelerator)
