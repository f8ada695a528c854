"""The compilation cache, seen from processes of its own: filled once, used afterwards, harmless."""

import os
import pathlib
import subprocess
import sys

import pytest

from fnet_jax import compilation_cache

PROGRAM = """
from fnet_jax import compilation_cache
folder = compilation_cache.enable()
import jax, jax.numpy as jnp
seen = []
jax.monitoring.register_event_listener(lambda name, **_: seen.append(name))
value = float(jax.jit(lambda x: jnp.sort(x @ x)[2, 2])(jnp.ones((8, 8))))
hits = seen.count("/jax/compilation_cache/cache_hits")
print(folder, value, hits)
"""


def run(folder, **env):
    """(folder used, programs found in the cache) of a fresh process; its errors must be none."""
    env = os.environ | {"XDG_CACHE_HOME": str(folder), "JAX_PLATFORMS": "cpu"} | env
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    used, value, hits = done.stdout.split()
    assert float(value) == 8.0
    return used, int(hits), done.stderr


def entries(folder):
    return sorted(pathlib.Path(folder).glob("*-cache"))


def test_the_second_process_compiles_nothing(tmp_path):
    used, hits, errors = run(tmp_path)
    assert (hits, errors) == (0, "")
    assert pathlib.Path(used).is_relative_to(tmp_path / "fnet-jax")
    stored = entries(used)
    assert stored
    again, hits, errors = run(tmp_path)
    assert (again, hits, errors) == (used, len(stored), "")
    assert entries(used) == stored


def test_a_torn_entry_is_compiled_again(tmp_path):
    used, *_ = run(tmp_path)
    for entry in entries(used):
        entry.write_bytes(entry.read_bytes()[:50])
    run(tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "fnet-jax").write_text("a file is in the way")
    assert run(tmp_path) == ("None", 0, "")


def test_variables_of_jax_decide(tmp_path):
    other = tmp_path / "other"
    assert run(tmp_path, JAX_COMPILATION_CACHE_DIR=str(other))[0] == str(other)
    assert entries(other)
    used, *_ = run(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false")
    assert not entries(used)


def test_another_kind_of_machine_has_another_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    here = compilation_cache.default_folder()
    monkeypatch.setattr(compilation_cache.platform, "machine", lambda: "riscv64")
    there = compilation_cache.default_folder()
    assert here != there
    assert here.parent == there.parent == tmp_path / "fnet-jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert compilation_cache.default_folder().is_relative_to(pathlib.Path.home() / ".cache")


@pytest.mark.parametrize("name", ["FactorizableNet", "load_checkpoint"])
def test_the_package_loads_its_names_on_first_use(name):
    program = f"import sys, fnet_jax; assert 'jax' not in sys.modules; fnet_jax.{name}"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)
