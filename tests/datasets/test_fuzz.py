"""Sources that are right, damaged or odd: the right graph, or one line that says what to mend."""

import dataclasses
import functools
import json
import pathlib
import shutil
import struct
import zlib
from collections.abc import Callable

import cv2
import h5py
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from fnet_jax.datasets import create_builder, load_builder
from fnet_jax.datasets.photo_files import Photos
from fnet_jax.datasets.schema import (
    MAX_OBJECTS,
    Annotation,
    Scene,
    Skipped,
    Vocabulary,
    check,
)
from fnet_jax.datasets.split import Split
from fnet_jax.datasets.vg150 import tables
from fnet_jax.errors import UserError
from tests.json_values import places

DATASETS = pathlib.Path(__file__).parents[2] / "datasets"
settings = hypothesis.settings(max_examples=60, deadline=None, derandomize=True)

CLASSES = ["person", "自転車", "été"]
PREDICATES = ["on", "près de"]
NAN, INFINITY = float("nan"), float("inf")


@dataclasses.dataclass(frozen=True)
class Form:
    """A form in which graphs are stored: how to write it, and what it keeps of a split."""

    builder: str
    dummy: str  # Under datasets/.
    write: Callable[[pathlib.Path, list[Annotation], list[Annotation]], None]  # Train, test.
    kept: Callable[[list[Annotation], str], list[Annotation]]  # Of a split.

    @property
    def source(self) -> pathlib.Path:
        return DATASETS / self.dummy

    def read(self, source: pathlib.Path, split: str = "train") -> list[Annotation]:
        """The images of a split, as far as they are read without photos."""
        builder = create_builder(self.builder, "")
        vocabulary = builder.vocabulary(source)
        images = list(builder.annotations(source, split))
        for image in images:
            check(image, vocabulary)
        return images


