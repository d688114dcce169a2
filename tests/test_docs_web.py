"""The code of docs/django-fastapi.md, put together to an app and served.

And what docs/rolling-updates.md says of the end of such an app's processes.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "django-fastapi.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)

# What the page takes for granted: an app's own tasks, model, settings and URLs.
TASKS = """\
import pathlib
import time

def price(basket):
    if basket == 13:
        time.sleep(60)
    return {"basket": basket, "price": basket * 2}

def render_film(film):
    if film == "broken":
        raise ValueError("no such film")
    if film == "long":
        pathlib.Path("begun").touch()
        time.sleep(4)
    return len(film)

def count_jobs():
    from shop.models import Job

    return Job.objects.count()
"""
MODELS = """\
from django.db import models

class Job(models.Model):
    film = models.TextField()
    state = models.TextField()
    message = models.TextField(default="")
    result = models.JSONField(null=True)
    created = models.DateTimeField(auto_now_add=True)
"""
SETTINGS = """\

SECRET_KEY = "of a test"
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "shop.urls"
USE_TZ = True
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": "shop.sqlite3",
        "OPTIONS": {"timeout": 20},
        "CONN_MAX_AGE": CONN_MAX_AGE,
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
"""
URLS = """\
from django.http import JsonResponse
from django.urls import path

from shop import jobs, models, views
from shop.counting import pool
from shop.tasks import count_jobs

def job(request, key):
    found = models.Job.objects.get(pk=key)
    return JsonResponse(
        {"state": found.state, "result": found.result, "message": found.message}
    )

urlpatterns = [
    path("quote/<int:basket>", views.quote),
    path("start/<str:film>", jobs.start),
    path("job/<int:key>", job, name="job"),
    path("count", lambda request: JsonResponse({"jobs": pool.call(count_jobs)})),
    path("abandoned", lambda request: JsonResponse({"jobs": jobs.abandoned().count()})),
]
"""
WSGI = """\
import os
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
from django.core.wsgi import get_wsgi_application

application = get_wsgi_application()
"""


def block_with(text: str) -> str:
    """Return the one python block of the page that holds this text."""
    (block,) = [block for block in BLOCKS if text in block]
    return str(block)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Write the app: the page's blocks, and around them what it takes for granted."""
    package = tmp_path / "shop"
    (package / "metrics").mkdir(parents=True)
    files = {
        "__init__.py": "",
        "metrics/__init__.py": "",
        "runners.py": block_with("# shop/runners.py"),
        "views.py": block_with("def quote(request, basket)"),
        "api.py": block_with("async def quote"),
        "jobs.py": block_with("def start(request, film)"),
        "setup.py": block_with("# shop/setup.py"),
        "counting.py": block_with("preload="),
        "settings.py": block_with("in_runner =") + SETTINGS,
        "tasks.py": TASKS,
        "models.py": MODELS,
        "urls.py": URLS,
        "wsgi.py": WSGI,
    }
    for name, text in files.items():
        (package / name).write_text(text, encoding="utf-8")
    return tmp_path


def environment() -> dict[str, str]:
    """Return the variables of a process of the app, which is in no cluster."""
    path = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    return {**os.environ, "FLAME_BACKEND": "local", "PYTHONPATH": path}


def run_in(folder: Path, program: str) -> str:
    """Run a program beside the app and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    return done.stdout


def needs(*names: str) -> pytest.MarkDecorator:
    """Skip where a framework is not installed."""
    missing = [name for name in names if find_spec(name) is None]
    return pytest.mark.skipif(
        bool(missing), reason=f"not installed: {', '.join(missing)}"
    )


def gunicorn_words() -> list[str]:
    """Return the page's own command line, without its first word."""
    (line,) = re.findall(r"^    gunicorn (.*)$", PAGE, flags=re.MULTILINE)
    return str(line).split()


@contextmanager
def served(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], str, Path]]:
    """Serve the app with gunicorn; at the end it has been asked to stop."""
    log = folder / "gunicorn.log"
    words = [sys.executable, "-m", "gunicorn", *gunicorn_words()]
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [*words, "--bind", "127.0.0.1:0", "--log-level", "debug"],
            cwd=folder,
            env=environment(),
            stdout=output,
            stderr=output,
        ) as process,
    ):
        try:
            yield process, _address(process, log), log
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=60)
            finally:
                process.kill()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up and process.poll() is None:
        found = re.search(r"Listening at: (http://\S+)", log.read_text())
        if found:
            return found[1]
        time.sleep(0.05)
    raise AssertionError(log.read_text())


def fetched(url: str) -> tuple[int, dict[str, str], Any]:
    """Return status, headers and content of an answer."""
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status, dict(answer.headers), json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read().decode()


def ended_job(url: str) -> Any:
    """Return a job's row once it runs no longer."""
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up:
        _, _, row = fetched(url)
        if row["state"] != "running":
            return row
        time.sleep(0.1)
    raise AssertionError(url)


MIGRATE = """\
import shop.setup
from django.apps import apps
from django.db import connection
with connection.schema_editor() as editor:
    editor.create_model(apps.get_model("shop", "Job"))
"""


@needs("django", "gunicorn")
def test_django_page_works_under_its_gunicorn(shop: Path) -> None:
    """Short calls, one too slow for its view, jobs with a row, models in a runner."""
    views = (shop / "shop" / "views.py").read_text()
    assert "timeout=5" in views
    (shop / "shop" / "views.py").write_text(views.replace("timeout=5", "timeout=1"))
    run_in(shop, MIGRATE)
    with served(shop) as (process, url, log):
        assert (200, {"basket": 4, "price": 8}) == fetched(f"{url}/quote/4")[::2]
        status, _, text = fetched(f"{url}/quote/13")
        assert 503 == status
        assert "timeout of 1 s" in text
        for film, *end in (
            ("film", "done", 4, ""),
            ("broken", "failed", None, "no such film"),
        ):
            status, headers, _ = fetched(f"{url}/start/{film}")
            assert 202 == status
            row = ended_job(url + headers["Location"])
            assert end == [row["state"], row["result"], row["message"]]
        assert {"jobs": 2} == fetched(f"{url}/count")[2]
        assert {"jobs": 0} == fetched(f"{url}/abandoned")[2]
        process.send_signal(signal.SIGTERM)
        assert 0 == process.wait(timeout=60)
    assert "Traceback" not in log.read_text()


@needs("django", "gunicorn")
def test_call_in_the_background_may_finish_when_gunicorn_is_stopped(shop: Path) -> None:
    """At the exit of its worker the pool waits, and the row is written."""
    run_in(shop, MIGRATE)
    with served(shop) as (process, url, log):
        assert 202 == fetched(f"{url}/start/long")[0]
        give_up = time.monotonic() + 60
        while not (shop / "begun").exists() and time.monotonic() < give_up:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert 0 == process.wait(timeout=60)
    with closing(sqlite3.connect(shop / "shop.sqlite3")) as database:
        rows = database.execute("SELECT state, result FROM shop_job").fetchall()
    assert [("done", "4")] == rows, log.read_text()


FASTAPI = """\
from fastapi.testclient import TestClient
from shop.api import app
from shop.runners import pool

with TestClient(app) as client:
    print(client.get("/quote/3").json())
pool.shutdown()
"""


@needs("fastapi", "httpx")
def test_fastapi_page_answers_from_a_runner(shop: Path) -> None:
    """The async endpoint awaits its future."""
    assert "{'basket': 3, 'price': 6}\n" == run_in(shop, FASTAPI)
