"""What is waited for is printed once that takes long, and not before."""

import re
import time

import pytest

from jaxformer.host.waiting import waiting

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]


def test_what_is_waited_for_is_printed_once_it_takes_long(capsys):
    err = ""
    with waiting("the others", after=0.01):
        while not err:
            time.sleep(0.01)
            err = capsys.readouterr().err
    assert re.fullmatch(r"jaxformer: waiting for the others: 0:0\d so far\n", err)


def test_what_is_over_soon_prints_nothing(capsys):
    with waiting("the others", after=60):
        pass
    assert capsys.readouterr().err == ""
