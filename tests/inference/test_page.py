"""The page of scene graphs: what is in the file, and how it behaves in a browser."""

import base64
import html
import json
import re

import cv2
import numpy as np
import pytest

from fnet_jax.errors import UserError
from fnet_jax.inference.page import page_html, write_page
from fnet_jax.inference.selection import select
from tests.inference.graphs import empty, scene

HOSTILE = (
    "</script><script>window.broken = 1</script>",
    "<img src=x onerror='window.broken = 2'>",
    "\"'><b>&amp; <!-- {{title}} {{data}}",
    "line\u2028separators\u2029 \\u003c 😀",
)


def data_of(text: str) -> dict:
    """What the page tells its script."""
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(block[1])


def picture_of(uri: str) -> np.ndarray:
    """The RGB image in a data URI."""
    kind, content = uri.split(",")
    assert kind == "data:image/jpeg;base64"
    encoded = np.frombuffer(base64.b64decode(content), np.uint8)
    return cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def hostile_scene():
    image, graph = scene(len(HOSTILE), relations=len(HOSTILE))
    for name, found, triplet in zip(HOSTILE, graph["objects"], graph["triplets"], strict=True):
        found["class"] = name
        triplet["predicate"] = name
    graph["image"] = HOSTILE[0]
    return image, graph


def duplicated_scene():
    """Two detections of one person, related to a horse, to each other and to a hat."""
    image, graph = empty("duplicates.png", size=(100, 100))
    rows = [
        ("person", [5, 5, 40, 90], 0.9),
        ("person", [6, 5, 41, 90], 0.5),
        ("horse", [50, 20, 95, 95], 0.8),
        ("hat", [10, 2, 25, 12], 0.7),
    ]
    graph["objects"] = [dict(zip(("class", "box", "score"), row, strict=True)) for row in rows]
    triplets = [
        (1, "rides", 2, 0.5),
        (0, "near", 1, 0.4),
        (0, "next to", 2, 0.3),
        (0, "wears", 3, 0.2),
    ]
    keys = ("subject", "predicate", "object", "score")
    graph["triplets"] = [dict(zip(keys, row, strict=True)) for row in triplets]
    return image, graph


# ---- The file


def test_nothing_in_the_data_can_end_its_block():
    image, graph = hostile_scene()
    text = page_html([(image, graph)], title=HOSTILE[0])
    assert data_of(text)["images"][0]["line"] == graph
    assert "broken = 1</script>" not in text and "<img src=x" not in text
    assert "\u2028" not in text and "\u2029" not in text
    # Of the template: style, data and script.
    assert len(re.findall(r"</?script", text)) == 4
    assert f"<title>{html.escape(HOSTILE[0])}</title>" in text


def test_placeholders_in_the_data_are_not_filled_in():
    text = page_html([], title="{{data}} {{policy}}")
    assert "<h1>{{data}} {{policy}}</h1>" in text


def test_policy_allows_no_network():
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page_html([]))[1]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
    assert rules["script-src"].startswith("'sha256-") and "unsafe" not in policy
    assert "http" not in re.sub(r"http-equiv|http://www.w3.org/2000/svg", "", page_html([]))


def test_pictures_are_made_smaller_and_boxes_stay():
    image = np.zeros((1000, 2000, 3), np.uint8)
    image[:, 1000:] = (250, 40, 10)
    _, graph = scene(3, size=(1000, 2000))
    (shown,) = data_of(page_html([(image, graph)]))["images"]
    picture = picture_of(shown["picture"])
    assert picture.shape == (640, 1280, 3)
    assert np.abs(picture[300, 1000].astype(int) - (250, 40, 10)).max() < 12
    assert max(picture_of(shown["thumbnail"]).shape) == 144
    assert (shown["width"], shown["height"]) == (2000, 1000)
    boxes = {tuple(found["box"]) for found in shown["objects"]}
    assert boxes == {tuple(found["box"]) for found in graph["objects"]}


def test_small_and_thin_pictures():
    for size in ((1, 1), (1, 3000), (50, 40)):
        image = np.full((*size, 3), 90, np.uint8)
        (shown,) = data_of(page_html([(image, empty(size=size)[1])]))["images"]
        height, width = picture_of(shown["picture"]).shape[:2]
        assert (height, width) == (size[0], min(size[1], 1280))


