"""Published methods that need no training, for comparison with MACE: UCE, safe latent diffusion, negative prompts.

`uce` edits weights by a closed form, `sld` guides the sampling, `words` puts a list of concepts into one prompt.
"""
