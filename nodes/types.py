"""The pack's own socket types."""

from comfy_api.latest import io

# tuple[mace.concept.Concept, ...]
ConceptsType = io.Custom("MACE_CONCEPTS")
# mace.prior.Prior
PriorType = io.Custom("MACE_PRIOR")
# mace.refine.Refinement
RefinementType = io.Custom("MACE_REFINEMENT")
# tuple[mace.images.ConceptImages, ...]
ImagesType = io.Custom("MACE_IMAGES")
# mace.lora_set.LoraSet
LorasType = io.Custom("MACE_LORAS")

CATEGORY = "MACE"
# Published methods without training, for comparison.
BASELINES = f"{CATEGORY}/baselines"
