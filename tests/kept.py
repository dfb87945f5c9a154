"""What autograd keeps of a step for its backward pass."""

import torch

# Widths of SD's channels: a matrix as wide as high is no probability there.
CHANNELS = (320, 640, 1280)


def kept_bytes(run) -> tuple[int, int]:
    """(bytes that autograd keeps of a forward and backward pass, the same with self-attention in a fused kernel).

    Each storage counts once, and weights not at all, nor views of them: they are there anyway. A fused kernel, as
    devices have it, keeps no probabilities of pixels by pixels. On any device, the meta device too.
    """
    seen, totals = set(), [0, 0]

    def pack(tensor):
        # Linear layers keep their weight turned round, as a view of it.
        owner = tensor if tensor._base is None else tensor._base
        storage = tensor.untyped_storage()
        if not isinstance(owner, torch.nn.Parameter) and storage._cdata not in seen:
            seen.add(storage._cdata)
            totals[0] += storage.nbytes()
            square = tensor.dim() >= 3 and tensor.shape[-1] == tensor.shape[-2] >= 256
            if not square or tensor.shape[-1] in CHANNELS:
                totals[1] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return totals[0], totals[1]
