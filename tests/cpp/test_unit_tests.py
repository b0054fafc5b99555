"""The unit tests in C++, by g++, and by clang and g++ with sanitizers; and the fuzzer of the reader of manifests."""

from __future__ import annotations

import os

import pytest
from cpp_build import KINDS, fuzz, run_unit_tests

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
#: Inputs of the fuzzer on every commit, half a minute; `make cpp-fuzz` has a million, which take minutes.
INPUTS = int(os.environ.get("FLOWLESS_FUZZ_INPUTS", "200000"))


@pytest.mark.parametrize("kind", KINDS)
def test_unit_tests_pass(cpp_build, kind: str) -> None:
    run_unit_tests(kind, cpp_build(kind))


def test_no_text_breaks_the_reader_of_manifests(cpp_build) -> None:
    fuzz(cpp_build("address"), INPUTS)
