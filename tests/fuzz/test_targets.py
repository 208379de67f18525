"""What `make fuzz` checks for hours, for a few inputs that are almost valid."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.mutations import mutated_bytes, mutated_json, text_of
from tests.fuzz.targets import TARGETS

few = settings(deadline=None, max_examples=300, suppress_health_check=list(HealthCheck))
many = settings(few, max_examples=20_000)
inputs = {name: mutated_bytes(target.seeds(), target.words) for name, target in TARGETS.items()}
for name in ("header", "index"):
    for seed in TARGETS[name].seeds():
        inputs[name] |= mutated_json(json.loads(seed), ["model-2.safetensors", [0, 24], [2, 3]]).map(text_of)

pytestmark = pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")  # pickletools


@pytest.mark.parametrize("name", TARGETS)
def test_valid_inputs_hold(name):
    for seed in TARGETS[name].seeds():
        TARGETS[name].check(seed)


@pytest.mark.parametrize("name", TARGETS)
@few
@given(data=st.data())
def test_inputs_that_are_almost_valid(name, data):
    TARGETS[name].check(data.draw(inputs[name]))


@pytest.mark.thorough
@pytest.mark.parametrize("name", TARGETS)
@many
@given(data=st.data())
def test_many_inputs_that_are_almost_valid(name, data):
    TARGETS[name].check(data.draw(inputs[name]))