def dump(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def write_official(folder, train, test):
    def role(image, index):
        x1, y1, x2, y2 = image.boxes[index]
        return {"category": image.labels[index] - 1, "bbox": [y1, y2, x1, x2]}

    for split, images in (("train", train), ("test", test)):
        content = {
            image.filename: [
                {"predicate": p - 1, "subject": role(image, s), "object": role(image, o)}
                for s, o, p in image.relationships
            ]
            for image in images
        }
        dump(folder / "json_dataset" / f"annotations_{split}.json", content)
    dump(folder / "json_dataset" / "objects.json", CLASSES)
    dump(folder / "json_dataset" / "predicates.json", PREDICATES)


def kept_officially(images, split):
    """Objects that are related, equal ones being one, as first mentioned."""
    kept = []
    for image in images:
        objects = list(zip(image.labels, image.boxes, strict=True))
        mentioned = [objects[index] for triple in image.relationships for index in triple[:2]]
        order = list(dict.fromkeys(mentioned))
        place = [order.index(item) if item in order else None for item in objects]
        kept.append(
            Annotation(
                image.filename,
                [box for _, box in order],
                [label for label, _ in order],
                [(place[s], place[o], p) for s, o, p in image.relationships],
            )
        )
    return kept


def write_converted(suffix, folder, train, test):
    for split, images in (("train", train), ("test", test)):
        content = [
            {
                "path": image.filename,
                "objects": [
                    {"bbox": box, "class": label}
                    for box, label in zip(image.boxes, image.labels, strict=True)
                ],
                "relationships": [
                    {"sub_id": s, "obj_id": o, "predicate": p} for s, o, p in image.relationships
                ],
            }
            for image in images
        ]
        dump(folder / f"{split}{suffix}.json", content)
    dump(folder / "objects.json", CLASSES)
    dump(folder / "predicates.json", PREDICATES)


def write_msdn(folder, train, test):
    for split, images in (("train", train), ("test", test)):
        content = [
            {
                "path": image.filename,
                "objects": [
                    {"box": box, "class": CLASSES[label - 1]}
                    for box, label in zip(image.boxes, image.labels, strict=True)
                ],
                "relationships": [
                    {"sub_id": s, "obj_id": o, "predicate": PREDICATES[p - 1]}
                    for s, o, p in image.relationships
                ],
                "regions": [{"box": box, "phrase": text.split(" ")} for box, text in image.regions],
            }
            for image in images
        ]
        dump(folder / f"{split}.json", content)
    dump(folder / "categories.json", {"object": CLASSES, "predicate": PREDICATES})


def kept_entirely(images, split):
    return images


def write_psg(folder, train, test):
    content = {
        "data": [
            {
                "image_id": image.filename,
                "file_name": image.filename,
                "height": 100,
                "width": 100,
                "annotations": [
                    {"bbox": box, "category_id": label - 1}
                    for box, label in zip(image.boxes, image.labels, strict=True)
                ],
                "relations": [[s, o, p - 1] for s, o, p in image.relationships],
            }
            for image in (*train, *test)
        ],
        "thing_classes": CLASSES[:1],
        "stuff_classes": CLASSES[1:],
        "predicate_classes": PREDICATES,
        "test_image_ids": [image.filename for image in test],
    }
    dump(folder / "psg.json", content)


def kept_by_psg(images, split):
    """Images with relationships; each of these once in the test split."""
    kept = [image for image in images if image.relationships]
    if split == "train":
        return kept
    return [
        dataclasses.replace(image, relationships=list(dict.fromkeys(image.relationships)))
        for image in kept
    ]


def write_vg150(folder, train, test):
    """Boxes must be whole numbers, and file names numbers."""
    images = [*train, *test]
    columns = {name: [] for name in tables._COLUMNS}
    columns["split"] = [0] * len(train) + [2] * len(test)
    for image in images:
        first = len(columns["labels"])
        for (x1, y1, x2, y2), label in zip(image.boxes, image.labels, strict=True):
            # Rounded up, so that truncation restores the corner.
            width, height = x2 - x1, y2 - y1
            columns["boxes_1024"].append([x1 + -(-width // 2), y1 + -(-height // 2), width, height])
            columns["labels"].append([label])
        for s, o, p in image.relationships:
            columns["relationships"].append([first + s, first + o])
            columns["predicates"].append([p])
        for kind, column, count in (
            ("box", "labels", len(image.boxes)),
            ("rel", "predicates", len(image.relationships)),
        ):
            end = len(columns[column])
            columns[f"img_to_first_{kind}"].append(end - count if count else -1)
            columns[f"img_to_last_{kind}"].append(end - 1 if count else -1)
    widths = {"boxes_1024": [4], "relationships": [2], "labels": [1], "predicates": [1]}
    with h5py.File(folder / "VG-SGG.h5", "w") as file:
        for name, rows in columns.items():
            file[name] = np.array(rows, np.int32).reshape(len(rows), *widths.get(name, []))
    numbers = [1592, *(int(pathlib.PurePath(image.filename).stem) for image in images)]
    listed = [{"image_id": number, "width": 100, "height": 100} for number in numbers]
    dump(folder / "image_data.json", listed)
    objects, predicates = (
        {name: number for number, name in enumerate(names, 1)} for names in (CLASSES, PREDICATES)
    )
    dump(folder / "VG-SGG-dicts.json", {"label_to_idx": objects, "predicate_to_idx": predicates})


def kept_by_vg150(images, split):
    return [image for image in images if image.relationships]


FORMS = {
    "official": Form("vrd", "vrd/dummy_data/official", write_official, kept_officially),
    "converted": Form(
        "vrd",
        "vrd/dummy_data/converted",
        functools.partial(write_converted, ""),
        kept_entirely,
    ),
    "vg_msdn": Form("vg_msdn", "vg_msdn/dummy_data", write_msdn, kept_entirely),
    "vg_dr_net": Form(
        "vg_dr_net",
        "vg_dr_net/dummy_data",
        functools.partial(write_converted, "_normal"),
        kept_entirely,
    ),
    "vg150": Form("vg150", "vg150/dummy_data", write_vg150, kept_by_vg150),
    "psg": Form("psg", "psg/dummy_data", write_psg, kept_by_psg),
}
JSON_FILES = [
    (name, str(path.relative_to(form.source)))
    for name, form in FORMS.items()
    for path in sorted(form.source.rglob("*.json"))
    if not path.stem.endswith(("_small", "_fat"))
]


@pytest.fixture(autouse=True)
def no_validation_images(monkeypatch):
    """All training images of VG150 are in the training split."""
    monkeypatch.setattr(tables, "VALIDATION_IMAGES", 0)


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture
def folder(shared_folder):
    """An empty folder for all examples of a test, each of which writes its files anew."""
    shutil.rmtree(shared_folder)
    shared_folder.mkdir()
    return shared_folder


def content_of(images):
    """Annotations without their container types."""
    return [
        (
            image.filename,
            [tuple(box) for box in image.boxes],
            list(image.labels),
            [tuple(triple) for triple in image.relationships],
            [(tuple(box), phrase) for box, phrase in image.regions],
        )
        for image in images
    ]


def read_both(form, source):
    return [*form.read(source, "train"), *form.read(source, "test")]


def read_or_complain(form, source):
    """The images, or None after a complaint, which must be one line naming a file or an image."""
    try:
        return read_both(form, source)
    except UserError as error:
        text = str(error)
        assert "\n" not in text
        assert text.startswith((f"{source}/", "annotation of image '")), text
        return None


names = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/"), min_size=1)
words = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zs"]), min_size=1)


@st.composite
def boxes(draw, whole):
    """(x1, y1, x2, y2) with x1 <= x2 and y1 <= y2; one pixel is the least."""
    numbers = st.integers(0, 200)
    if not whole:
        numbers |= st.floats(-20, 200)
    (x1, x2), (y1, y2) = (sorted((draw(numbers), draw(numbers))) for _ in range(2))
    return x1, y1, x2, y2


@st.composite
def graphs(draw, name):
    """An image that a form can hold."""
    box = boxes(whole=name == "vg150")
    objects = draw(st.lists(st.tuples(box, st.integers(1, len(CLASSES))), max_size=4))
    index = st.integers(0, max(len(objects) - 1, 0))
    triples = st.lists(st.tuples(index, index, st.integers(1, len(PREDICATES))), max_size=5)
    phrases = st.lists(words, min_size=1, max_size=4).map(" ".join)
    regions = st.lists(st.tuples(box, phrases), max_size=2)
    stem = st.integers(10_000, 99_999).map(str) if name == "vg150" else names
    return Annotation(
        draw(stem) + ".jpg",
        [box for box, _ in objects],
        [label for _, label in objects],
        draw(triples) if objects else [],
        draw(regions) if name == "vg_msdn" else [],
    )


@pytest.mark.parametrize("name", FORMS)
def test_what_is_written_is_read(folder, name):
    form = FORMS[name]
    seen = []

    @settings
    @hypothesis.given(
        st.lists(graphs(name), max_size=5, unique_by=lambda image: image.filename),
        st.integers(0, 5),
    )
    def run(images, count):
        parts = {"train": images[:count], "test": images[count:]}
        form.write(folder, **parts)
        for split, part in parts.items():
            expected = content_of(form.kept(part, split))
            assert content_of(form.read(folder, split)) == expected
            seen.extend(expected)
        vocabulary = create_builder(form.builder, "").vocabulary(folder)
        assert vocabulary.object_classes[1:] == CLASSES
        assert vocabulary.predicates[1:] == PREDICATES

    run()
    assert sum(bool(triples) for _, _, _, triples, _ in seen) > 20


@pytest.mark.parametrize(("name", "filename"), JSON_FILES)
def test_truncated_json_is_named(folder, name, filename):
    form = FORMS[name]
    source = shutil.copytree(form.source, folder / name)
    path = source / filename
    text = path.read_bytes().rstrip()
    lengths = {*range(0, len(text), max(1, len(text) // 40)), len(text) - 1}
    for length in sorted(lengths):
        path.write_bytes(text[:length])
        with pytest.raises(UserError) as error:
            read_both(form, source)
        assert str(error.value).startswith(f"{path} is not valid JSON")
        assert "\n" not in str(error.value)


NUMBERS_OR_NOT = [None, True, 0, 1, -1, 2.5, 10**30, 1e308, 1e-320, NAN, INFINITY, -INFINITY]
TEXTS = ["", "0", "é", "\ud800", "background", "a\nb", "x" * 5000]
NESTED = [[], {}, [[]], [0, 1, 2, 3], [5, 5, 4, 4], [0, 0, NAN, 9], [3, 3, 3, 3], {"": None}]
JUNK = [*NUMBERS_OR_NOT, *TEXTS, *NESTED]


@pytest.mark.parametrize(("name", "filename"), JSON_FILES)
def test_one_wrong_value(folder, name, filename):
    form = FORMS[name]
    source = shutil.copytree(form.source, folder / name)
    original = (source / filename).read_text(encoding="utf-8")
    expected = content_of(read_both(form, source))
    refused = []

    @settings
    @hypothesis.given(st.data())
    def run(data):
        content = json.loads(original)
        container, key = data.draw(st.sampled_from(places(content)))
        change = data.draw(st.sampled_from(("replace", "replace", "remove", "repeat")))
        if change == "replace":
            container[key] = data.draw(st.sampled_from(JUNK))
        elif change == "remove":
            del container[key]
        elif isinstance(container, list):
            container.insert(key, container[key])
        else:
            container["é"] = container[key]
        (source / filename).write_text(json.dumps(content))
        images = read_or_complain(form, source)
        refused.append(images is None)
        for image in images or ():
            assert np.isfinite(np.array(image.boxes, np.float64)).all()
            image.filename.encode()
            "".join(phrase for _, phrase in image.regions).encode()
        # A value in a list of images belongs to one of them.
        if images and "train" in filename:
            assert sum(image not in expected for image in content_of(images)) <= 1

    run()
    assert any(refused)


@pytest.mark.parametrize(
    ("name", "accepted"), [(r"\ud83d\ude00", True), (r"\ud83d", False), (r"\ude00\ud83d", False)]
)
def test_half_a_character_is_refused(folder, name, accepted):
    form = FORMS["vg_dr_net"]
    form.write(folder, [], [])
    (folder / "objects.json").write_text(f'["{name}"]')
    if accepted:
        vocabulary = create_builder("vg_dr_net", "").vocabulary(folder)
        assert vocabulary.object_classes == ["background", "😀"]
    else:
        with pytest.raises(UserError, match=r"objects\.json is not valid JSON .*surrogates"):
            form.read(folder)


def test_json_without_end_of_depth_is_named(folder):
    FORMS["psg"].write(folder, [], [])
    (folder / "psg.json").write_text("[" * 200_000 + "]" * 200_000)
    with pytest.raises(UserError, match=r"psg\.json is not valid JSON"):
        FORMS["psg"].read(folder)


WHOLE_BOXES = [([5, 5, 5, 5], True), ([6, 0, 5, 9], False), ([0, 6, 9, 5], False)]
NUMBER_BOXES = [
    *WHOLE_BOXES,
    ([0, 0, 0.5, 1e9], True),
    ([NAN, 0, 9, 9], False),
    ([0, 0, INFINITY, 9], False),
    ([0, 0, 9, 1e10], False),
    ([0, 0, 9, 10**400], False),
    ([0, 0, 9, "9"], False),
    ([0, 0, True, 9], False),
]
BOXES = [*NUMBER_BOXES, ([0, 0, 9], False), ([0, 0, 9, 9, 9], False), (None, False)]


@pytest.mark.parametrize(
    ("name", "box", "valid"),
    [(name, *case) for name in ("converted", "vg_msdn", "vg_dr_net", "psg") for case in BOXES]
    + [("official", *case) for case in NUMBER_BOXES]
    + [("vg150", *case) for case in WHOLE_BOXES],
)
def test_boxes(folder, name, box, valid):
    form = FORMS[name]
    images = [
        Annotation(filename, [box, (1, 2, 3, 4)], [1, 2], [(0, 1, 1)])
        for box, filename in (((1, 1, 2, 2), "21.jpg"), (box, "22.jpg"))
    ]
    form.write(folder, images, [])
    if valid:
        assert content_of(form.read(folder)) == content_of(images)
    else:
        with pytest.raises(UserError, match=r"annotation of image '22\.jpg'[^\n]*; correct the"):
            form.read(folder)


LABELS = [(label, (0, 1, 1)) for label in (4, 0, -1, 10**6)]
PAIRS = [(1, (*pair, 1)) for pair in ((0, 2), (2, 0), (0, -1), (-1, 0), (0, 10**6))]
NUMBERS = [(1, (0, 1, predicate)) for predicate in (3, 0, -1, 10**6)]


@pytest.mark.parametrize(
    ("name", "label", "triple"),
    [
        (name, *case)
        for name in ("converted", "vg_dr_net", "psg", "vg150")
        for case in (*LABELS, *PAIRS, *NUMBERS)
    ]
    + [("official", *case) for case in (*LABELS, *NUMBERS)]  # Its objects have no numbers,
    + [("vg_msdn", *case) for case in PAIRS],  # its classes none.
)
def test_ids_out_of_range(folder, name, label, triple):
    form = FORMS[name]
    images = [
        Annotation(filename, [(0, 0, 1, 1), (1, 2, 3, 4)], [label, 2], [(0, 1, 1), triple])
        for filename, label, triple in (("21.jpg", 1, (0, 1, 2)), ("22.jpg", label, triple))
    ]
    form.write(folder, images, [])
    with pytest.raises(
        UserError, match=r"^annotation of image '22\.jpg': [^\n]*; correct the file$"
    ):
        form.read(folder)


@pytest.mark.parametrize("name", FORMS)
def test_images_without_anything(folder, name):
    form = FORMS[name]
    images = [Annotation(f"{index}.jpg", [], [], []) for index in range(3)]
    form.write(folder, images, images[:1])
    expected = [] if name in ("vg150", "psg") else images
    assert content_of(form.read(folder)) == content_of(expected)


def test_damaged_tables(folder):
    form = FORMS["vg150"]
    source = shutil.copytree(form.source, folder / "vg150")
    path = source / "VG-SGG.h5"
    original = path.read_bytes()
    outcomes = set()

    @hypothesis.settings(settings, max_examples=200)
    @hypothesis.given(
        st.lists(
            st.tuples(st.integers(0, len(original) - 1), st.integers(0, 255)),
            min_size=1,
            max_size=8,
        )
    )
    def run(changes):
        damaged = bytearray(original)
        for position, value in changes:
            damaged[position] = value
        path.write_bytes(damaged)
        outcomes.add(read_or_complain(form, source) is None)

    run()
    assert outcomes == {True, False}
    for length in range(0, len(original), 251):
        path.write_bytes(original[:length])
        with pytest.raises(UserError, match=r"VG-SGG\.h5 cannot be read as HDF5"):
            form.read(source)


def test_one_wrong_cell(folder):
    form = FORMS["vg150"]
    source = shutil.copytree(form.source, folder / "vg150")
    path = source / "VG-SGG.h5"
    original = path.read_bytes()
    outcomes = set()

    @settings
    @hypothesis.given(
        st.sampled_from(sorted(tables._COLUMNS)),
        st.integers(0, 100),
        st.sampled_from([-(2**31), -2, -1, 0, 1, 2, 3, 9, 100, 2**31 - 1]),
    )
    def run(column, place, value):
        path.write_bytes(original)
        with h5py.File(path, "a") as file:
            cells = np.asarray(file[column])
            cells.reshape(-1)[place % cells.size] = value
            file[column][...] = cells
        images = read_or_complain(form, source)
        outcomes.add(images is None)
        assert all(image.labels and image.relationships for image in images or ())

    run()
    assert outcomes == {True, False}


def encoded(ending, height=30, width=40):
    """A photo of random pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.imencode(ending, pixels)[1].tobytes()


def huge_png():
    """A valid header of 200000 x 200000 pixels."""

    def chunk(kind, content):
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 200000, 200000, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"0"))
    return b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b"")


DAMAGED = {
    "empty": b"",
    "text": "<html>zoë</html>".encode(),
    "header": encoded(".jpg")[:20],
    "half": encoded(".jpg")[: len(encoded(".jpg")) // 2],
    "huge": huge_png(),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_photos_are_skipped(tmp_path, damage):
    (tmp_path / "é.jpg").write_bytes(DAMAGED[damage])
    found = Photos([tmp_path]).load(Annotation("é.jpg", [], [], []))
    assert isinstance(found, Skipped)
    assert found.reason == f"{tmp_path}/é.jpg is no image that OpenCV can decode"


@pytest.mark.parametrize("filename", ["", ".", "..", "a\0.jpg", "x" * 5000, "é/é/é.jpg"])
def test_names_that_no_photo_can_have(tmp_path, filename):
    found = Photos([tmp_path]).load(Annotation(filename, [], [], []))
    assert isinstance(found, Skipped)
    assert found.reason == f"not in {tmp_path}"


@pytest.fixture
def tree(tmp_path):
    """A folder with photos, and photos that lie outside of it."""
    inside = tmp_path / "data" / "images"
    inside.mkdir(parents=True)
    for path in (tmp_path / "secret.jpg", tmp_path / "data" / "secret.jpg", inside / "1.jpg"):
        path.write_bytes(encoded(".jpg"))
    return inside


@pytest.mark.parametrize(
    "filename",
    ["../secret.jpg", "../../secret.jpg", "x/../../secret.jpg", "./../secret.jpg", "{}/secret.jpg"],
)
def test_names_do_not_lead_out_of_the_folder(tree, filename):
    found = Photos([tree]).load(Annotation(filename.format(tree.parent), [], [], []))
    assert isinstance(found, Skipped)
    assert found.reason == f"not in {tree}"


def test_any_name_stays_in_the_folder(tree):
    photos, outcomes = Photos([tree]), set()
    parts = st.sampled_from(["..", ".", "", "/", "~", str(tree), "secret.jpg", "1.jpg", "images"])

    @hypothesis.settings(settings, max_examples=500)
    @hypothesis.given(st.lists(parts, min_size=1, max_size=6).map("/".join))
    def run(name):
        found = photos._find(name)
        outcomes.add(found is None)
        assert found is None or found.resolve() == tree / "1.jpg"

    run()
    assert outcomes == {True, False}


def test_too_many_objects_are_refused():
    vocabulary = Vocabulary(("background", "a"), ("background", "p"))
    for count in (MAX_OBJECTS, MAX_OBJECTS + 1):
        annotation = Annotation("1.jpg", [(0, 0, 1, 1)] * count, [1] * count, [])
        if count == MAX_OBJECTS:
            check(annotation, vocabulary)
            continue
        with pytest.raises(UserError, match=r"image '1\.jpg': 2001 objects are more than 2000; "):
            check(annotation, vocabulary)


def test_photos_with_wrong_bytes(folder):
    outcomes = set()

    @settings
    @hypothesis.given(st.sampled_from((".jpg", ".png", ".gif", ".bmp")), st.data())
    def run(ending, data):
        photo = bytearray(encoded(ending))
        for _ in range(data.draw(st.integers(1, 6))):
            photo[data.draw(st.integers(0, len(photo) - 1))] = data.draw(st.integers(0, 255))
        (folder / "photo.jpg").write_bytes(photo)
        found = Photos([folder]).load(Annotation("photo.jpg", [], [], []))
        outcomes.add(type(found))
        if isinstance(found, Scene):
            assert found.image == photo
            assert min(found.height, found.width) > 0

    run()
    assert outcomes == {Scene, Skipped}


# Of the photos in a build, by what is odd about them. VG150 names photos by number.
ODD = {"first": "11.jpg", "gif": "22.jpg", "empty": "33.jpg", "gone": "44.jpg"}
ODD_NAMES = {"first": "首 é.jpg", "gif": "ñ/gif.jpg", "empty": "empty.jpg", "gone": "gone.jpg"}


@pytest.fixture
def odd_source(folder, request):
    """The form, and a source in it with photos of all kinds."""
    form = FORMS[request.param]
    names = ODD if form.builder == "vg150" else ODD_NAMES
    objects = [(0, 0, 1, 1), (1, 2, 3, 4)]
    images = [Annotation(name, objects, [1, 3], [(0, 1, 2), (1, 1, 1)]) for name in names.values()]
    test = [Annotation("55.jpg", objects, [2, 3], [(1, 0, 1)])]
    source = folder / "source"
    source.mkdir()
    form.write(source, images, test)
    builder = create_builder(form.builder, "")
    train, held_out = (builder.photo_folders(source, split)[0] for split in ("train", "test"))
    for path, content in (
        (train / names["first"], encoded(".png")),
        (train / names["gif"], encoded(".gif", 20, 50)),
        (train / names["empty"], b""),
        (held_out / "55.jpg", encoded(".jpg")),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return form, source, names


@pytest.mark.parametrize("odd_source", FORMS, indirect=True)
def test_odd_sources_are_built(tmp_path, monkeypatch, capsys, odd_source):
    form, source, names = odd_source
    monkeypatch.setattr(tables, "VALIDATION_IMAGES", 1)
    built = load_builder(form.builder, "", str(tmp_path), str(source))
    splits = [Split(built, split) for split in built.SPLITS]
    records = [split.record(index) for split in splits for index in range(len(split))]
    assert sorted(record["filename"] for record in records) == sorted(
        (names["first"], names["gif"], "55.jpg")
    )
    assert splits[0].object_classes[1:] == tuple(CLASSES)
    assert splits[0].predicates[1:] == tuple(PREDICATES)
    train = splits[0]
    gif = train.record(len(train) - 1)
    assert gif["filename"] == names["gif"]
    assert (gif["height"], gif["width"]) == (20, 50)
    assert train.image(len(train) - 1).shape == (20, 50, 3)
    scale = 50 / 1024 if form.builder == "vg150" else 1
    # The official form knows the objects as they are mentioned, which is this order.
    np.testing.assert_allclose(gif["boxes"], np.array([[0, 0, 1, 1], [1, 2, 3, 4]]) * scale)
    np.testing.assert_array_equal(gif["classes"], [1, 3])
    np.testing.assert_array_equal(gif["relationships"], [[0, 1, 2], [1, 1, 1]])
    assert [skipped for skipped, _ in train.skipped] == [names["empty"], names["gone"]]
    printed = capsys.readouterr().err
    assert f"skipped train photo {names['empty']}: " in printed
    assert f"skipped train photo {names['gone']}: " in printed


@pytest.mark.parametrize("odd_source", FORMS, indirect=True)
def test_strict_builds_need_all_photos(tmp_path, monkeypatch, odd_source):
    form, source, names = odd_source
    monkeypatch.setattr(tables, "VALIDATION_IMAGES", 1)
    with pytest.raises(UserError) as error:
        load_builder(form.builder, "", str(tmp_path), str(source), strict=True)
    assert str(error.value).startswith(f"--strict: train photo {names['empty']} cannot be stored")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob("dataset_info.json"))


@pytest.mark.parametrize("odd_source", FORMS, indirect=True)
def test_a_refused_build_can_be_mended(tmp_path, monkeypatch, odd_source):
    form, source, _ = odd_source
    monkeypatch.setattr(tables, "VALIDATION_IMAGES", 1)
    wrong = Annotation("66.jpg", [(0, 9, 1, 1)], [1], [(0, 0, 1)])
    right = dataclasses.replace(wrong, boxes=[(0, 0, 1, 1)])
    photos = create_builder(form.builder, "").photo_folders(source, "train")[0]
    for name in ("66.jpg", "11.jpg"):
        (photos / name).write_bytes(encoded(".jpg"))
    test = form.read(source, "test")
    first = dataclasses.replace(right, filename="11.jpg")
    form.write(source, [first, wrong], test)
    with pytest.raises(
        UserError, match=r"^annotation of image '66\.jpg': [^\n]*; correct the file$"
    ):
        load_builder(form.builder, "", str(tmp_path), str(source))
    assert not list(tmp_path.rglob("dataset_info.json"))
    form.write(source, [first, right], test)
    built = load_builder(form.builder, "", str(tmp_path), str(source))
    train = Split(built, "train")
    assert train.record(len(train) - 1)["filename"] == "66.jpg"
