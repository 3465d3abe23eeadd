"""Calls with a deadline in a forked child."""

import os

import pytest

from companion_core.system.deadline import call_with_deadline

pytestmark = pytest.mark.integration


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_makes_threads_of_its_own():
    assert call_with_deadline(int, "1", seconds=30) == 1
    child = os.fork()
    if child == 0:
        os._exit(call_with_deadline(int, "7", seconds=30))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
