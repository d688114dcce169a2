"""What a runner loads: the hook, the initializer, changed modules, threads."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import flame_backend as flame

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class App:
    """A module in a folder of its own, which is on the path of parent and runners."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self._path = folder / f"{name}.py"

    def write(self, text: str) -> Any:
        """Write the module and load it, as a development server would."""
        self._path.write_text(textwrap.dedent(text))
        os.utime(self._path, (time.time(), time.time()))
        importlib.invalidate_caches()
        if self.name in sys.modules:
            return importlib.reload(sys.modules[self.name])
        return importlib.import_module(self.name)


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[App]:
    """Lend a module that nobody has loaded."""
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"app_{tmp_path.name.replace('-', '_')}"
    yield App(tmp_path, name)
    sys.modules.pop(name, None)


@pytest.fixture
def make() -> Iterator[Callable[..., flame.Pool]]:
    """Make pools that end with the test."""
    made: list[flame.Pool] = []

    def pool(**options: Any) -> flame.Pool:
        made.append(
            flame.Pool("reload", max=1, backend=flame.LocalBackend(), **options)
        )
        return made[-1]

    yield pool
    for one in made:
        one.shutdown()


def own_pid() -> int:
    return os.getpid()


def zygote() -> int:
    return os.getppid()


VERSION = """
    NUMBER = {number}
    STATE = []

    def number():
        return NUMBER

    def prepare(what):
        STATE.append(what)

    def state():
        return NUMBER, STATE

    def size(data):
        return NUMBER, len(data)

    def pair(value):
        return NUMBER, value
"""


@pytest.mark.parametrize("preload", [True, False])
def test_call_runs_the_code_that_is_on_disk(
    make: Callable[..., flame.Pool], app: App, preload: bool
) -> None:
    """After each change, in the same process, whoever had loaded the module."""
    module = app.write(VERSION.format(number=1))
    pool = make(preload=[app.name] if preload else [])
    assert 1 == pool.call(module.number)
    pid = pool.call(own_pid)
    for number in (20, 300):
        module = app.write(VERSION.format(number=number))
        assert number == pool.call(module.number)
        assert number == pool.call(module.number)
        assert pid == pool.call(own_pid)


def test_large_request_and_map_run_the_code_that_is_on_disk(
    make: Callable[..., flame.Pool], app: App
) -> None:
    """A request that was read from the link is not lost; chunks count as theirs."""
    module = app.write(VERSION.format(number=1))
    pool = make(preload=[app.name])
    data = bytes(8 << 20)
    assert (1, len(data)) == tuple(pool.call(module.size, data))
    module = app.write(VERSION.format(number=20))
    assert (20, len(data)) == tuple(pool.call(module.size, data))
    module = app.write(VERSION.format(number=300))
    found = [tuple(row) for row in pool.map(module.pair, range(6), chunksize=3)]
    assert [(300, value) for value in range(6)] == found


def test_function_that_only_the_new_code_has_is_found(
    make: Callable[..., flame.Pool], app: App
) -> None:
    """The request cannot be loaded with the old module."""
    app.write(VERSION.format(number=1))
    pool = make(preload=[app.name])
    pool.call(len, "abc")
    module = app.write("def added():\n    return 'new'\n")
    assert "new" == pool.call(module.added)


def test_initializer_runs_again_with_the_new_code(
    make: Callable[..., flame.Pool], app: App
) -> None:
    """Before the call, in the fresh interpreter; the old state is gone."""
    module = app.write(VERSION.format(number=1))
    pool = make(preload=[app.name], initializer=module.prepare, initargs=("x",))
    assert (1, ["x"]) == tuple(pool.call(module.state))
    module = app.write(VERSION.format(number=20))
    assert (20, ["x"]) == tuple(pool.call(module.state))


def test_zygote_is_replaced_when_its_modules_changed(
    make: Callable[..., flame.Pool], app: App
) -> None:
    """The next slot is forked from new code; slots that run are kept."""
    module = app.write(VERSION.format(number=1))
    pool = make(preload=[app.name], max_concurrency=2)
    pool.wait_ready(30)
    before = pool.call(zygote)
    running = pool.submit(time.sleep, 4)
    while not running.running():
        time.sleep(0.01)
    module = app.write(VERSION.format(number=20))
    with pytest.raises(flame.CallCrashed):
        pool.call(os._exit, 3)
    # Asked by value, so that the call itself does not make the slot start afresh.
    held = f"__import__('sys').modules[{app.name!r}].NUMBER"
    assert 20 == pool.call(eval, held)
    assert before == pool.call(zygote)
    assert running.result(20) is None
    assert 20 == pool.call(module.number)


