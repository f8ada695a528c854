"""A browser without a network, for pages that must not need one."""

import os
import shutil

import pytest

_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="session")
def browser():
    """Chromium, headless: $FNET_CHROMIUM or what is installed; the test is skipped without."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    installed = filter(None, map(shutil.which, names))
    executable = os.environ.get("FNET_CHROMIUM") or next(installed, None)
    if executable is None:
        pytest.skip(f"no browser: set FNET_CHROMIUM or install one of {', '.join(names)}")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=executable, args=_ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def pages(browser):
    """`pages(options)` is the page of a context with these options; and what went wrong in any.

    Opening a page takes longer than most tests do with it.
    """
    opened, complaints = {}, []

    def forbid(route):
        if route.request.url.startswith("file:"):
            route.continue_()
        else:
            complaints.append(f"request: {route.request.url}")
            route.abort()

    def complain(message):
        if message.type in ("error", "warning"):
            complaints.append(message.text)

    def page_with(options: dict):
        key = tuple(sorted(options.items()))
        if key not in opened:
            context = browser.new_context(offline=True, reduced_motion="reduce", **options)
            context.route("**/*", forbid)
            page = opened[key] = context.new_page()
            page.set_default_timeout(10_000)
            page.on("console", complain)
            page.on("pageerror", lambda error: complaints.append(str(error)))
        return opened[key]

    yield page_with, complaints
    for page in opened.values():
        page.context.close()


@pytest.fixture
def visit(pages):
    """`visit(path)` opens a file; any request or complaint on the console is a failure."""
    page_with, complaints = pages
    used = []

    def open_(path, *, width=1400, height=900, fragment="", **options):
        page = page_with(options)
        page.set_viewport_size({"width": width, "height": height})
        page.mouse.move(0, 0)  # off what the test before pointed at
        page.goto(path.as_uri() + fragment)
        used.append(page)
        return page

    yield open_
    for page in used:
        page.evaluate("0")  # what was complained about before this has arrived after it
    found = complaints.copy()
    complaints.clear()
    assert found == []
