"""Old names say once in a process what they are called now."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest

from leanthink.utils import deprecated
from leanthink.utils.deprecated import warn_renamed


@pytest.fixture(autouse=True)
def nothing_is_told(monkeypatch):
    monkeypatch.setattr(deprecated, "_told", set())


def old_function():
    warn_renamed("old_function", "new_function")


def test_an_old_name_says_what_it_is_called_now_and_where_it_stands():
    with pytest.warns(FutureWarning, match="old_function is called new_function now: use that name") as told:
        old_function()
    assert told[0].filename == __file__


def test_each_old_name_is_told_once():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(3):
            old_function()
        warn_renamed("--interval", "--eviction-interval")
    assert [str(one.message).split()[0] for one in told] == ["old_function", "--interval"]


def test_users_see_it_without_asking_for_warnings():
    command = "from leanthink.utils.deprecated import warn_renamed as warn; warn('a', 'b'); warn('a', 'b')"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert done.stderr.count("RenamedWarning: a is called b now: use that name") == 1