def test_duplicates_are_one_object():
    (shown,) = data_of(page_html([duplicated_scene()]))["images"]
    assert [found["name"] for found in shown["objects"]] == ["person", "horse", "hat"]
    rows = [
        (r["place"], r["subject"], r["predicate"], r["object"], r["score"])
        for r in shown["relations"]
    ]
    # The second place is between the two detections of the person.
    assert rows == [(1, 0, "rides", 1, 0.5), (3, 0, "wears", 2, 0.2)]


def test_objects_are_numbered_as_the_ranking_meets_them():
    image, graph = scene(3, relations=1)
    for found, score in zip(graph["objects"], (0.2, 0.3, 0.4), strict=True):
        found.update({"class": "cup", "score": score})
        found["box"] = [10 * score * 100, 0, 10 * score * 100 + 9, 9]
    graph["triplets"][0].update(subject=1, object=0)
    (shown,) = data_of(page_html([(image, graph)]))["images"]
    assert [(o["name"], o["score"]) for o in shown["objects"]] == [
        ("cup 1", 0.3),
        ("cup 2", 0.2),
        ("cup 3", 0.4),
    ]


@pytest.mark.parametrize(("count", "names"), [(0, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_more_images_go_to_more_pages(tmp_path, count, names):
    entries = (empty(f"{index}.png") for index in range(count))  # can be read only once
    pages = write_page(tmp_path / "deep" / "in&dex.html", entries, images_per_page=4)
    expected = ["in&dex.html", "in&dex_2.html", "in&dex_3.html"][:names]
    assert [page.name for page in pages] == expected
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == sorted(expected)
    texts = [page.read_text("utf-8") for page in pages]
    images = [image["line"]["image"] for text in texts for image in data_of(text)["images"]]
    assert images == [f"{index}.png" for index in range(count)]
    links = [re.findall(r'<a href="([^"]*)">(\w+) page', text) for text in texts]
    names_of = [f"./{name.replace('&', '%26')}" for name in expected]
    for index, found in enumerate(links):
        before = [(names_of[index - 1], "Previous")] if index else []
        after = [(names_of[index + 1], "Next")] if index + 1 < names else []
        assert found == before + after


def test_a_page_is_replaced_only_when_all_are_complete(tmp_path):
    path = tmp_path / "index.html"
    path.write_text("before")

    def entries():
        for index in range(5):
            yield empty(f"{index}.png")
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_page(path, entries(), images_per_page=2)
    assert path.read_text() == "before"
    assert [found.name for found in tmp_path.iterdir()] == ["index.html"]


def test_a_page_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        write_page(tmp_path / "file" / "index.html", [empty()])


# ---- In a browser


@pytest.fixture
def show(visit, tmp_path):
    """`show(entries)` writes a page and opens it."""

    def show_(entries, *, title="Scene graphs", top_k=20, min_score=0.0, **options):
        path = tmp_path / "page.html"
        write_page(path, entries, title=title, top_k=top_k, min_score=min_score)
        return visit(path, **options)

    return show_


def keys(page, selector: str) -> set[str]:
    """The keys of the elements: o0, o1, ... are objects; r1, r2, ... relations, by place."""
    return set(page.eval_on_selector_all(selector, "found => found.map(e => e.dataset.key)"))


def active(page, within: str = "") -> set[str]:
    return keys(page, f"{within} .is-active[data-key]")


def ends(page, entry, place: int) -> set[str]:
    (relation,) = [
        r for r in data_of(page_html([entry]))["images"][0]["relations"] if r["place"] == place
    ]
    return {f"o{relation['subject']}", f"o{relation['object']}"}


def test_hovering_a_row_marks_boxes_nodes_and_edge(show):
    entry = scene(6)
    page = show([entry])
    page.hover("#list .row[data-key=r2]")
    both = ends(page, entry, 2)
    assert active(page, "#list") == {"r2"}
    assert active(page, "#boxes") == both
    assert active(page, "#nodes") == both
    assert active(page, "#network .edge") | keys(page, ".edge.is-active") == {"r2"}
    page.mouse.move(2, 2)
    assert active(page) == set()


def test_hovering_a_box_marks_its_node_and_rows(show):
    entry = scene(6)
    page = show([entry])
    page.hover("#boxes .tag[data-key=o0]")
    rows = {
        f"r{r['place']}"
        for r in data_of(page_html([entry]))["images"][0]["relations"]
        if 0 in (r["subject"], r["object"])
    }
    assert len(rows) >= 1
    assert active(page, "#list") == rows
    assert active(page, "#nodes") == {"o0"}
    assert keys(page, ".edge.is-active") == rows


def test_a_node_and_an_edge_are_linked_too(show):
    entry = scene(3)
    page = show([entry])
    page.hover("#nodes [data-key=o1]")
    assert active(page, "#boxes") == {"o1"}
    page.hover(".predicate-label[data-key=r1]")
    assert active(page, "#boxes") == ends(page, entry, 1)
    assert active(page, "#list") == {"r1"}


def test_click_pins_until_escape_or_a_click_elsewhere(show):
    page = show([scene(6)])
    row = page.locator("#list .row[data-key=r1]")
    for release in (
        lambda: page.keyboard.press("Escape"),
        lambda: page.click("h1"),
        row.click,
    ):
        row.click()
        assert row.get_attribute("aria-pressed") == "true"
        page.hover("#list .row[data-key=r3]")
        assert active(page, "#list") == {"r1"}
        release()
        page.mouse.move(2, 2)
        assert row.get_attribute("aria-pressed") == "false"
        assert active(page) == set()


def test_keyboard_alone(show):
    page = show([scene(6), scene(4, seed=1)])
    page.focus("#download")
    page.keyboard.press("Tab")
    assert active(page, "#list") == {"r1"}
    page.keyboard.press("ArrowDown")
    assert active(page, "#list") == {"r2"}
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Tab")
    assert active(page, "#list") == {"r2"}
    page.keyboard.press("Enter")
    page.keyboard.press("End")
    assert active(page, "#list") == {"r2"}
    page.keyboard.press("Escape")
    assert page.locator("#list .row[aria-pressed=true]").count() == 0
    # The boxes are one stop of the Tab key, too.
    page.locator("#boxes [tabindex='0']").focus()
    page.keyboard.press("ArrowDown")
    (focused,) = keys(page, ":focus")
    page.keyboard.press(" ")
    assert page.get_attribute(f"#nodes [data-key={focused}]", "aria-pressed") == "true"
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#file") == "scene_1.jpg"


def selected(entry, top_k: int, min_score: float) -> tuple[set[str], set[str]]:
    """Keys of the objects and relations that `select` shows."""
    _, graph = entry
    (shown,) = data_of(page_html([entry]))["images"]
    position = {tuple(o["box"]): f"o{index}" for index, o in enumerate(shown["objects"])}
    objects, relations = select(graph, top_k, min_score)
    return {position[tuple(graph["objects"][i]["box"])] for i in objects}, {
        f"r{relation.place}" for relation in relations
    }


def slide(page, slider: str, value: int) -> None:
    page.eval_on_selector(
        f"#{slider}",
        "(input, value) => { input.value = value; input.dispatchEvent(new Event('input')); }",
        value,
    )


def parts(page) -> list[tuple[set[str], set[str]]]:
    """Keys of objects and relations, where both are shown or one of them."""
    return [
        (keys(page, "#boxes .object"), keys(page, "#list .row")),
        (keys(page, "#nodes .node"), keys(page, "#network .edge")),
    ]


def test_first_view_and_sliders_filter_everything_as_pictures_do(show):
    entry = scene(12, relations=30)
    scores = [triplet["score"] for triplet in entry[1]["triplets"]]
    page = show([entry], top_k=9, min_score=scores[6] * 1.0001)
    assert parts(page) == [selected(entry, 9, scores[5])] * 2
    assert page.input_value("#top-number") == "9"
    for top_k, step in ((30, 10), (4, 10), (30, 27), (30, 0)):
        slide(page, "top", top_k)
        slide(page, "score", step)
        threshold = sorted(scores)[step]
        expected = selected(entry, top_k, threshold)
        assert parts(page) == [expected, expected]
        shown = float(page.inner_text("#score-value"))
        assert shown == pytest.approx(threshold, rel=0.06)
        assert page.inner_text("#score-help").startswith(f"{30 - step} of 30 pass")
    page.fill("#top-number", "2")
    page.press("#top-number", "Enter")
    assert keys(page, "#list .row") == {"r1", "r2"}
    # The real thing, by keyboard: one step drops the weakest of the two that are left.
    page.focus("#score")
    page.keyboard.press("End")
    assert keys(page, "#list .row") == {"r1"}


def test_a_threshold_above_all_shows_the_best_objects(show):
    entry = scene(5)
    for found, score in zip(entry[1]["objects"], (0.91, 0.3, 0.95, 0.2, 0.1), strict=True):
        found["score"] = score
    page = show([entry], min_score=0.9)
    objects, _ = selected(entry, 20, 0.9)
    assert len(objects) == 2
    assert parts(page) == [(objects, objects), (objects, set())]
    assert "No relationship passes the filters" in page.inner_text("#sentence")


def test_boxes_lie_on_their_pixels(show):
    """One pixel wide and high, where the image is shown 3 times smaller than it is."""
    image, graph = empty(size=(900, 1200))
    graph["objects"] = [
        {"class": "dot", "box": [300, 600, 300, 600], "score": 0.9},
        {"class": "all", "box": [0, 0, 1199, 899], "score": 0.8},
    ]
    page = show([(image, graph)])
    photo = page.locator("#photo").bounding_box()
    scale = photo["width"] / 1200
    assert photo["height"] == pytest.approx(900 * scale, abs=1)

    def rectangle(key):
        return page.evaluate(
            f"""(() => {{
                const e = document.querySelector('#boxes .object[data-key={key}] .outline');
                const at = new DOMPoint(e.x.baseVal.value, e.y.baseVal.value)
                    .matrixTransform(e.getScreenCTM());
                const m = e.getScreenCTM();
                return [at.x, at.y, e.width.baseVal.value * m.a, e.height.baseVal.value * m.d];
            }})()"""
        )

    x, y = photo["x"], photo["y"]
    dot = [x + 300 * scale, y + 600 * scale, scale, scale]
    assert rectangle("o0") == pytest.approx(dot, abs=0.1)
    assert rectangle("o1") == pytest.approx([x, y, photo["width"], photo["height"]], abs=0.1)


def test_previous_next_thumbnails_and_addresses(show):
    page = show([scene(3, seed=seed) for seed in range(3)], fragment="#image=2")
    assert page.inner_text("#file") == "scene_1.jpg"
    assert page.inner_text("#size") == "160 × 120 px"
    page.click("#next")
    assert (page.inner_text("#file"), page.inner_text("#count")) == ("scene_2.jpg", "3 of 3")
    assert page.url.endswith("#image=3") and page.is_disabled("#next")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")  # there is none before the first
    assert page.inner_text("#file") == "scene_0.jpg" and page.is_disabled("#previous")
    page.click("#strip button:nth-child(2)")
    assert page.inner_text("#file") == "scene_1.jpg"
    assert page.get_attribute("#strip [aria-current=true]", "title") == "scene_1.jpg"
    page.evaluate("location.hash = '#image=1'")
    page.wait_for_function("document.getElementById('file').textContent === 'scene_0.jpg'")


def test_hostile_names_are_only_text(show):
    page = show([hostile_scene()], title=HOSTILE[1])
    assert page.evaluate("window.broken") is None
    assert page.title() == page.inner_text("h1") == HOSTILE[1]
    assert page.text_content("#file") == HOSTILE[0]
    rows = page.locator("#list .row").all_text_contents()
    assert len(rows) == len(HOSTILE)
    assert all(any(name in row for row in rows) for name in HOSTILE)
    assert page.locator("#boxes text").count() == len(HOSTILE)
    assert page.locator("main img").count() == 1


def test_the_policy_stops_what_it_should(browser, tmp_path):
    """That the pages above need no network shows little unless it would be refused."""
    (path,) = write_page(tmp_path / "page.html", [scene(3)])
    page = browser.new_page()
    refused = []
    page.on("console", lambda message: refused.append(message.text))
    page.goto(path.as_uri())
    page.evaluate(
        "const i = new Image(); i.src = 'http://127.0.0.1:9/a.png';"
        "const s = document.createElement('script'); s.textContent = 'window.broken = 1';"
        "document.body.append(i, s)"
    )
    page.wait_for_timeout(100)
    assert page.evaluate("window.broken") is None
    assert sum("Content Security Policy" in text for text in refused) == 2
    page.close()


def test_empty_cases(show):
    image, lonely = scene(4, relations=0)
    page = show([empty(), (image, lonely)])
    assert page.inner_text("#sentence") == "No objects were found in this image."
    assert page.locator("#boxes .object, .node, .row").count() == 0
    assert page.is_hidden("#filters")
    page.click("#next")
    assert page.is_visible("#filters")
    assert page.inner_text("#sentence").startswith("No relationships were found in this image.")
    assert keys(page, "#boxes .object") == keys(page, ".node") == {"o0", "o1", "o2", "o3"}
    best = [found["score"] for found in lonely["objects"]]
    assert page.locator("#list .score").first.inner_text() == f"{max(best):.3g}"
    # Without arrows the nodes lie as the objects do.
    lying = [
        page.eval_on_selector_all(
            selector,
            """found => found.sort((a, b) => a.dataset.key < b.dataset.key ? -1 : 1)
                .map(e => e.getBoundingClientRect()).map(r => [r.x + r.width / 2, r.y])""",
        )
        for selector in ("#boxes .object", "#nodes .node")
    ]
    for axis in (0, 1):
        assert np.corrcoef(*(np.array(places)[:, axis] for places in lying))[0, 1] > 0.9
    page.hover("#list .row[data-key=o2]")
    assert active(page, "#boxes") == {"o2"}
    page.fill("#top-number", "1")
    page.press("#top-number", "Enter")
    assert keys(page, "#boxes .object") == keys(page, ".node") == {"o0"}


def test_long_names_are_shortened_in_labels_only(show):
    entry = scene(3)
    name = "a very long name of something " * 4
    entry[1]["objects"][entry[1]["triplets"][0]["subject"]]["class"] = name
    page = show([entry], width=390, height=844)
    assert name in page.text_content("#list .row[data-key=r1]")
    labels = page.locator("#boxes .name, #nodes .name").all_text_contents()
    assert labels.count("a very long name of somet…") == 2
    pills = page.eval_on_selector_all(
        "#nodes .pill", "found => found.map(e => e.getBoundingClientRect().toJSON())"
    )
    assert all(pill["left"] >= 12 and pill["right"] <= 378 for pill in pills)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_labels_of_a_narrow_image_stand_beside_it(show):
    _, graph = scene(1, relations=0, size=(900, 30))
    page = show([(np.zeros((900, 30, 3), np.uint8), graph)])
    assert page.is_visible("#boxes .tag .name")
    assert page.locator("#stage").bounding_box()["width"] < 40


def test_no_image_at_all(show):
    page = show([])
    assert page.inner_text("#nothing") == "There are no images on this page."
    assert page.is_hidden("main") and page.is_hidden("#images")


def test_download_is_the_line(show, tmp_path):
    entry = scene(4)
    page = show([empty(), entry])
    page.click("#next")
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "scene_0.jpg.json"
    assert json.loads(download.value.path().read_text()) == entry[1]


@pytest.mark.parametrize(
    ("count", "width", "height"),
    [(3, 1400, 900), (60, 1400, 900), (60, 800, 1000), (3, 390, 844), (60, 390, 844)],
)
def test_labels_keep_apart_and_nothing_is_cut_off(show, width, height, count):
    page = show([scene(count, size=(480, 640))], width=width, height=height, top_k=count)
    assert page.evaluate("document.documentElement.scrollWidth") <= width

    def rectangles(selector):
        return page.eval_on_selector_all(
            selector,
            """found => found.filter(e => e.getClientRects().length)
                .map(e => e.getBoundingClientRect())
                .map(r => [r.left, r.top, r.right, r.bottom])""",
        )

    canvas = page.locator("#canvas").bounding_box()
    left, top = canvas["x"], canvas["y"]
    for selector, share in (("#nodes .pill", 0.5), ("#boxes .pill", 0.3)):
        found = np.array(rectangles(selector))
        assert len(found) >= share * page.locator(selector).count() and len(found) >= 3
        assert len(overlapping(found)) == 0
    nodes = np.array(rectangles("#nodes .pill, #nodes .dot"))
    assert (nodes[:, :2] >= (left, top)).all()
    assert (nodes[:, 2:] <= (left + canvas["width"], top + canvas["height"])).all()
    # Font boxes are a little higher than the text: labels may touch by that.
    labels = np.array(rectangles(".predicate-label")) + np.array((4, 2, -4, -2))
    assert len(overlapping(np.concatenate([labels, np.array(rectangles("#nodes .pill"))]))) == 0
    assert len(labels) >= 3


def overlapping(rectangles: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of (n, 4) left, top, right, bottom that share more than a pixel both ways."""
    low = np.maximum(rectangles[:, None, :2], rectangles[None, :, :2])
    high = np.minimum(rectangles[:, None, 2:], rectangles[None, :, 2:])
    pairs = np.argwhere((high - low > 1).all(axis=-1))
    return [(i, j) for i, j in pairs.tolist() if i < j]


def test_the_layout_is_always_the_same(show):
    positions = [
        show([scene(20)]).eval_on_selector_all(
            "#nodes .pill", "found => found.map(e => [e.getAttribute('x'), e.getAttribute('y')])"
        )
        for _ in range(2)
    ]
    assert positions[0] == positions[1] and len(positions[0]) > 10


def test_zooming_in_makes_room_for_all_labels(show):
    page = show([scene(60)], width=390, height=844, top_k=60)
    assert page.locator("#nodes .is-covered").count() > 0
    page.click("#list .row[data-key=r1]")
    for _ in range(5):
        page.click("#zoom-in")
    assert page.locator("#nodes .is-covered").count() == 0
    first = page.locator("#nodes .node").first
    before = first.bounding_box()
    box = page.locator("#canvas").bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 130, box["y"] + 160, steps=4)
    page.mouse.up()
    after = first.bounding_box()
    assert (after["x"] - before["x"], after["y"] - before["y"]) == pytest.approx((30, 60), abs=1)
    assert active(page, "#list") == {"r1"}  # a drag is no click elsewhere
    page.click("#zoom-fit")
    assert page.locator("#nodes .is-covered").count() > 0


def test_phone(show):
    page = show(
        [scene(5, seed=seed) for seed in range(12)],
        width=390,
        height=844,
        has_touch=True,
        is_mobile=True,
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    tops = [page.locator(f".{name}").bounding_box() for name in ("picture", "graph", "ranking")]
    assert tops[0]["y"] < tops[1]["y"] < tops[2]["y"]
    assert {round(box["x"]) for box in tops} == {12}
    assert page.locator("#score").bounding_box()["height"] >= 44
    assert page.locator("#next").bounding_box()["height"] >= 44
    # A finger that scrolls over a row points at nothing.
    page.dispatch_event("#list .row", "pointerover", {"pointerType": "touch"})
    assert active(page) == set()
    page.tap("#list .row[data-key=r2]")
    assert active(page, "#list") == {"r2"} and len(active(page, "#boxes")) == 2
    # The image stays in sight beside the row.
    picture = page.locator("#stage").bounding_box()
    assert picture["y"] >= 0 and picture["y"] + picture["height"] <= 844
    page.tap("#list-title")
    assert active(page) == set()


def test_colours_of_box_and_node_agree_in_light_and_dark(show):
    for scheme in ("light", "dark"):
        page = show([scene(5)], color_scheme=scheme)
        for key in keys(page, "#nodes .node"):
            colours = page.evaluate(
                f"""[['#nodes .node[data-key={key}] .pill', 'fill'],
                     ['#boxes .object[data-key={key}] .outline', 'stroke'],
                     ['#boxes .tag[data-key={key}] .pill', 'fill']].map(([selector, style]) =>
                        getComputedStyle(document.querySelector(selector))[style])"""
            )
            assert len(set(colours)) == 1
            assert contrast(colours[0], "rgb(255, 255, 255)") >= 4.5
        ground, ink = (
            page.evaluate(f"getComputedStyle(document.body).{style}")
            for style in ("backgroundColor", "color")
        )
        assert contrast(ground, ink) >= 7
        quiet = page.evaluate("getComputedStyle(document.querySelector('.legend')).color")
        assert contrast(ground, quiet) >= 4.5
        assert (luminance(ground) < 0.1) == (scheme == "dark")


def luminance(colour: str) -> float:
    channels = np.array([int(part) for part in re.findall(r"\d+", colour)[:3]]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def contrast(a: str, b: str) -> float:
    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


def test_in_a_frame(visit, tmp_path):
    """In one that is hidden at first, as in a tab, and may do nothing but run its script."""
    outer = tmp_path / "outer.html"
    outer.write_text(
        f'<!doctype html><iframe srcdoc="{html.escape(page_html([scene(4), scene(3)]))}" '
        'sandbox="allow-scripts" width="1200" height="700" style="display: none"></iframe>'
    )
    page = visit(outer, width=1300, height=800)
    page.eval_on_selector("iframe", "frame => { frame.style.display = 'block'; }")
    inner = page.frame_locator("iframe")
    inner.locator("#list .row[data-key=r1]").click()
    assert inner.locator("#boxes .object.is-active").count() == 2
    assert inner.locator("#nodes .node.is-active").count() == 2
    page.keyboard.press("Escape")
    assert inner.locator("[aria-pressed=true]").count() == 0
    page.keyboard.press("ArrowRight")
    assert inner.locator("#nodes .node").count() == 3
    assert page.url == outer.as_uri()
