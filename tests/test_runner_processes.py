"""Runner processes: what they inherit, hold, load, and how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import flame_backend as flame
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

CLOSE_ON_EXEC = 0o2000000


@pytest.fixture
def pool() -> Iterator[flame.Pool]:
    """Lend a pool of one runner with two slots."""
    with flame.Pool(
        "held", max=1, max_concurrency=2, backend=flame.LocalBackend()
    ) as made:
        open_all(made, 2)
        yield made


def holds(folder: Path, count: int) -> bool:
    """Say whether so many things are in a folder."""
    return len(list(folder.iterdir())) == count


def open_all(pool: flame.Pool, slots: int) -> None:
    """Have all slots open: until then descriptors of agent and zygote change."""
    pool.wait_ready(30)
    until(lambda: pool.status().idle_slots == slots)


def sockets() -> list[int]:
    """Return this process' descriptors that are sockets."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if str(entry.readlink()).startswith("socket:"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def seen_by_program() -> str:
    """Return what a program finds that user code starts with all descriptors."""
    code = (
        "import os; print([n for n in sorted(os.environ) if n.startswith('FLAME')], "
        "[n for n in os.listdir('/proc/self/fd') if os.path.exists('/proc/self/fd/'+n)"
        " and int(n) > 2])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        close_fds=False,
    )
    return done.stdout.strip()


def sockets_of_a_fork() -> tuple[int, int]:
    """Return how many sockets this process and one that it forks have."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, bytes([len(sockets())]))
        os._exit(0)
    os.waitpid(pid, 0)
    found = os.read(read, 1)[0]
    os.close(read)
    os.close(write)
    return len(sockets()), found


def family() -> tuple[int, int, int]:
    """Return slot, zygote and agent."""
    zygote = os.getppid()
    return os.getpid(), zygote, parent_of(zygote)


def parent_of(pid: int) -> int:
    text = Path(f"/proc/{pid}/stat").read_text()
    return int(text.rpartition(")")[2].split()[1])


def test_no_descriptor_survives_exec(pool: flame.Pool) -> None:
    """Of slot, zygote and agent: all beyond the standard streams close on exec."""
    for pid in pool.call(family):
        for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
            facts = dict(
                line.split(":", 1) for line in entry.read_text().splitlines() if line
            )
            if int(entry.name) > 2:
                assert int(facts["flags"], 8) & CLOSE_ON_EXEC, (pid, entry.name)


def test_program_of_a_call_sees_no_variable_and_no_descriptor(pool: flame.Pool) -> None:
    """Nothing that makes it a runner, also when it asked for all descriptors."""
    assert "[] []" == pool.call(seen_by_program)


def test_process_that_a_call_forks_has_no_link(pool: flame.Pool) -> None:
    """Its copy is closed at once; the slot's own lives on."""
    assert (1, 0) == pool.call(sockets_of_a_fork)
    assert (1, 0) == pool.call(sockets_of_a_fork)


def test_process_that_the_parent_forks_has_no_link() -> None:
    """Its copies of all links are closed, and the parent's serve on."""
    before = len(sockets())
    with flame.Pool("forked", max=1, backend=flame.LocalBackend()) as pool:
        assert 3 == pool.call(len, "abc")
        assert before + 2 <= len(sockets())
        assert before == sockets_of_a_fork()[1]
        assert 4 == pool.call(len, "abcd")


def test_zygote_keeps_no_copy_of_a_slots_link() -> None:
    """It has as many descriptors with one slot as with eight, renewed ones too."""
    few = 0
    for slots in (1, 8):
        with flame.Pool(
            "copies", max=1, max_concurrency=slots, backend=flame.LocalBackend()
        ) as pool:
            pool.wait_ready(30)
            for _ in range(slots):
                with pytest.raises(flame.CallCrashed):
                    pool.call(os._exit, 1)
            open_all(pool, slots)
            open_now = Path(f"/proc/{pool.call(family)[1]}/fd")
            # It closes its copy behind the fork, when the slot may have come already.
            time.sleep(0.3)
            few = few or len(list(open_now.iterdir()))
            until(partial(holds, open_now, few))


