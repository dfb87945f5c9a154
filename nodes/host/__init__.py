"""All that knows ComfyUI: what the stages need of a host."""
