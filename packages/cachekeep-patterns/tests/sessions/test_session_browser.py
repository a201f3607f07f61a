"""The Starlette example, served by uvicorn, driven by a real browser."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.addresses import free_port

from patterns_rig.session_engines import Engine, wait_for

CHROMIUM = shutil.which("chromium")
ROOT = Path(__file__).parents[4]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")


@pytest.fixture
def shop(server: Engine, tmp_path: Path) -> Iterator[str]:
    port = free_port()
    environment = {
        **os.environ,
        "SESSION_CACHE": f"valkey://{server.address}:{server.port}",
        "SESSION_KEY": secrets.token_hex(32),
    }
    command = [sys.executable, "-m", "uvicorn", "examples.sessions_starlette:app", "--port", str(port)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    where = f"http://localhost:{port}"
    try:
        wait_for(lambda: urllib.request.urlopen(where).status == 200, "the shop's opening")
        yield where
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def test_a_shop_in_two_browsers(shop: str, chromium: Any) -> None:
    laptop, phone = chromium.new_context(), chromium.new_context()
    page: Any = laptop.new_page()
    page.goto(shop)
    assert laptop.cookies() == []  # nothing to remember, no cookie
    for button, named in (("#add", "item"), ("#login", "user")):
        page.click(button)  # with nothing filled in
        assert page.inner_text("body") == f"{named} is empty"
        page.goto(shop)
    assert laptop.cookies() == []
    page.fill("[name=item]", "tea")
    page.click("#add")
    (anonymous,) = laptop.cookies()
    assert (anonymous["httpOnly"], anonymous["sameSite"]) == (True, "Lax")
    assert page.evaluate("document.cookie") == ""

    # Eight requests of one user at once, each adding its own item.
    page.evaluate(
        """() => Promise.all([...Array(8).keys()].map(
            n => fetch('/add', {method: 'POST', body: new URLSearchParams({item: 'n' + n})})))"""
    )
    page.reload()
    cart = ["n0", "n1", "n2", "n3", "n4", "n5", "n6", "n7", "tea"]
    assert page.locator("#cart li").all_inner_texts() == cart

    page.fill("[name=user]", "ada")
    page.click("#login")
    page.wait_for_function("document.querySelector('#user').innerText === 'ada'")
    (known,) = laptop.cookies()
    assert known["value"] != anonymous["value"]
    assert page.locator("#cart li").all_inner_texts() == cart

    thief = chromium.new_context()
    thief.add_cookies([{"name": "session", "value": anonymous["value"], "url": shop}])
    stolen: Any = thief.new_page()
    stolen.goto(shop)
    assert stolen.inner_text("#user") == "nobody"
    assert stolen.locator("#cart li").count() == 0

    other: Any = phone.new_page()
    other.goto(shop)
    other.fill("[name=user]", "ada")
    other.click("#login")
    other.wait_for_function("document.querySelector('#devices').innerText === '2'")
    other.click("#everywhere")
    other.wait_for_function("document.querySelector('#user').innerText === 'nobody'")
    assert phone.cookies() == []
    page.reload()
    assert page.inner_text("#user") == "nobody"
    assert page.locator("#cart li").count() == 0


def test_the_flask_example(server: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("flask")
    monkeypatch.setenv("SESSION_CACHE", f"valkey://{server.address}:{server.port}")
    sys.modules.pop("examples.sessions_flask", None)
    from examples.sessions_flask import app

    post: Callable[..., Any]
    with app.test_client() as web:
        post = web.post
        post("/add", data={"item": "tea"})
        assert post("/login", data={"user": ""}).status_code == 400
        assert post("/login", data={"user": "ada"}).json == {"user": "ada", "cart": ["tea"]}
        assert post("/logout-everywhere").json == {"user": None, "cart": []}