def test_agent_watches_the_process_of_its_parent(pool: flame.Pool) -> None:
    """By pidfd, as a forked process of the parent may keep the link open."""
    agent = pool.call(family)[2]
    watched = {
        line.split()[1]
        for entry in Path(f"/proc/{agent}/fdinfo").iterdir()
        for line in entry.read_text().splitlines()
        if line.startswith("Pid:")
    }
    assert {str(os.getpid())} == watched


APP = """
    import os, subprocess, sys, time
    import flame_backend as flame

    def work(path):
        daemon = [sys.executable, "-c", "import time; time.sleep(60)"]
        subprocess.Popen(daemon)
        subprocess.Popen(daemon, start_new_session=True)
        open(path + ".part", "w").write(str(os.getpid()))
        os.rename(path + ".part", path)
        time.sleep(60)

    if __name__ == "__main__":
        backend = flame.LocalBackend(env={"ENDED_TEST": sys.argv[1]})
        pool = flame.Pool("ended", max=2, backend=backend)
        pool.call(len, "abc")
        if os.fork() == 0:
            time.sleep(20)
            os._exit(0)
        futures = [pool.submit(work, sys.argv[1] + str(n)) for n in range(2)]
        futures[0].result()
"""


def marked(text: str) -> set[int]:
    """Return the living processes whose environment holds this text."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and text.encode() in (
                (entry / "environ").read_bytes()
            ):
                found.add(int(entry.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("victim", ["parent", "agent stopped"])
def test_death_of_the_parent_ends_everything(tmp_path: Path, victim: str) -> None:
    """Within 5 s, with a fork of the parent alive, daemons of calls included.

    An agent that is stopped cannot see it; as soon as it runs again, it does.
    """
    script = tmp_path / "app.py"
    script.write_text(textwrap.dedent(APP))
    mark = tmp_path / "mark"
    parent = subprocess.Popen(
        [sys.executable, script, mark],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 20
        while not all(Path(f"{mark}{n}").exists() for n in range(2)):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        variable = f"ENDED_TEST={mark}"
        agent = parent_of(parent_of(int(Path(f"{mark}0").read_text())))
        # A process that has just begun its program shows no environment for a moment.
        until(lambda: len(marked(variable)) == 8)
        if victim == "agent stopped":
            os.kill(agent, signal.SIGSTOP)
        parent.kill()
        parent.wait(10)
        if victim == "agent stopped":
            time.sleep(0.3)
            os.kill(agent, signal.SIGCONT)
        deadline = time.monotonic() + 5
        while left := marked(variable):
            assert time.monotonic() < deadline, left
            time.sleep(0.02)
    finally:
        parent.kill()
        parent.wait(10)
        # The fork that the app leaves, in the app's session; it ends by itself.
        with suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)


SHADOWS = ("selectors", "json", "socket", "select", "struct", "flame_backend")


def test_runner_takes_no_module_from_the_working_folder(tmp_path: Path) -> None:
    """Files there that are named like modules a runner needs are never run."""
    for name in SHADOWS:
        (tmp_path / f"{name}.py").write_text(
            f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})\n"
        )
    code = (
        "import flame_backend as flame\n"
        "with flame.Pool('shadow', max=1, backend=flame.LocalBackend()) as pool:\n"
        "    print(pool.call(eval, '__import__(\"selectors\").__file__'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert not done.stdout.startswith(str(tmp_path))
    assert done.stdout.strip().endswith("selectors.py")
    assert not (tmp_path / "ran").exists()


HELLO = """
import socket, sys
import flame_backend.runner.__main__
import flame_backend.runner.agent
from flame_backend.runner.control import Control
from flame_backend.runner.parent import Parent

