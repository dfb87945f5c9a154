"""The published methods without training, each by the pack's own node in the host in this process.

host: an InProcessHost; model, clip: of a checkpoint it loaded; concepts: what MACE_Concepts gives. settings: the node's
inputs, where another value than the node's default is wanted.
"""


def uce(host, model, clip, concepts, **settings):
    """The MODEL after UCE. settings: preserve (lines), retention, erase_scale, preserve_scale, lamb, destination."""
    defaults = dict(preserve="", retention="none", erase_scale=1.0, preserve_scale=0.1, lamb=0.5)
    return host.run("MACE_BaselineUCE", model=model, clip=clip, concepts=concepts, **{**defaults, **settings})[0]


def sld(host, model, clip, concepts, preset="medium", **settings):
    """The MODEL guided by SLD. settings: text; with the preset custom scale, warmup, threshold, momentum, beta; and
    scale_warmup."""
    return host.run("MACE_BaselineSLD", model=model, clip=clip, concepts=concepts, preset=preset, **settings)[0]


def negative(host, clip, concepts, text=""):
    """The CONDITIONING to draw with as `Studio.draw`'s negative."""
    return host.run("MACE_BaselineNegative", clip=clip, concepts=concepts, text=text)[0]
