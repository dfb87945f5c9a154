"""What runs leave around functions, beside what may be a setting there."""

import pytest
import torch

from tests.test_content import pack

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def content(comfy_host):
    return comfy_host.module("nodes.host.kept.content")


MADE_IN_RUNS = """
def pair(factor):
    made = None
    def step(x):
        def keep():
            nonlocal made
            made = lambda: x
        keep()
    def use():
        return made() * factor
    return use, step

def falling(factor):
    def step():
        nonlocal factor
        factor = factor / 2
        return factor
    return step

def counting(factor):
    count = 0
    def step():
        nonlocal count
        count += 1
        return factor
    return step

def scaled_after(factor):
    scale = None
    def set_up(value):
        nonlocal scale
        scale = value
    def step():
        nonlocal scale
        scale = scale * 2
    set_up(factor)
    return step

def filled(factor):
    factors = []
    factors.append(factor)
    def step():
        nonlocal factors
        factors = factors[:1]
    return step

def chosen(factor):
    count = 1 if factor > 0.3 else 2
    def step():
        nonlocal count
        count += 1
    return step
"""


@pytest.mark.parametrize("name", ["their_pack", "comfy_extras.nodes_theirs"])
def test_what_a_function_makes_while_it_runs_is_no_part_of_it(content, name):
    """Of a variable around it that it assigns, a function. One that may have started from a setting counts."""
    theirs = pack(MADE_IN_RUNS, name)
    one = theirs.pair(0.5)
    key = content.content_sha256(one)
    one[1](3.0)
    assert content.content_sha256(one) == key != content.content_sha256(theirs.pair(0.25))
    for make in (theirs.falling, theirs.scaled_after, theirs.filled, theirs.chosen):
        assert content.content_sha256(make(0.5)) != content.content_sha256(make(0.25))


def test_what_runs_count_around_functions_is_no_part_of_the_hosts_alone(content):
    """Of another pack's it may be a setting."""
    for name, is_same in (("comfy_extras.nodes_theirs", True), ("their_pack", False)):
        theirs = pack(MADE_IN_RUNS, name)
        counting = theirs.counting(0.5)
        key = content.content_sha256(counting)
        counting()
        assert (content.content_sha256(counting) == key) is is_same
        assert key != content.content_sha256(theirs.counting(0.25))


SET_UP = """
class Guidance:
    def __init__(self, **settings):
        self.scale = 1.0
        for name, value in settings.items():
            setattr(self, name, value)
    def __call__(self, x):
        self.scale = max(self.scale * 0.99, 1.0)

class Ramp:
    def __init__(self, strength):
        self.now = None
        self.set_strength(strength)
    def set_strength(self, strength):
        self.now = strength
    def __call__(self, x):
        self.set_strength(self.now * 0.9)

class Skip:
    left = 0
    def __call__(self, x):
        self.left -= 1

def guidance(value):
    return Guidance(scale=value)

def skip(value):
    made = Skip()
    made.left = value
    return made

def setter(value):
    now = 1.0
    def set_now(own):
        nonlocal now
        now = own
    def step(x):
        return x * now
    set_now(value)
    return step, set_now

def bank(value):
    captured = None
    def step(x):
        nonlocal captured
        if captured is None:
            captured = x
    step(value)
    return step
"""


@pytest.mark.parametrize("name", ["guidance", "Ramp", "skip", "setter", "bank"])
def test_what_another_packs_node_sets_up_counts(content, name):
    """Where runs assign it too."""
    make = getattr(pack(SET_UP), name)
    assert content.content_sha256(make(2.0)) == content.content_sha256(make(2.0)) != content.content_sha256(make(3.0))


def test_beside_functions_that_assign_variables_tensors_are_read_once(comfy_host, demo, content, monkeypatch):
    values, read = comfy_host.module("nodes.host.kept.values"), []
    bytes_of = values.tensor_bytes
    monkeypatch.setattr(values, "tensor_bytes", lambda tensor: read.append(id(tensor)) or bytes_of(tensor))
    weight = torch.full((4,), 0.1)
    model, other = demo[0].clone(), demo[0].clone()
    other.add_patches({"diffusion_model.out.2.bias": ("diff", (weight,))})
    other.set_model_sampler_cfg_function(pack(MADE_IN_RUNS).counting(0.5))
    model.set_model_sampler_cfg_function(lambda args: other)
    for own in (other, model):
        read.clear()
        content.model_sha256(own)
        assert read.count(id(weight)) == 1
