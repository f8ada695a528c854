"""What only a fresh process shows: compile times, time to the first result, peak memory.

python -m benchmarks.processes WORK WEIGHTS runs one piece of work and prints what it saw as JSON;
`measure` does that for each, first with an empty compilation cache, then with a filled one.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any


def measure() -> Iterator[dict[str, Any]]:
    """Rows: the work, and for a cold and a warm cache seconds and megabytes."""
    from benchmarks import models
    from fnet_jax.weights import export_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        weights = pathlib.Path(folder) / "weights.h5"
        export_checkpoint(weights, models.untrained_params())
        for work in ("detection", "training"):
            cache = pathlib.Path(folder) / f"cache_{work}"
            row = {"name": f"fresh process, {work} 600x800"}
            for state in ("cold", "warm"):
                row[state] = _run(work, weights, cache)
            yield row


def line(row: dict[str, Any]) -> str:
    """A row as text."""
    parts = [f"{row['name']:<40}"]
    for state in ("cold", "warm"):
        seen = row[state]
        parts.append(
            f"{state} cache: first result after {seen['first_result']:.1f} s (imports "
            f"{seen['imports']:.1f}, weights {seen['weights']:.1f}, tracing {seen['tracing']:.1f}, "
            f"compiling {seen['compiling']:.1f}, first run {seen['first_run']:.1f}), peak "
            f"{seen['peak_megabytes']:.0f} MB"
        )
    return "\n    ".join(parts)


def _run(work: str, weights: pathlib.Path, cache: pathlib.Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.processes", work, str(weights)]
    env = os.environ | {"XDG_CACHE_HOME": str(cache), "FNET_BENCH_START": repr(time.time())}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _peak_megabytes() -> float:
    """Most memory this process has held; getrusage would count what its parent held, too."""
    status = pathlib.Path("/proc/self/status").read_text()
    kilobytes = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(kilobytes.split()[1]) / 1024


def _main(work: str, weights: str) -> None:
    start = float(os.environ["FNET_BENCH_START"])
    from fnet_jax import compilation_cache

    compilation_cache.enable()
    import jax

    from benchmarks import models
    from fnet_jax import builder
    from fnet_jax.detect import detect
    from fnet_jax.weights import load_checkpoint

    imported = time.time()
    model, example = models.model(), models.example()
    shape = jax.ShapeDtypeStruct((32, 32, 3), "float32")
    template = jax.eval_shape(model.init, jax.random.key(0), shape)["params"]
    params = load_checkpoint(weights, template)
    loaded = time.time()

    if work == "detection":
        options = builder.test_options(models.config())
        function = jax.jit(lambda p, e: detect(model, p, e, options))
    else:
        function = jax.jit(models.training_step)
    lowered = function.lower(params, example)
    traced = time.time()
    compiled = lowered.compile()
    ready = time.time()
    jax.block_until_ready(compiled(params, example))
    end = time.time()
    seen = {
        "first_result": end - start,
        "imports": imported - start,
        "weights": loaded - imported,
        "tracing": traced - loaded,
        "compiling": ready - traced,
        "first_run": end - ready,
        "peak_megabytes": _peak_megabytes(),
    }
    print(json.dumps({name: round(value, 2) for name, value in seen.items()}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
