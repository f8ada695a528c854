"""The report on source files: what it counts, and which images it names."""

import json
import os
import pathlib
import shutil

import pytest

from fnet_jax.datasets import create_builder
from fnet_jax.datasets.report import MISTAKES, ODDITIES, report
from fnet_jax.datasets.vg150 import tables
from fnet_jax.errors import UserError

REPOSITORY = pathlib.Path(__file__).parents[2]
SHARED = pathlib.Path(os.environ.get("FNET_SHARED", REPOSITORY.parent / "shared"))
COUNTS = (
    "images",
    "images with relationships",
    "objects",
    "relationships",
    "unique triplets",
    "unique ordered pairs",
    "regions",
)


def dummy(name):
    return REPOSITORY / "datasets" / name / "dummy_data"


def counts(found):
    return tuple(found.counts[name] for name in COUNTS)


def findings(found):
    """{kind: (count, names)} of what was found, reasons cut off the names."""
    return {
        kind: (finding.count, [name.split(" (")[0] for name in finding.examples])
        for kind, finding in found.findings.items()
        if finding.count
    }


@pytest.fixture
def images(tmp_path):
    """A list of images, in VG-DR-Net's form, to change before `report_on` reads it."""
    shutil.copytree(dummy("vg_dr_net"), tmp_path / "source")
    return json.loads((tmp_path / "source" / "train_normal.json").read_text())


@pytest.fixture
def report_on(tmp_path):
    """A function that writes a list of images in VG-DR-Net's form and reports on it."""

    def write_and_report(images):
        (tmp_path / "source" / "train_normal.json").write_text(json.dumps(images))
        return report(create_builder("vg_dr_net", ""), tmp_path / "source", "train")

    return write_and_report


@pytest.mark.parametrize(
    ("name", "folder", "split", "expected", "found"),
    [
        (
            "vrd",
            "official",
            "train",
            (5, 4, 9, 8, 7, 6, 0),
            {
                "repeated": (1, ["rider.jpg"]),
                "several": (1, ["rider.jpg"]),
                "self": (1, ["rider.jpg"]),
                "outside": (1, ["rider.jpg"]),
                "unreadable": (1, ["missing.jpg"]),
            },
        ),
        (
            "vg_msdn",
            "",
            "train",
            (3, 1, 5, 4, 3, 2, 2),
            {
                "repeated": (1, ["101.jpg"]),
                "several": (1, ["101.jpg"]),
                "unreadable": (1, ["103.jpg"]),
            },
        ),
        (
            "vg_dr_net",
            "",
            "train",
            (3, 1, 4, 3, 2, 2, 0),
            {"repeated": (1, ["11.jpg"]), "unreadable": (1, ["13.jpg"])},
        ),
        (
            "vg150",
            "",
            "train",
            (2, 2, 6, 6, 5, 4, 0),
            {
                "repeated": (1, ["3.jpg"]),
                "several": (1, ["3.jpg"]),
                "self": (1, ["3.jpg"]),
                "size": (1, ["3.jpg"]),
            },
        ),
        ("vg150", "", "validation", (1, 1, 2, 1, 1, 1, 0), {}),
        (
            "vg150",
            "",
            "test",
            (2, 2, 4, 3, 2, 2, 0),
            {"repeated": (1, ["5.jpg"]), "unreadable": (1, ["7.jpg"])},
        ),
        (
            "psg",
            "",
            "train",
            (3, 3, 7, 7, 6, 5, 0),
            {
                "repeated": (1, ["train2017/000000000009.jpg"]),
                "several": (1, ["train2017/000000000009.jpg"]),
                "size": (1, ["train2017/000000000034.jpg"]),
                "unreadable": (1, ["train2017/000000000036.jpg"]),
            },
        ),
        (
            "psg",
            "",
            "test",
            (2, 2, 4, 3, 3, 3, 0),
            {
                "self": (1, ["train2017/000000000025.jpg"]),
                "unreadable": (1, ["train2017/000000000049.jpg"]),
            },
        ),
    ],
)
def test_dummy_data(monkeypatch, name, folder, split, expected, found):
    monkeypatch.setattr(tables, "VALIDATION_IMAGES", 1)
    result = report(create_builder(name, ""), dummy(name) / folder, split)
    assert counts(result) == expected
    assert findings(result) == found
    assert result.mistakes == sum(found[kind][0] for kind in MISTAKES if kind in found)
    assert result.oddities == sum(found[kind][0] for kind in ODDITIES if kind in found)


def without_photo(images, folder):
    (folder / "images" / "12.jpg").write_bytes(b"")


def listed_twice(images, folder):
    images.append(images[0])
    images.append(images[0])
    images.append(images[1])


def no_boxes(images, folder):
    images[0]["objects"][0]["bbox"] = [9, 0, 8, 5]
    images[0]["objects"][1]["bbox"] = [0, 9, 5, 8]
    images[2]["objects"][0]["bbox"] = [0, 0, float("nan"), 5]


def one_point_boxes(images, folder):
    images[0]["objects"][0]["bbox"] = [9, 8, 9, 8]
    images[0]["objects"][1]["bbox"] = [0, 0, 45, 41]


def unknown_classes(images, folder):
    images[0]["objects"][0]["class"] = 4
    images[0]["objects"][2]["class"] = -1
    images[2]["objects"][0]["class"] = 0


def unknown_predicates(images, folder):
    images[0]["relationships"][1]["predicate"] = 3
    images[0]["relationships"][2]["predicate"] = 0