def test_change_that_does_not_load_is_told(
    make: Callable[..., flame.Pool], app: App
) -> None:
    """As the call's own error, then as the boot's, and over when it is mended."""
    module = app.write(VERSION.format(number=1))
    pool = make(preload=[app.name])
    assert 1 == pool.call(module.number)
    path = Path(module.__file__)
    path.write_text("def number(:\n")
    for _ in range(2):
        with pytest.raises(SyntaxError, match="invalid syntax"):
            pool.options(timeout=20).call(module.number)
    module = app.write(VERSION.format(number=20))
    assert 20 == pool.call(module.number)
    path.write_text("def number(:\n")
    with pytest.raises(flame.CallCrashed):
        pool.call(os._exit, 3)
    with pytest.raises(flame.AppImportError, match="SyntaxError"):
        pool.options(timeout=20, queue_timeout=20).call(module.number)


def hook(**options: Any) -> flame.Pool:
    """Return a pool of one runner, on local processes if nothing is said."""
    return flame.Pool("hook", max=1, **{"backend": flame.LocalBackend(), **options})


def remember_boot() -> None:
    os.environ["BOOTED_BY"] = str(os.getpid())


def raise_at_boot() -> None:
    raise LookupError("no such model")


def test_on_boot_runs_once_in_the_zygote() -> None:
    """Before the forks, so that all slots share what it made."""
    with hook(on_boot=remember_boot, max_concurrency=2) as pool:
        for _ in range(2):
            booted, parent = pool.call(
                eval,
                "[__import__('os').environ['BOOTED_BY'], "
                "str(__import__('os').getppid())]",
            )
            assert booted == parent
            with pytest.raises(flame.CallCrashed):
                pool.call(os._exit, 3)


@pytest.mark.parametrize("backend", [flame.LocalBackend, flame.InlineBackend])
def test_on_boot_that_raises_fails_the_boot(backend: Callable[[], Any]) -> None:
    """With its phase, its error and its traceback."""
    with (
        hook(on_boot=raise_at_boot, backend=backend()) as pool,
        pytest.raises(flame.AppImportError, match="no such model") as caught,
    ):
        pool.call(len, "abc")
    assert "on_boot" == caught.value.phase
    assert "in raise_at_boot" in caught.value.log_tail


def test_on_boot_of_the_main_script_sets_its_globals(tmp_path: Path) -> None:
    """What it loads once is there in all slots."""
    script = tmp_path / "app.py"
    script.write_text(textwrap.dedent(HOOKED))
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=True, timeout=60
    )
    assert "[True, True]\n" == done.stdout


def test_on_boot_is_a_function() -> None:
    """Anything else is refused by name."""
    with pytest.raises(flame.ConfigurationError, match="on_boot"):
        hook(on_boot="load")


def test_import_error_fails_the_boot_with_its_traceback(
    make: Callable[..., flame.Pool], app: App
) -> None:
    """And not the first call; the line that raised is in it."""
    app.write("")
    Path(sys.modules[app.name].__file__ or "").write_text("import no_such_thing\n")
    with pytest.raises(flame.AppImportError, match="no_such_thing") as caught:
        make(preload=[app.name]).call(len, "abc")
    assert "import" == caught.value.phase
    assert f"{app.name}.py" in caught.value.log_tail


HOOKED = """
    import os
    import flame_backend as flame

    loaded = None

    def load():
        global loaded
        loaded = os.getpid()

    def works(n):
        return loaded == os.getppid()

    if __name__ == "__main__":
        backend = flame.LocalBackend()
        with flame.Pool(
            "app", max=1, max_concurrency=2, on_boot=load, backend=backend
        ) as pool:
            print(list(pool.map(works, range(2))))
"""

THREADED = """
    import threading
    LOCK = threading.Lock()

    def hold():
        with LOCK:
            threading.Event().wait()

    threading.Thread(target=hold, name="holder", daemon=True).start()

    def locked():
        return LOCK.locked(), threading.active_count()
"""


def test_threads_of_preloading_are_not_forked(
    make: Callable[..., flame.Pool], app: App, capfd: pytest.CaptureFixture[str]
) -> None:
    """Slots start afresh, with the threads alive, and the runner says why."""
    module = app.write(THREADED)
    pool = make(preload=[app.name], max_concurrency=2, initializer=own_pid)
    for _ in range(2):
        assert (True, 2) == tuple(pool.call(module.locked))
        with pytest.raises(flame.CallCrashed):
            pool.call(os._exit, 3)
    pool.shutdown()
    assert "threads running (holder)" in capfd.readouterr().err


def test_threads_of_libraries_that_know_forks_are_no_reason(
    make: Callable[..., flame.Pool], capfd: pytest.CaptureFixture[str]
) -> None:
    """Numpy's own are gone in a fork by themselves."""
    pytest.importorskip("numpy")
    pool = make(preload=["numpy"])
    code = "float(__import__('numpy').ones((300, 300)).dot([1.0] * 300).sum())"
    assert 90_000.0 == pool.call(eval, code)
    pool.shutdown()
    assert "threads running" not in capfd.readouterr().err
