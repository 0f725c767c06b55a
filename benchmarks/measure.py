"""Clocks, medians, tables and the files of raw numbers."""

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent / "results"
SLOW = 10.0


class Cost(NamedTuple):
    """Seconds: of all threads of this process, and by the clock on the wall."""

    cpu: float
    wall: float


def clock(call: Callable[[], Any]) -> Cost:
    """What one call costs, without Python's search for cyclic garbage among whatever other codes have left behind."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        return Cost(time.process_time() - cpu, time.perf_counter() - wall)
    finally:
        if collecting:
            gc.enable()


def per_call(call: Callable[[], Any], seconds: float = 0.2) -> Cost:
    """What one call costs, from as many as fill some time."""
    once = clock(call)
    times = max(1, min(1000, int(seconds / max(once.wall, 1e-9))))
    if times == 1:
        return once
    total = clock(lambda: [call() for _ in range(times)])
    return Cost(total.cpu / times, total.wall / times)


def alternating(
    calls: Mapping[str, Callable[[], Any]], rounds: int, how: Callable[[Callable[[], Any]], Cost] = clock
) -> dict[str, Cost]:
    """Medians of rounds in which every call has its turn, so that a busy moment of the machine hits all alike.

    What takes longer than SLOW seconds has one turn only.
    """
    seen: dict[str, list[Cost]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            if seen[name] and seen[name][0].wall > SLOW:
                continue
            seen[name].append(how(call))
    return {name: median(costs) for name, costs in seen.items()}


def median(costs: Iterable[Cost]) -> Cost:
    """Of either clock."""
    return Cost(*(statistics.median(column) for column in zip(*costs, strict=True)))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def options(description: str, **more: Mapping[str, Any]) -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="few cells and one round: does it run at all?")
    parser.add_argument("--peers", action="store_true", help="other codes too, as far as they are installed")
    for name, settings in more.items():
        parser.add_argument(f"--{name}", **settings)
    return parser.parse_args()


def save(name: str, numbers: Any) -> None:
    """Keep raw numbers, so that the page can be made again without measuring."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


def load(name: str) -> Any:
    """Raw numbers of an earlier run, None where there are none."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def machine() -> dict[str, str]:
    """Processor and versions, in general words."""
    processor = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [line for line in information.read_text().splitlines() if line.startswith("model name")]
        processor = names[0].split(":", 1)[1].strip() if names else processor
    found = {"processor": processor, "cores": str(os.cpu_count()), "Python": platform.python_version()}
    for package in ("numpy", "scipy", "torch", "numba", "pybamm", "devsim", "matscipy", "fipy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
