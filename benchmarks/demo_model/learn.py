"""Training that goes on where it stopped: of the text encoder, the autoencoder and the judge."""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

EVERY = 300


def learn(
    network: nn.Module,
    step_loss: Callable[[], tuple[Tensor, float]],
    state: Path,
    steps: int,
    rate: float,
    decay: float = 0.0,
    warm: int = 100,
) -> list[float]:
    """Train `network` to `steps` steps in all by AdamW, its rate rising for `warm` of them and falling by a cosine.

    step_loss: a batch's loss, and the figure that is told.  state: where the weights and the optimizer are written
    every EVERY seconds and at the end, and read where they are there.  Returns the losses of this call's steps.
    """
    optimizer = torch.optim.AdamW(network.parameters(), rate, weight_decay=decay)
    done = 0
    if state.exists():
        found = torch.load(state, weights_only=True)
        network.load_state_dict(found["network"])
        optimizer.load_state_dict(found["optimizer"])
        done = found["steps"]
    start, saved, losses = time.time(), time.time(), []
    while done < steps:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (done + 1) / warm) * max(0.5 * (1 + math.cos(math.pi * done / steps)), 0.01)
        loss, told = step_loss()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        done += 1
        losses.append(float(loss.detach()))
        if done % 50 == 0 or done == steps:
            print(f"{state.stem} {done}: loss {losses[-1]:.4f}, {told:.4f}; {time.time() - start:.0f} s", flush=True)
        if done == steps or time.time() - saved > EVERY:
            saved = time.time()
            found = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "steps": done}
            torch.save(found, state.with_suffix(".part"))
            os.replace(state.with_suffix(".part"), state)
    network.eval()
    return losses
