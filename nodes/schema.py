"""The pack's own socket types."""

from comfy_api.latest import io

# tuple[mace.concepts.concept.Concept, ...]
ConceptsType = io.Custom("MACE_CONCEPTS")
# mace.method.prior.Prior
PriorType = io.Custom("MACE_PRIOR")
# mace.method.refine.Refinement
RefinementType = io.Custom("MACE_REFINEMENT")
# tuple[mace.concepts.images.ConceptImages, ...]
ImagesType = io.Custom("MACE_IMAGES")
# mace.formats.lora_set.LoraSet
LorasType = io.Custom("MACE_LORAS")

CATEGORY = "MACE"
# Published methods without training, for comparison.
BASELINES = f"{CATEGORY}/baselines"
