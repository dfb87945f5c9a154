import os, sys, time, traceback
import pytest, torch
pytestmark = pytest.mark.host
from tests.families import build
from tests.text_encoders import CLIPS, build_clip
from tests.test_port_text import MODELS, TEMPLATES
from mace.method.tokens import fill

def test_probe(comfy_host):
    for name in os.environ["NAMES"].split():
        t=time.time()
        try:
            fam,sizes=MODELS.get(name,(name,{}))
            with pytest.MonkeyPatch.context() as patched, torch.inference_mode():
                model=build(fam,patched,**sizes); clip=build_clip(name)
                text=comfy_host.module("nodes.host.port_text").PortText(model,clip)
                print(name, round(time.time()-t,1),"s", text.layout.tokens, text.layout.pooled, text.layout.left, text._blocks, "masked",text.layout.masked)
                for tp in TEMPLATES:
                    for a,b in (("hot dog","cat"),("dog","large green tree")):
                        try:
                            f,g=(x.rows for x in text.features((fill(tp,a),fill(tp,b))))
                            pr=text.pair(tp,a,b,f,g)
                            print("   ", len(f.values), int(f.counted.sum()), len(pr.target), pr.phrase, pr.own)
                        except Exception as e: print("    !!", type(e).__name__, str(e)[:200])
        except Exception as e:
            print(name,"!!!",type(e).__name__,str(e)[:400]); traceback.print_exc(limit=-3)
        sys.stdout.flush()
