"""Compiled programs kept on disk, so that only the first run of a program waits for XLA."""

import hashlib
import os
import pathlib
import platform


def default_folder() -> pathlib.Path:
    """`$XDG_CACHE_HOME/fnet-jax/<machine>`, by default below `~/.cache`.

    One folder for each kind of CPU: XLA:CPU loads a program that was compiled for instructions
    which this machine lacks, and such a program dies of an illegal instruction.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache) / "fnet-jax" / _machine()


def _machine() -> str:
    facts = platform.machine()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(errors="replace").splitlines()
        facts += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(facts.encode()).hexdigest()[:12]


def enable() -> pathlib.Path | None:
    """Switches JAX's persistent compilation cache on.

    JAX's own variables decide first: JAX_COMPILATION_CACHE_DIR names another folder,
    JAX_ENABLE_COMPILATION_CACHE=false switches the cache off.

    Returns: the folder; None if it cannot be written, and nothing is cached.
    """
    # XLA:CPU reports tuning hints of the compiler as missing features of the machine, twice for
    # each program that it loads (jax issue 38445). This silences it, if JAX is not imported yet;
    # "1" is what JAX itself sets, perhaps in a process that started this one.
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import jax

    folder = pathlib.Path(jax.config.jax_compilation_cache_dir or default_folder())
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(folder, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # Small programs are many: all of them together take seconds.
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return folder
