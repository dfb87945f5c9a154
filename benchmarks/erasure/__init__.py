"""Erasing measured as the paper does it, on the demo model in the real host: `python -m benchmarks.erasure`.

bench: the host, the demo model, and the stages of an erasure.  methods: MACE's stages and the baselines.  questions:
what is asked of a model, and the judge's answers.  tasks, studies: the experiments.  records: their results, one JSON
line a cell.  report, text: docs/results.md of what is recorded.  statistics: means, intervals, harmonic means.
"""
