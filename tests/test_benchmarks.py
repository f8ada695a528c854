"""The measuring itself: what is compared is compared in turn, and figures follow from times."""

import json
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import buckets, contests, timing


def test_ways_take_turns():
    calls = []
    timings = timing.rotate(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=4
    )
    assert calls == ["a", "b"] * 5  # once to warm up
    assert all(len(one.seconds) == 4 for one in timings.values())


def test_a_slow_way_still_has_three_rounds():
    calls = []
    timing.rotate({"a": lambda: calls.append("a")}, rounds=9, budget=0.0)
    assert len(calls) == 1 + 3


def test_ratios_are_paired_by_round():
    """Both become slower from round to round; side by side one is always three times as fast."""
    fast, slow = timing.Timing((1.0, 2.0, 4.0)), timing.Timing((3.0, 6.0, 12.0))
    assert timing.ratio(slow, fast) == 3.0
    assert slow.median == 6.0
    assert timing.Timing((2.0, 2.0, 2.0)).spread == 0.0


def test_a_row_and_its_line():
    contest = contests.Contest(
        "work", {"ours": lambda: None, "theirs": lambda: sum(range(20000))}, 2.0, 1e6, 1
    )
    row = contest.measure()
    assert row["ratio"]["theirs"] > 1
    assert row["goal"] == 2.0
    text = contests.line(row)
    assert "work" in text and "theirs" in text and "goal 2x" in text and "GMAC/s" in text
    assert "p95" in text and row["images_per_second"] > 0


def test_waste_of_buckets():
    sizes = np.array([[100, 200], [200, 100], [100, 100]])
    assert buckets.waste(sizes, [(200, 200)]) == pytest.approx(120000 / 50000 - 1)
    assert buckets.waste(sizes, [(200, 200), (100, 200), (200, 100)]) == pytest.approx(0.2)
    chosen = buckets.choose(sizes, 4)
    assert (200, 200) in chosen
    assert buckets.waste(sizes, chosen) == 0.0


def test_command(tmp_path):
    command = [sys.executable, "-m", "benchmarks"]
    path = tmp_path / "rows.json"
    done = subprocess.run(
        [*command, "--only", "matrix_product", "--json", str(path)],
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    assert "GMAC/s" in done.stdout
    content = json.loads(path.read_text())
    assert content["machine"]["cores"] > 0
    assert content["rows"]["matrix_product"][0]["ms"]["ours"] > 0
    done = subprocess.run([*command, "--only", "nmms"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr.startswith("error: --only: no group 'nmms'") and done.stderr.count("\n") == 1
