"""Measures kernels, stages, programs and processes; prints a table and writes it as JSON.

python -m benchmarks [--only nms,roi_align] [--json FILE]

Peers (extra `bench`: torch, torchvision) run in turn with our code; without them their columns are
left out. Ratios are how many times faster we are, median over the rounds.
"""

import argparse
import json
import os
import pathlib
import platform
import sys

import jax

from benchmarks import contests, kernels, peers, pipeline, processes, stages

GROUPS = {
    "matrix_product": stages.matrix_product,
    "nms": kernels.nms,
    "triplet_nms": kernels.triplet_nms,
    "propose": kernels.propose,
    "clustering": kernels.clustering,
    "roi_align": kernels.roi_align,
    "backbone": kernels.backbone,
    "region_convolutions": kernels.region_convolutions,
    "stages": stages.stages,
    "detection": stages.detection,
    "training": stages.training,
    "input_pipeline": pipeline.input_pipeline,
    "processes": None,  # Rows of another kind, see below.
}


def machine() -> dict:
    """What the figures depend on."""
    return {
        "cores": os.cpu_count(),
        "cpu": platform.processor() or platform.machine(),
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "torch": peers.torch.__version__ if peers.AVAILABLE else None,
    }


def measure(group: str):
    """Rows of a group, printed as they come."""
    if group == "processes":
        for row in processes.measure():
            print(processes.line(row), flush=True)
            yield row
        return
    for contest in GROUPS[group]():
        row = contest.measure()
        print(contests.line(row), flush=True)
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default=",".join(GROUPS), help="comma-separated groups")
    parser.add_argument("--json", type=pathlib.Path, help="also write everything to this file")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",")
    unknown = [group for group in chosen if group not in GROUPS]
    if unknown:
        sys.exit(f"error: --only: no group {unknown[0]!r}; there are {', '.join(GROUPS)}")
    facts = machine()
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    rows = {group: list(measure(group)) for group in chosen}
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
