"""Text ports: the linear maps through which a model reads its prompt, found by running it.

A port is a linear map whose input depends on the prompt, not on the latent or the timestep, and is computed from no
other such map. Every closed form of the method has the shape W' = W T with W a map that reads the text, so that it
holds at any model's ports; what stands before them (norms, adapters, padding) is as the model has it, since features
are read at the port. Ports that read the same features share one T.

The first such maps need not be all there is: where the prompt also gets past them (through a residual, an embedding),
an edit of them does not reach it. So a set of ports has to be a complete cut: fed with what they read of prompt B, the
model gives for prompt A what it gives for B. Where the first maps are no cut, each independent stream of text (tokens,
pooled text, a second encoder) takes its first level of maps that is one.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# run(text, latent) -> output: the model's own forward for one of two prompts with the same number of rows (0, 1) and
# one of two latents at their timesteps (0, 1).
Run = Callable[[int, int], Tensor]
# By layer, what it was given in each of its calls.
Inputs = Mapping[str, list[Tensor]]

# Of what another prompt changes of the output: what may be left of it when the ports alone are fed.
CUT_TOLERANCE = 1e-3
# How much further than two equal runs lie apart (nothing on a CPU) inputs count as changed.
NOISE_FACTOR = 4


@dataclass(frozen=True)
class TextPorts:
    """groups: names of the layers, those that read the same features together, the earliest of each first.

    rows, widths: of the features that each group reads of the prompt it was found with; all calls of a layer counted.
    """

    groups: tuple[tuple[str, ...], ...]
    rows: tuple[int, ...]
    widths: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """All ports."""
        return tuple(name for group in self.groups for name in group)


class _AllRead(BaseException):
    """What was asked for has been read. No Exception: those are caught on the way."""


def linear_layers(network: nn.Module) -> dict[str, nn.Module]:
    """The linear layers of a network by name; also those of hosts that are no torch.nn.Linear (mixed precision)."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) or type(module).__name__ == "Linear" and hasattr(module, "in_features")
    }


def read_features(run: Callable[[], object], network: nn.Module, ports: TextPorts) -> list[list[Tensor]]:
    """What the first port of every group reads in a run, a tensor [..., d] a call. The run ends with the last of them.

    Raises ValueError where the run reaches one of them not at all.
    """
    names = [group[0] for group in ports.groups]
    seen, _ = _watched(linear_layers(network), run, see=names, until=names)
    silent = [name for name in names if name not in seen]
    if silent:
        raise ValueError(f"the model does not read this prompt through {silent[0]}")
    return [seen[name] for name in names]


def read_inputs(run: Callable[[], Tensor], network: nn.Module, names: Iterable[str]) -> tuple[Inputs, Tensor]:
    """(what layers are given in a run, by name, without those it does not reach; its output)."""
    return _watched(linear_layers(network), run, see=names)


def output_with(run: Callable[[], Tensor], network: nn.Module, feed: Inputs) -> Tensor:
    """The output of a run in which layers are given `feed` in place of their own inputs, a tensor a call."""
    return _watched(linear_layers(network), run, see=(), feed=feed)[1]


def find_ports(run: Run, network: nn.Module) -> TextPorts | None:
    """The text ports of a model, or None where it has none that an edit can be made at.

    network: the module whose layers are meant. The two prompts must differ in all that the model reads of a prompt.
    """
    finder = _Finder(run, linear_layers(network))
    if not finder.readers:
        return None
    first = finder.heads(finder.readers)
    if finder.can_be_mapped(first) and finder.is_cut(first):
        return finder.grouped(first)
    levels, rest = [first], [name for name in finder.readers if name not in first]
    while rest:
        levels.append(finder.heads(rest))
        rest = [name for name in rest if name not in levels[-1]]
    ports: list[str] = []
    for stream in finder.streams(first):
        elsewhere = [name for name in finder.readers if name not in stream]
        parts = ([name for name in level if name in stream] for level in levels)
        cuts = [part for part in parts if part and finder.is_cut(part + elsewhere)]
        if not cuts:
            return None
        ports += next(filter(finder.can_be_mapped, cuts), cuts[0])
    return finder.grouped(ports) if finder.is_cut(ports) else None


