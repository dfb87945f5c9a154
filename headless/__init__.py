"""MACE without a page: the pack's nodes run from a command line, with ComfyUI as a library."""
