"""The web demo as a user and as a program meet it: a real process, a real browser."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
from PIL import Image

from tests.inference.checkpoints import OBJECTS, PREDICATES, save_random
from tests.test_cli import ROOT, run

gradio_client = pytest.importorskip("gradio_client", reason="the extra 'serve' is not installed")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return save_random(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def demo(workdir):
    """The address of a running demo."""
    port = free_port()
    command = [
        *(sys.executable, "main.py", "--mode=serve", f"--checkpoint={workdir}"),
        *(f"--port={port}", "--top_k=6"),
    ]
    env = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    printed = []
    for line in process.stdout:
        printed.append(line)
        if found := re.search(r"http://[\d.]+:\d+", line):
            break
    else:
        pytest.fail(f"the demo did not start: {''.join(printed)}")
    yield found.group()
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert "Traceback" not in "".join(printed) + rest
    assert process.returncode in (0, 130)


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos") / "beach.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3)).astype(np.uint8)).save(
        path
    )
    return path


def test_programs_get_the_graph(demo, photo):
    client = gradio_client.Client(demo, verbose=False)
    graph = client.predict(gradio_client.handle_file(str(photo)), api_name="/scene_graph")
    assert graph["image"] == "beach.jpg" and (graph["height"], graph["width"]) == (60, 90)
    assert {item["class"] for item in graph["objects"]} <= set(OBJECTS[1:])
    assert {triplet["predicate"] for triplet in graph["triplets"]} <= set(PREDICATES[1:])
    assert len(graph["triplets"]) > 10


def test_programs_get_a_sentence(demo, tmp_path):
    path = tmp_path / "notes.jpg"
    path.write_text("no image")
    client = gradio_client.Client(demo, verbose=False)
    with pytest.raises(Exception, match=r"notes\.jpg cannot be used: it is no image"):
        client.predict(gradio_client.handle_file(str(path)), api_name="/scene_graph")


def test_uploads_are_bounded(demo, tmp_path):
    path = tmp_path / "large.jpg"
    path.write_bytes(os.urandom(26_300_000))
    client = gradio_client.Client(demo, verbose=False)
    with pytest.raises(ValueError, match="exceeds the maximum file size"):
        client.predict(gradio_client.handle_file(str(path)), api_name="/scene_graph")


def test_other_machines_cannot_connect(demo):
    port = int(demo.rsplit(":", 1)[1])
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None)}
    for address in others - {"127.0.0.1", "::1"}:
        with pytest.raises(OSError), socket.create_connection((address, port), timeout=2):
            pass
    with urllib.request.urlopen(demo) as answer:
        assert answer.status == 200


@pytest.fixture
def page(demo, browser):
    """The demo in a browser that reaches nothing else."""
    context = browser.new_context(viewport={"width": 1400, "height": 900}, accept_downloads=True)
    strangers = []

    def route(request):
        if request.request.url.startswith((demo, "data:", "blob:")):
            request.continue_()
        else:
            strangers.append(request.request.url)
            request.abort()

    context.route("**/*", route)
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.goto(demo)
    yield page
    context.close()
    assert strangers == []


def test_a_photo_becomes_a_linked_view(page, photo):
    page.locator("input[type=file]").set_input_files(str(photo))
    view = page.frame_locator("iframe[title='Scene graph']")
    rows = view.locator("[role=listbox] [role=option], ol li")
    rows.first.wait_for()
    assert rows.count() > 0
    assert "beach.jpg" in view.locator("body").inner_text()
    with page.expect_download() as download:
        view.get_by_role("link", name="Download JSON").click()
    with open(download.value.path()) as file:
        assert json.load(file)["image"] == "beach.jpg"


def test_a_bad_file_becomes_a_sentence(page, tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(b"\x89PNG broken")
    page.locator("input[type=file]").set_input_files(str(path))
    page.get_by_text("broken.png cannot be used: it is no image").first.wait_for()
    assert page.locator("iframe[title='Scene graph']").count() == 0


def test_an_address_in_use(workdir, demo):
    port = demo.rsplit(":", 1)[1]
    done = run("--mode=serve", f"--checkpoint={workdir}", f"--port={port}")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: --port: 127.0.0.1:" + port)
