"""A service-account volume under every kind of change: one generation, or an error.

The machine publishes, truncates, deletes, relinks and forbids; after each step the
volume is read. What is read is exactly what one published generation held, never a mix
of two, and a reading that cannot be that raises our error.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kubetls.credentials.incluster import in_cluster
from kubetls.credentials.keeper import REREAD_SECONDS, CredentialKeeper
from kubetls.errors import CredentialError, KubeTLSError
from tests.credential_files import CA_PEM, OTHER_CA_PEM

ENVIRON = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}
BUNDLES = (CA_PEM, OTHER_CA_PEM, CA_PEM + OTHER_CA_PEM)
FILES = ("token", "ca.crt", "namespace")


class Volume(RuleBasedStateMachine):
    """A mount, a session's keeper on it, and what has been published so far."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="kubetls-volume-"))
        self.published: set[tuple[str, bytes]] = set()
        self.damaged = False
        self.count = 0
        self.seconds = 0.0
        self.publish(0)
        config = in_cluster(self.folder, ENVIRON)
        self.keeper = CredentialKeeper(config.source, lambda: self.seconds, lambda: 0.0)

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @rule(bundle=st.integers(0, len(BUNDLES) - 1))
    def publish(self, bundle: int) -> None:
        """As the kubelet: a new directory, and `..data` renamed over."""
        self.count += 1
        token, ca = f"h.{self.count}.s", BUNDLES[bundle]
        generation = self.folder / f"..{self.count}"
        generation.mkdir()
        (generation / "token").write_text(token)
        (generation / "ca.crt").write_bytes(ca)
        (generation / "namespace").write_text("default")
        (self.folder / "next").symlink_to(generation.name)
        (self.folder / "next").rename(self.folder / "..data")
        self.published.add((token, ca))
        self.damaged = False

    @rule()
    def sweep(self) -> None:
        """As the kubelet: the directories that are not current go."""
        current = os.readlink(self.folder / "..data")  # noqa: PTH115 - text
        for path in self.folder.glob("..[0-9]*"):
            if path.name != current:
                shutil.rmtree(path)

    @rule(name=st.sampled_from(FILES), size=st.integers(0, 3))
    def truncate(self, name: str, size: int) -> None:
        """A full disk, or a hand in the wrong place."""
        path = self.folder / "..data" / name
        if path.is_file():
            os.truncate(path, size)
            self.damaged = True

    @rule(name=st.sampled_from(FILES))
    def delete(self, name: str) -> None:
        """A file is gone."""
        path = self.folder / "..data" / name
        if not path.is_dir():
            path.unlink(missing_ok=True)
        self.damaged = True

    @rule(name=st.sampled_from(FILES), kind=st.sampled_from(["folder", "fifo", "loop"]))
    def exchange(self, name: str, kind: str) -> None:
        """Something that is no file stands in its place; reading must not hang."""
        path = self.folder / "..data" / name
        self.delete(name)
        if kind == "folder":
            if not path.is_dir():
                path.mkdir()
        elif path.is_dir():
            return
        elif kind == "fifo":
            os.mkfifo(path)
        else:
            path.symlink_to(name)

    @precondition(lambda self: self.count > 1)
    @rule()
    def relink_back(self) -> None:
        """An older generation becomes current again, if it is still there."""
        olds = sorted(self.folder.glob("..[0-9]*"))
        (self.folder / "next").symlink_to(olds[0].name)
        (self.folder / "next").rename(self.folder / "..data")
        self.damaged = True  # it may have been damaged before

    @rule(seconds=st.sampled_from([0.0, 1.0, REREAD_SECONDS, 3600.0]))
    def time_passes(self, seconds: float) -> None:
        """The keeper reads again when it is due."""
        self.seconds += seconds

    @invariant()
    def a_reading_is_one_generation(self) -> None:
        """Token and bundle belong together, or it is an error of ours."""
        try:
            config = in_cluster(self.folder, ENVIRON)
            generation = config.source.read()
        except CredentialError:
            assert self.damaged
            return
        self._belongs_together(generation)

    @invariant()
    def a_session_keeps_the_last_good_one(self) -> None:
        """Never nothing, and never a mix."""
        try:
            self._belongs_together(self.keeper.current())
        except KubeTLSError as error:
            raise AssertionError from error

    def _belongs_together(self, generation: object) -> None:
        token = generation.token.reveal()  # type: ignore[attr-defined]
        pem = generation.anchors.pem.split()  # type: ignore[attr-defined]
        whole = [(known, ca) for known, ca in self.published if known == token]
        if not self.damaged:
            assert whole
        # A shorter token is a truncated one; the bundle is never another's.
        assert any(pem == ca.decode().split() for _, ca in whole or self.published)


Volume.TestCase.settings = settings(max_examples=40, stateful_step_count=25)
TestVolume = Volume.TestCase
