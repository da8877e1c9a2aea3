"""What `raylign doctor` says of the sandbox: what its limits are of, or why there is none."""

from __future__ import annotations

import pytest
from raylign.app.commands import doctor
from raylign.reward.sandbox.box import Isolation
from raylign.reward.sandbox.isolation import NoIsolationError
from raylign.reward.sandbox.limits import LIMITS_OF


def test_a_sandbox_is_told_with_what_its_limits_are_of(monkeypatch: pytest.MonkeyPatch):
    for as_root, how in ((True, "as root"), (False, "in a user namespace")):
        monkeypatch.setattr(doctor, "find_isolation", lambda as_root=as_root: Isolation("bwrap", as_root=as_root))
        found = doctor._sandbox()
        assert found.mark == "ok" and how in found.text and found.text.endswith(LIMITS_OF)


def test_a_machine_without_one_is_told_why_and_is_fit_for_all_else(monkeypatch: pytest.MonkeyPatch):
    def none() -> Isolation:
        raise NoIsolationError("allow user namespaces")

    monkeypatch.setattr(doctor, "find_isolation", none)
    found = doctor._sandbox()
    assert found.mark == "note" and found.text == "reward.code cannot be used: allow user namespaces"
