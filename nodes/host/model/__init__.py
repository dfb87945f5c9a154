"""The host's diffusion model: its weights, its forward pass, its memory."""
