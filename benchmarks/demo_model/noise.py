"""How the small denoisers are shown noise, learn and draw: SD1.5's and SDXL's diffusion, SD3's flow."""

import torch
from torch import Tensor, nn


class Diffusion:
    """SD1.5's and SDXL's noise: eps is predicted, and x_t = sqrt(a) x0 + sqrt(1 - a) eps."""

    def __init__(self, network: nn.Module, device: torch.device):
        self.network, self.device = network, device
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        self.kept = (1 - betas).cumprod(0).float().to(device)

    def context(self, context: Tensor, pooled: Tensor | None) -> dict[str, Tensor]:
        """What the network reads of a text; pooled None for SD1.5's, which reads none."""
        if pooled is None:
            return {"context": context}
        sizes = torch.zeros(len(pooled), 2816 - pooled.shape[1], device=pooled.device)
        return {"context": context, "y": torch.cat([pooled, sizes], 1)}

    def loss(self, latents: Tensor, given: dict[str, Tensor], network=None) -> Tensor:
        """Min-SNR loss of a batch at random timesteps."""
        count = len(latents)
        flat, middle = torch.randint(0, 1000, (count,)), torch.randint(200, 900, (count,))
        t = torch.where(torch.rand(count) < 0.5, flat, middle).to(self.device)
        noise = torch.randn_like(latents)
        a = self.kept[t].view(-1, 1, 1, 1)
        found = (network or self.network)(a.sqrt() * latents + (1 - a).sqrt() * noise, t.float(), **given)
        snr = self.kept[t] / (1 - self.kept[t])
        return (snr.clamp(0.05, 5) / snr * (found.float() - noise).square().mean((1, 2, 3))).mean()

    @torch.no_grad()
    def sample(self, given: dict, empty: dict, seed: int, steps: int = 12, guidance: float = 4.0) -> Tensor:
        """Latents [B, 4, 8, 8] by DDIM."""
        count = len(given["context"])
        x = torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(seed)).to(self.device)
        both = {name: torch.cat([value, empty[name].expand_as(value)]) for name, value in given.items()}
        times = torch.linspace(999, 0, steps + 1)[:-1].long().tolist()
        for place, t in enumerate(times):
            with_text, without = self.network(
                torch.cat([x, x]), torch.full((2 * count,), float(t), device=self.device), **both
            ).chunk(2)
            noise = without + guidance * (with_text - without)
            a = self.kept[t]
            clean = ((x - (1 - a).sqrt() * noise) / a.sqrt()).clamp(-4, 4)
            after = self.kept[times[place + 1]] if place + 1 < steps else torch.ones((), device=self.device)
            x = after.sqrt() * clean + (1 - after).sqrt() * noise
        return clean


class Flow:
    """SD3's straight paths: x_s = (1 - s) x0 + s noise, and noise - x0 is predicted; four of 16 channels are alive."""

    def __init__(self, network: nn.Module, device: torch.device):
        self.network, self.device = network, device
        self.weights = torch.full((16,), 0.1, device=device)
        self.weights[:4] = 1

    def context(self, context: Tensor, pooled: Tensor) -> dict[str, Tensor]:
        """What the network reads of a text: CLIP-L in the widths that all three encoders fill."""
        wide = nn.functional.pad(context, (0, 4096 - context.shape[-1]))
        return {"context": wide, "y": nn.functional.pad(pooled, (0, 2048 - pooled.shape[-1]))}

    def loss(self, latents: Tensor, given: dict[str, Tensor], network=None) -> Tensor:
        """Squared error of a batch at random places of the path, more often where there is much noise (shift 3)."""
        s = torch.rand(len(latents), device=self.device)
        s = 3 * s / (1 + 2 * s)
        wide = nn.functional.pad(latents, (0, 0, 0, 0, 0, 12))
        noise = torch.randn_like(wide)
        shaped = s.view(-1, 1, 1, 1)
        found = (network or self.network)((1 - shaped) * wide + shaped * noise, s * 1000, **given)
        return ((found.float() - (noise - wide)).square().mean((0, 2, 3)) * self.weights).sum() / self.weights.sum()

    @torch.no_grad()
    def sample(self, given: dict, empty: dict, seed: int, steps: int = 12, guidance: float = 4.0) -> Tensor:
        """Latents [B, 4, 8, 8] by Euler's method."""
        count = len(given["context"])
        x = torch.randn(count, 16, 8, 8, generator=torch.Generator().manual_seed(seed)).to(self.device)
        both = {name: torch.cat([value, empty[name].expand_as(value)]) for name, value in given.items()}
        even = torch.linspace(1, 0, steps + 1)
        places = (3 * even / (1 + 2 * even)).tolist()
        for now, after in zip(places, places[1:], strict=False):
            time = torch.full((2 * count,), now * 1000, device=self.device)
            with_text, without = self.network(torch.cat([x, x]), time, **both).chunk(2)
            x = x + (after - now) * (without + guidance * (with_text - without))
        return x[:, :4]