class _Finder:
    """Runs a model with its prompts and latents, and tells what the layers' inputs depend on.

    readers: the layers that depend on the prompt alone, in the order in which they are reached.
    """

    def __init__(self, run: Run, layers: Mapping[str, nn.Module]):
        self._run, self._layers = run, layers
        self._base, self._output = self._look(0, 0, layers)
        again, _ = self._look(0, 0, layers)
        self._noise = {name: _apart(calls, again[name]) for name, calls in self._base.items()}
        moved, _ = self._look(0, 1, layers)
        self._other, self._other_output = self._look(1, 0, layers)
        # In the order of their first calls.
        self.readers = [
            name
            for name in self._base
            if not self._changed(name, moved) and name in self._other and self._changed(name, self._other)
        ]

    def heads(self, names: Sequence[str]) -> list[str]:
        """Those of `names` that are computed from no other of them."""
        reached = self._reached(names)
        found = [name for name in names if name not in reached]
        if not found:
            raise RuntimeError("every text layer of this model is computed from another one")
        return found

    def streams(self, first: Sequence[str]) -> list[set[str]]:
        """The readers in independent parts: what is computed from each group of the first ones."""
        found: list[set[str]] = []
        for group in self.grouped(first).groups:
            part = self._reached(group) | set(group)
            for other in [other for other in found if other & part]:
                found.remove(other)
                part |= other
            found.append(part)
        return found

    def is_cut(self, names: Iterable[str]) -> bool:
        """Whether prompt A, with these layers fed what they read of prompt B, gives the output of prompt B."""
        _, output = self._look(0, 0, (), feed={name: self._other[name] for name in names})
        between = (self._output - self._other_output).abs().max()
        return bool((output - self._other_output).abs().max() <= CUT_TOLERANCE * between)

    def can_be_mapped(self, names: Iterable[str]) -> bool:
        """Whether features at these layers have no more rows than dimensions: else no T takes all of them to others."""
        return all(_rows(call) <= call.shape[-1] for name in names for call in self._base[name])

    def grouped(self, names: Iterable[str]) -> TextPorts:
        """The layers by what they read."""
        groups: list[list[str]] = []
        for name in names:
            like = (group for group in groups if not self._differ(self._base[group[0]], self._base[name], name))
            group = next(like, None)
            groups.append([name]) if group is None else group.append(name)
        calls = [self._base[group[0]] for group in groups]
        return TextPorts(
            tuple(map(tuple, groups)),
            tuple(sum(map(_rows, own)) for own in calls),
            tuple(own[0].shape[-1] for own in calls),
        )

    def _reached(self, shaken: Collection[str]) -> set[str]:
        """The readers whose inputs move when the outputs of some are shaken."""
        seen, _ = self._look(0, 0, self.readers, shaken=shaken, until=self.readers)
        return {name for name in self.readers if self._changed(name, seen)}

    def _changed(self, name: str, seen: Inputs) -> bool:
        return self._differ(self._base[name], seen.get(name, []), name)

    def _differ(self, one: list[Tensor], two: list[Tensor], name: str) -> bool:
        return not _apart(one, two) <= NOISE_FACTOR * self._noise[name]

    def _look(self, text: int, latent: int, see: Iterable[str], **how) -> tuple[Inputs, Tensor | None]:
        return _watched(self._layers, lambda: self._run(text, latent), see, **how)


def _watched(
    layers: Mapping[str, nn.Module],
    run: Callable[[], Tensor],
    see: Iterable[str],
    feed: Inputs | None = None,
    shaken: Collection[str] = (),
    until: Collection[str] = (),
) -> tuple[Inputs, Tensor | None]:
    """(the inputs of the layers in `see`, the output) of a run.

    feed: inputs that layers are given in place of their own, a tensor a call.  shaken: layers whose outputs get noise
    of their own size.  until: the run ends, with None for its output, once all of these were reached.
    """
    seen: dict[str, list[Tensor]] = defaultdict(list)
    calls: dict[str, int] = defaultdict(int)
    left, feed = set(until), feed or {}
    noise = torch.Generator().manual_seed(0)

    def before(name: str):
        def hook(module, args, options):
            given = args[0] if args else next(iter(options.values()))
            number, calls[name] = calls[name], calls[name] + 1
            if name in watched:
                seen[name].append(given.detach().clone())
            if name in left:
                left.remove(name)
                if not left:
                    raise _AllRead
            if name in feed:
                other = feed[name][number].to(given)
                return ((other, *args[1:]), options) if args else (args, {**options, next(iter(options)): other})

        return hook

    def after(module, args, output):
        size = output.float().std(unbiased=False) + 1e-3
        return output + (torch.randn(output.shape, generator=noise).to(output.device) * size).to(output.dtype)

    watched = set(see)
    handles = [
        layers[name].register_forward_pre_hook(before(name), with_kwargs=True) for name in watched | set(feed) | left
    ]
    handles += [layers[name].register_forward_hook(after) for name in shaken]
    try:
        output = run()
    except _AllRead:
        output = None
    finally:
        for handle in handles:
            handle.remove()
    return seen, output


def _apart(one: list[Tensor], two: list[Tensor]) -> float:
    """The largest difference of inputs, infinite where they are of other shapes or numbers."""
    if [call.shape for call in one] != [call.shape for call in two]:
        return float("inf")
    gaps = [(a.float() - b.float()).abs().max() for a, b in zip(one, two, strict=True) if a.numel()]
    return float(torch.stack(gaps).max()) if gaps else 0.0


def _rows(call: Tensor) -> int:
    return call.numel() // call.shape[-1]
