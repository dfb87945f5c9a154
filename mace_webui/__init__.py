"""The tab of A1111, Forge and their kin. It runs in the web UI's Python and imports nothing of MACE: what erases is a
process of its own, the headless command in an environment of its own."""
