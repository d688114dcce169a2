"""Globals of the main script stay in a runner's process, and follow the parent."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

DRIVER = """
import base64, subprocess, sys
from flame_backend.wire.functions import dump_call

RUNNER = (
    "import base64, sys\\n"
    "from flame_backend.wire.functions import load_object\\n"
    "for line in sys.stdin:\\n"
    "    function, args, kwargs = load_object(base64.b64decode(line))\\n"
    "    print(repr(function(*args, **kwargs)), flush=True)\\n"
)
runner = subprocess.Popen(
    [sys.executable, "-c", RUNNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
)

def call(function, *args):
    body = b"".join(dump_call(function, args, {}, limit=1 << 20))
    runner.stdin.write(base64.b64encode(body) + b"\\n")
    runner.stdin.flush()
    print(runner.stdout.readline().decode().strip())

"""

PROGRAMS = {
    "a name that a call sets is there for the next": (
        """
        model = None
        def load():
            global model
            model = "loaded"
        def ask():
            return model
        call(load)
        call(ask)
        call(ask)
        """,
        "None 'loaded' 'loaded'",
    ),
    "a container that calls fill stays filled": (
        """
        cache = {}
        def put(key):
            cache[key] = len(cache)
            return cache
        call(put, "a")
        call(put, "b")
        """,
        "{'a': 0} {'a': 0, 'b': 1}",
    ),
    "an object of the script's own class keeps its state": (
        """
        class Counter:
            times = 0
            def count(self):
                self.times += 1
                return self.times
        counter = Counter()
        def count():
            return counter.count()
        call(count)
        call(count)
        """,
        "1 2",
    ),
    "a constant that the parent changed is the new one": (
        """
        limit = 5
        def ask():
            return limit
        call(ask)
        limit = 10
        call(ask)
        limit = 5
        call(ask)
        """,
        "5 10 5",
    ),
    "a function that the parent defined again is the new one": (
        """
        def helper():
            return "old"
        def ask():
            return helper()
        call(ask)
        def helper():
            return "new"
        call(ask)
        """,
        "'old' 'new'",
    ),
    "a function that an initializer put in place stays": (
        """
        def helper():
            return "as sent"
        def replace():
            global helper
            helper = lambda: "replaced"
        def ask():
            return helper()
        call(ask)
        call(replace)
        call(ask)
        """,
        "'as sent' None 'replaced'",
    ),
    "functions see each other's globals": (
        """
        first = second = 0
        def set_first():
            global first
            first = 1
        def set_second():
            global second
            second = 2
        def ask():
            return first, second
        call(set_first)
        call(set_second)
        call(ask)
        """,
        "None None (1, 2)",
    ),
    "what a closure holds is its own": (
        """
        def make(n):
            def inner():
                return n
            return inner
        call(make(1))
        call(make(2))
        """,
        "1 2",
    ),
    "what cannot be compared follows the parent": (
        """
        class Odd:
            def __reduce__(self):
                return make, (self.n, (lambda: open("nothing"))), {}
            def __setstate__(self, state):
                self.file = open(__file__)
        def make(n, how):
            odd = Odd()
            odd.n = n
            return odd
        odd = make(1, None)
        def ask():
            odd.n += 10
            return odd.n, hasattr(odd, "file")
        call(ask)
        call(ask)
        odd = make(2, None)
        call(ask)
        """,
        "(11, True) (11, True) (12, True)",
    ),
    "the script's name and file are known": (
        """
        def ask():
            return __name__, __file__.endswith("program.py")
        call(ask)
        """,
        "('__main__', True)",
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_main_script_has_its_globals(name: str, tmp_path: Path) -> None:
    """Each program's calls, run one after the other in one process."""
    program, expected = PROGRAMS[name]
    path = tmp_path / "program.py"
    path.write_text(DRIVER + textwrap.dedent(program))
    ended = subprocess.run(
        [sys.executable, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ended.stdout.split("\n") == [*expected_lines(expected), ""]


def expected_lines(text: str) -> list[str]:
    """Split the values that a table's row expects: one for each call."""
    lines, depth, current = [], 0, ""
    for letter in text:
        depth += (letter in "({") - (letter in ")}")
        if letter == " " and not depth and current.count("'") % 2 == 0:
            lines.append(current)
            current = ""
        else:
            current += letter
    return [*lines, current]
