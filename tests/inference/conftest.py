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


@pytest.fixture
def visit(browser):
    """`visit(path)` opens a file in a fresh context; any request or console error is a failure."""
    contexts, complaints = [], []

    def forbid(route):
        if route.request.url.startswith("file:"):
            route.continue_()
        else:
            complaints.append(f"request: {route.request.url}")
            route.abort()

    def open_(path, *, width=1400, height=900, fragment="", **options):
        context = browser.new_context(
            viewport={"width": width, "height": height},
            offline=True,
            reduced_motion="reduce",
            **options,
        )
        contexts.append(context)
        context.route("**/*", forbid)
        page = context.new_page()
        page.set_default_timeout(5000)
        page.on(
            "console",
            lambda message: (
                message.type in ("error", "warning") and complaints.append(message.text)
            ),
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(path.as_uri() + fragment)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []
