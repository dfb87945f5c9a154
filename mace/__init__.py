"""MACE: Mass Concept Erasure in Diffusion Models (Lu et al., CVPR 2024), as numerics free of any host.

The modules read like the paper: `concept` and `templates` give the prompts, `tokens` pairs their tokens,
`moments` sums what the closed forms need, `prior` holds what is to be kept, `refine` solves Eq. 2 and 19.
Everything takes tensors and callables and returns tensors; no module here knows ComfyUI.
"""

__version__ = "0.1.0"