def unknown_objects(images, folder):
    images[0]["relationships"][0]["obj_id"] = 3
    images[1]["relationships"].append({"sub_id": 0, "obj_id": 0, "predicate": 1})


def outside_boxes(images, folder):
    # The photo has 46 x 42 pixels.
    images[0]["objects"][0]["bbox"] = [-1, 0, 5, 5]
    images[0]["objects"][1]["bbox"] = [0, 0, 46, 5]
    images[0]["objects"][2]["bbox"] = [0, 0, 45, 42]


def self_and_several(images, folder):
    images[0]["relationships"] = [
        {"sub_id": subject, "obj_id": object_, "predicate": predicate}
        for subject, object_, predicate in [(1, 1, 1), (1, 1, 2), (0, 1, 1), (0, 1, 2), (1, 0, 2)]
    ]


@pytest.mark.parametrize(
    ("change", "kind", "expected"),
    [
        (without_photo, "unreadable", (2, ["12.jpg", "13.jpg"])),
        (listed_twice, "name", (3, ["11.jpg", "12.jpg"])),
        (no_boxes, "box", (3, ["11.jpg", "13.jpg"])),
        (one_point_boxes, "box", None),
        (one_point_boxes, "outside", None),
        (unknown_classes, "class", (3, ["11.jpg", "13.jpg"])),
        (unknown_predicates, "predicate", (2, ["11.jpg"])),
        (unknown_objects, "relationship", (2, ["11.jpg", "12.jpg"])),
        (outside_boxes, "outside", (3, ["11.jpg"])),
        (self_and_several, "self", (1, ["11.jpg"])),
        (self_and_several, "several", (2, ["11.jpg"])),
        (self_and_several, "repeated", None),
    ],
)
def test_each_finding_is_counted_and_named(tmp_path, images, report_on, change, kind, expected):
    change(images, tmp_path / "source")
    assert findings(report_on(images)).get(kind) == expected


def test_only_the_first_names_are_printed(images, report_on):
    images += [dict(images[2], path=f"{number}.jpg") for number in range(14, 20)]
    found = report_on(images)
    assert findings(found)["unreadable"] == (7, ["13.jpg", "14.jpg", "15.jpg"])
    (line,) = [line for line in found.lines() if "missing or unreadable" in line]
    assert line.split()[4] == "7"
    assert line.endswith("images), ...")
    assert "16.jpg" not in line


def test_lines_hold_every_count(images, report_on):
    lines = list(report_on(images).lines())
    numbers = {line[2:54].strip(): line[54:].split()[0] for line in lines}
    assert numbers == {
        "images": "3",
        "images with relationships": "1",
        "objects": "4",
        "relationships": "3",
        "unique triplets": "2",
        "unique ordered pairs": "2",
        "object classes in use": "3",
        "predicates in use": "2",
        **dict.fromkeys((ODDITIES | MISTAKES).values(), "0"),
        "relationships annotated more than once": "1",
        "photos missing or unreadable": "1",
    }


def test_numbers_from_0_are_recognised(images, report_on):
    for image in images:
        for item in image["objects"]:
            item["class"] -= 1
        for item in image["relationships"]:
            item["predicate"] -= 1
    text = "\n".join(report_on(images).lines())
    assert "class ids run from 0 to 2: they seem to count from 0" in text
    assert "predicate ids run from 0 to 1: they seem to count from 0" in text


def test_one_class_0_alone_is_no_such_sign(images, report_on):
    images[0]["objects"][0]["class"] = 0
    assert "count from 0" not in "\n".join(report_on(images).lines())


def test_files_in_another_format_are_errors(images, report_on):
    del images[0]["relationships"][0]["obj_id"]
    with pytest.raises(UserError, match=r"train_normal\.json: .*'11\.jpg'.*'obj_id'"):
        report_on(images)


def test_progress_can_be_watched():
    seen = []

    def watch(scenes):
        for scene in scenes:
            seen.append(scene.annotation.filename)
            yield scene

    report(create_builder("vg_dr_net", ""), dummy("vg_dr_net"), "train", watch)
    assert seen == ["11.jpg", "12.jpg", "13.jpg"]


@pytest.mark.skipif(not (SHARED / "data" / "vrd").is_dir(), reason=f"no annotations in {SHARED}")
@pytest.mark.parametrize(
    ("split", "expected"),
    [("train", (4000, 3780, 30355, 29861, 26964)), ("test", (1000, 955, 7638, 7478, 6806))],
)
def test_real_annotations_of_vrd(tmp_path, split, expected):
    (tmp_path / "json_dataset").symlink_to(SHARED / "data" / "vrd")
    (tmp_path / "sg_dataset").mkdir()
    found = report(create_builder("vrd", ""), tmp_path, split)
    images, related, relationships, triplets, pairs = expected
    assert {name: found.counts[name] for name in COUNTS if name != "objects"} == {
        "images": images,
        "images with relationships": related,
        "relationships": relationships,
        "unique triplets": triplets,
        "unique ordered pairs": pairs,
        "regions": 0,
    }
    assert found.findings["repeated"].count == relationships - triplets
    assert found.findings["unreadable"].count == images, "no photo is there"
    assert found.mistakes == images, "nothing else is wrong"
    text = "\n".join(found.lines())
    assert f"unique ordered pairs {pairs:>40}" in text
    annotations = json.loads((SHARED / "data" / "vrd" / f"annotations_{split}.json").read_text())
    predicates = {entry["predicate"] for entries in annotations.values() for entry in entries}
    assert "100 of 100" in text
    assert f"predicates in use {len(predicates):>43} of 70" in text
