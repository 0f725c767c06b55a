"""What happened in a training, epoch by epoch: a CSV file, and TensorBoard if it is wanted."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from pnp.atomic import replacing

from ..extras import require
from .run import Epoch

NAME, BOARD = "log.csv", "tensorboard"


class Log:
    """Writes into the folder of a run.

    Arguments:
        folder: Of the run.
        tensorboard: Also write events into its folder `tensorboard`.
        epochs: How many are finished; events of later ones, from a process that was killed, are discarded.

    Raises:
        ModuleNotFoundError: tensorboard is wanted and not installed.
    """

    def __init__(self, folder: Path, tensorboard: bool, *, epochs: int) -> None:
        self.path = folder / NAME
        self.board: Any = None
        if tensorboard:
            require("tensorboard", "tensorboard")
            writer = require("torch.utils.tensorboard", "tensorboard").SummaryWriter
            self.board = writer(str(folder / BOARD), purge_step=epochs + 1)

    def write(self, history: Sequence[Epoch]) -> None:
        """Replace the CSV file by one of all epochs so far, and add the last one to TensorBoard."""
        text = io.StringIO()
        table = csv.DictWriter(text, [field.name for field in fields(Epoch)], lineterminator="\n")
        table.writeheader()
        table.writerows(asdict(epoch) for epoch in history)
        with replacing(self.path) as temporary:
            temporary.write_text(text.getvalue(), encoding="utf-8")
        if self.board is not None:
            for name, value in asdict(history[-1]).items():
                if name != "epoch" and value is not None:
                    self.board.add_scalar(name, value, history[-1].epoch)
            self.board.flush()

    def close(self) -> None:
        """Finish the TensorBoard log."""
        if self.board is not None:
            self.board.close()