ours, theirs = socket.socketpair()
fd = theirs.detach()
parent = Parent(pool="p", runner="r", transport="fd", fd=fd, pid=1)
Control(parent).connect()
print(*sorted(sys.modules))
"""


def test_agent_has_descriptors_for_more_slots_than_the_app_may_open() -> None:
    """It needs three for each, and the limit of the app is not raised for that."""
    script = textwrap.dedent(
        """
        import resource, time
        import flame_backend as flame
        limit = resource.RLIMIT_NOFILE
        resource.setrlimit(limit, (64, resource.getrlimit(limit)[1]))
        with flame.Pool("many", max=24, backend=flame.LocalBackend()) as pool:
            calls = [pool.submit(time.sleep, 1.5) for _ in range(24)]
            print({call.result() for call in calls})
            print(pool.call(resource.getrlimit, limit)[0])
        """
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=60
    )
    assert "{None}\n64\n" == done.stdout, done.stderr


def test_agent_without_descriptors_refuses_one_slot() -> None:
    """At its hard limit; those it has go on, and calls go to them."""
    script = textwrap.dedent(
        """
        import os, resource, time
        import flame_backend as flame
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
        with flame.Pool("many", max=20, backend=flame.LocalBackend()) as pool:
            pool.call(abs, -1)
            agent = pool.status().backend["agent_pid"]
            calls = [pool.submit(time.sleep, 0.3) for _ in range(20)]
            print({call.result() for call in calls})
            print(agent == pool.status().backend["agent_pid"])
            print(1 < pool.status().ready < 10)
        """
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=60
    )
    assert "{None}\nTrue\nTrue\n" == done.stdout, done.stderr
    assert "in a row did not connect; its agent is at its limit" in done.stderr
    assert "Traceback" not in done.stderr


def test_parent_without_descriptors_keeps_the_runners_it_has() -> None:
    """A slot that gets no link fails alone; calls go to those that have one."""
    script = textwrap.dedent(
        """
        import os, resource, time
        import flame_backend as flame
        with flame.Pool("many", max=6, backend=flame.LocalBackend()) as pool:
            pool.call(abs, -1)
            agent = pool.status().backend["agent_pid"]
            limit = resource.RLIMIT_NOFILE
            open_now = len(os.listdir("/proc/self/fd"))
            resource.setrlimit(limit, (open_now + 3, resource.getrlimit(limit)[1]))
            calls = [pool.submit(time.sleep, 0.5) for _ in range(6)]
            print({call.result() for call in calls})
            print(agent == pool.status().backend["agent_pid"])
            print(pool.status().ready < 6)
            resource.setrlimit(limit, (open_now + 60, resource.getrlimit(limit)[1]))
            while pool.status().ready < 6:
                list(pool.map(time.sleep, [0.2] * 6))
        """
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=60
    )
    assert "{None}\nTrue\nTrue\n" == done.stdout, done.stderr
    assert "Traceback" not in done.stderr


def test_modules_at_hello_are_few_and_light() -> None:
    """What the agent has loaded when it says HELLO: our small ones, nothing heavy."""
    bare, loaded = (
        set(
            subprocess.run(
                [sys.executable, "-I", "-S", "-c", code],
                capture_output=True,
                text=True,
                check=True,
            ).stdout.split()
        )
        for code in (
            "import sys; print(*sorted(sys.modules))",
            f"import sys; sys.path.append({str(ROOT)!r})\n{HELLO}",
        )
    )
    ours = {name for name in loaded if name.startswith(("flame_backend", "kubetls"))}
    assert ours == {
        "flame_backend",
        "flame_backend.errors",
        "flame_backend.runner",
        "flame_backend.runner.__main__",
        "flame_backend.runner.agent",
        "flame_backend.runner.control",
        "flame_backend.runner.parent",
        "flame_backend.runner.processes",
        "flame_backend.runner.pump",
        "flame_backend.version",
        "flame_backend.wire",
        "flame_backend.wire.bucket",
        "flame_backend.wire.frames",
    }
    heavy = {
        "asyncio", "cloudpickle", "ctypes", "email", "hashlib", "inspect", "logging",
        "ormsgpack", "pathlib", "pickle", "random", "ssl", "subprocess", "tempfile",
        "threading", "traceback", "typing", "typing_extensions", "urllib",
    }  # fmt: skip
    assert set() == heavy & (loaded - bare)


def test_first_slot_is_forked_before_typing_is_loaded() -> None:
    """Annotations cost a runner nothing: typing alone takes 2.5 of 40 ms."""
    code = (
        f"import sys; sys.path.append({str(ROOT)!r})\n"
        "from flame_backend.runner.parent import Parent\n"
        "from flame_backend.runner.zygote import _load_slot_modules\n"
        "_load_slot_modules(Parent('p', 'r', 'fd'))\n"
        "print('flame_backend.runner.slot' in sys.modules, 'typing' in sys.modules)"
    )
    command = [sys.executable, "-I", "-S", "-c", code]
    assert "True False\n" == subprocess.check_output(command, text=True)


ROOT = Path(flame.__file__).parent.parent
