"""Finding text ports (mace.method.ports): on small networks whose answer is known, without a host."""

import pytest
import torch
from torch import nn

from mace.method.ports import find_ports, read_features

D = 8


class Reads(nn.Module):
    """What all these networks have: a latent, a prompt of three tokens, an attention of one to the other."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.latent = nn.Linear(D, D)
        self.out = nn.Linear(D, D)

    def attend(self, x, keys, values):
        return torch.softmax(x @ keys.mT, -1) @ values

    def runs(self):
        generator = torch.Generator().manual_seed(3)
        texts, latents = (torch.randn(2, size, D, generator=generator) for size in (3, 5))
        return lambda text, latent: self(texts[text], latents[latent]).detach()


class CrossAttention(Reads):
    def __init__(self):
        super().__init__()
        self.k1, self.v1, self.k2, self.v2 = (nn.Linear(D, D, bias=False) for _ in range(4))

    def forward(self, text, latent):
        x = self.latent(latent)
        x = x + self.attend(x, self.k1(text), self.v1(text))
        return self.out(x + self.attend(x, self.k2(text), self.v2(text)))


class Embedded(Reads):
    """One map in front of all, and a pooled vector besides."""

    def __init__(self):
        super().__init__()
        self.text_in, self.keys, self.values, self.pooled_in = (nn.Linear(D, D) for _ in range(4))

    def forward(self, text, latent):
        tokens = torch.tanh(self.text_in(nn.functional.layer_norm(text, (D,))))
        x = self.latent(latent) + self.pooled_in(text.mean(0))
        return self.out(x + self.attend(x, self.keys(tokens), self.values(tokens)))


class PastTheFirst(Embedded):
    """A residual round the first maps: they are no cut, the second level is."""

    def forward(self, text, latent):
        tokens = text + torch.tanh(self.text_in(text))
        x = self.latent(latent)
        return self.out(x + self.attend(x, self.keys(tokens), self.values(tokens)))


class Mixed(Embedded):
    """The first map reads the latent too, by a bias of it: only what comes before counts, and there is nothing."""

    def forward(self, text, latent):
        joint = torch.cat([text, latent])
        return self.out(self.attend(self.latent(joint), self.keys(joint), self.values(joint)))


class Narrow(Embedded):
    """A map over the tokens' places, with more rows than dimensions, then one over their features."""

    def __init__(self):
        super().__init__()
        self.places = nn.Linear(3, 3)

    def forward(self, text, latent):
        tokens = torch.tanh(self.places(text.mT)).mT
        x = self.latent(latent)
        return self.out(x + self.attend(x, self.keys(tokens), self.values(tokens)))


def found_in(network):
    ports = find_ports(network.runs(), network)
    return None if ports is None else set(map(frozenset, ports.groups))


def test_first_maps_that_read_the_same_are_one_group():
    assert found_in(CrossAttention()) == {frozenset({"k1", "v1", "k2", "v2"})}


def test_streams_have_groups_of_their_own():
    assert found_in(Embedded()) == {frozenset({"text_in"}), frozenset({"pooled_in"})}


def test_a_residual_past_the_first_maps_moves_the_ports_behind_it():
    assert found_in(PastTheFirst()) == {frozenset({"keys", "values"})}


def test_a_map_with_more_rows_than_dimensions_is_passed_over():
    assert found_in(Narrow()) == {frozenset({"keys", "values"})}


def test_where_text_and_latent_share_every_map_there_is_none():
    assert found_in(Mixed()) is None


def test_reading_ends_with_the_last_port():
    network = Embedded()
    ports, ran = find_ports(network.runs(), network), []
    network.out.register_forward_hook(lambda *_: ran.append(1))
    runs = network.runs()
    features = read_features(lambda: runs(1, 0), network, ports)
    assert not ran and [len(calls) for calls in features] == [1, 1]
    assert [calls[0].shape for calls in features] == [
        torch.Size([3, D]) if group == ("text_in",) else torch.Size([D]) for group in ports.groups
    ]
    assert not network.text_in._forward_pre_hooks


def test_nothing_of_the_network_or_of_chance_is_changed():
    network = PastTheFirst()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    runs = network.runs()
    find_ports(runs, network)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_a_port_that_is_not_reached_is_named():
    network = Embedded()
    ports = find_ports(network.runs(), network)
    with pytest.raises(ValueError, match="does not read this prompt through"):
        read_features(lambda: network.latent(torch.zeros(1, D)), network, ports)
