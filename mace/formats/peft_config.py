"""The scale of a LoRA's matrices as peft reads it out of its adapter_config."""

import re
import time
from collections.abc import Mapping
from math import isfinite, sqrt

# peft's own default where a config says nothing.
ALPHA = 8
# Seconds for all of a config's expressions together: some take for ever on a name they do not match.
PATIENCE = 2.0
LONGEST = 1000
# What init_lora_weights may say of a LoRA that is added to the model's own weights. PiSSA, OLoRA, CorDA and others
# change these when a LoRA begins, and the file holds the difference to the changed ones.
ADDED = ("gaussian", "eva", "orthogonal")


class PeftScales:
    """alpha / rank by module. config: adapter_config as a dict.

    Raises ValueError for a config that is not of a plain LoRA or holds other things than it should.
    """

    def __init__(self, config: Mapping):
        if config.get("peft_type", "LORA") != "LORA" or config.get("use_dora") or config.get("bias", "none") != "none":
            raise ValueError("the adapter_config is not of a plain LoRA (peft_type LORA, no DoRA, bias none)")
        begun = config.get("init_lora_weights")
        if isinstance(begun, str) and begun not in ADDED:
            raise ValueError(
                f"the adapter_config says init_lora_weights {begun:.40}, whose LoRA is added to weights that it "
                "changed first; save it as a plain LoRA, by peft's save_pretrained with "
                "path_initial_model_for_weight_conversion"
            )
        for name in ("rank_pattern", "alpha_pattern"):
            if not isinstance(config.get(name) or {}, Mapping):
                raise ValueError(f"adapter_config's {name} is no table of modules but {config[name]!r:.60}")
        self._config = config
        self._left = PATIENCE

    def of(self, module: str, rank: int) -> float:
        """The scale of a module (diffusers' name) whose factors have this rank. Raises ValueError."""
        stated = self._stated("rank_pattern", module, self._config.get("r", rank))
        if stated != rank:
            raise ValueError(f"adapter_config gives rank {stated!r:.60} for {module}, but the file has {rank}")
        alpha = self._stated("alpha_pattern", module, self._config.get("lora_alpha", ALPHA))
        try:
            alpha = float(alpha) if isinstance(alpha, int | float) and not isinstance(alpha, bool) else None
        except OverflowError:
            alpha = None
        if alpha is None or not isfinite(alpha):
            raise ValueError(f"adapter_config gives no number as alpha of {module}: {self._given(module)}")
        return alpha / (sqrt(rank) if self._config.get("use_rslora") else rank)

    def _given(self, module: str) -> str:
        return f"{self._stated('alpha_pattern', module, self._config.get('lora_alpha', ALPHA))!r:.60}"

    def _stated(self, name: str, module: str, default):
        """What a pattern says of a module: its keys are expressions for the end of a name, and the first that fits."""
        for expression, value in (self._config.get(name) or {}).items():
            if self._fits(str(expression), module):
                return value
        return default

    def _fits(self, expression: str, module: str) -> bool:
        # Almost all are plain names, in which a dot stands for any sign.
        if re.fullmatch(r"[\w.]*", expression):
            before, end = module[: -len(expression) or None], module[len(module) - len(expression) :]
            if len(expression) > len(module) or before and not before.endswith("."):
                return False
            return all(sign in (own, ".") for sign, own in zip(expression, end, strict=True))
        try:
            # Has a limit of time, which Python's own has not. It comes with transformers, which the host needs.
            import regex
        except ImportError:
            raise ValueError(f"adapter_config's {expression!r:.60} needs the package regex: install it") from None
        start = time.monotonic()
        try:
            if len(expression) > LONGEST or self._left <= 0:
                raise TimeoutError
            return regex.fullmatch(rf"(.*\.)?({expression})", module, timeout=self._left) is not None
        except TimeoutError:
            raise ValueError(
                f"adapter_config holds a pattern that takes too long to match, {expression:.60}: write the modules' "
                "names in its place"
            ) from None
        except (regex.error, RecursionError, OverflowError, MemoryError) as error:
            raise ValueError(f"adapter_config holds a broken pattern, {expression:.60}: {error}") from error
        finally:
            self._left -= time.monotonic() - start
