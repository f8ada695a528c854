"""python -m benchmarks [--only nms,roi_align] [--json FILE]: a table on screen, and as JSON."""

import argparse
import json
import pathlib

from benchmarks import kernels
from benchmarks.contests import line

GROUPS = {
    "nms": kernels.nms,
    "clustering": kernels.clustering,
    "roi_align": kernels.roi_align,
    "backbone": kernels.backbone,
    "region_convolutions": kernels.region_convolutions,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", default=",".join(GROUPS), help="groups, comma-separated")
    parser.add_argument("--json", type=pathlib.Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    rows = []
    for group in arguments.only.split(","):
        for contest in GROUPS[group]():
            rows.append(contest.measure() | {"group": group})
            print(line(rows[-1]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
