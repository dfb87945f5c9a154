"""Find Aliases through the real server, as its example has it: the stag goes with the deer."""

import io

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor

from devtools.graph import to_prompt
from tests import graphs
from tests.judge import Judge

pytestmark = pytest.mark.server


@pytest.mark.long
def test_the_stag_goes_with_the_deer(server):
    prompt = to_prompt(graphs.workflow("aliases"), server.client.object_info())
    ids = {node["class_type"]: key for key, node in prompt.items() if node["class_type"].startswith("MACE_")}
    prompt[ids["MACE_ConceptImages"]]["inputs"].update(count=1)
    prompt[ids["MACE_FindAliases"]]["inputs"].update(words="stag, horse")
    for sampler in (node["inputs"] for node in prompt.values() if node["class_type"] == "KSampler"):
        sampler["steps"] = 6
    result = server.client.queue(prompt)
    said = result.outputs[ids["MACE_FindAliases"]]["text"][0]
    found, after = said.removeprefix("deer: ").split("; then ")
    assert found.startswith("stag ") and after.startswith("horse ")
    judge = Judge(graphs.REPO / "assets/demo/judge.safetensors")
    before, erased = (
        torch.stack([to_tensor(Image.open(io.BytesIO(server.client.fetch(entry))).convert("RGB")) for entry in shown])
        for node in ("15", "16")
        if (shown := result.outputs[node]["images"])
    )
    named = [[judge.names[place] for place in judge(pictures).argmax(-1)] for pictures in (before, erased)]
    assert named[0].count("deer") >= 5 and named[1].count("deer") == 0
