"""Folders of small models with random weights, in the true layouts of transformers' own architectures."""

import torch
import transformers

WORDS = ("cat", "dog", "red", "car", "old", "man", "with", "a", "hat", "##s")
# Grounding DINO knows these of BERT's tokens by their place.
PLACES = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}
QUERIES, SIDE = 20, 128
MEAN_STD = dict(image_mean=[0.5] * 3, image_std=[0.25] * 3)


def randomised(make, config, seed=0):
    """A model, always the same, with weights that make all of it matter: several kinds start at nothing."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = make(config)
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "position" not in name:
                weight.copy_(torch.randn(weight.shape) * weight[0].numel() ** -0.5)
    return model.eval()


def tokenizer(folder):
    names = [PLACES.get(place, f"[unused{place}]") for place in range(1030)] + list(WORDS)
    (folder / "vocab.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    return transformers.BertTokenizerFast.from_pretrained(folder, local_files_only=True, do_lower_case=True)


def make_dino(folder, kind="GroundingDino"):
    swin = dict(embed_dim=16, depths=[1, 1, 2, 1], num_heads=[1, 2, 4, 8], window_size=4)
    backbone = transformers.SwinConfig(out_features=["stage2", "stage3", "stage4"], drop_path_rate=0.0, **swin)
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    text = transformers.BertConfig(vocab_size=1030 + len(WORDS), **sizes)
    layers = dict(encoder_layers=2, decoder_layers=2, encoder_ffn_dim=64, decoder_ffn_dim=64)
    config = getattr(transformers, f"{kind}Config")(
        backbone_config=backbone, text_config=text, d_model=64, num_queries=QUERIES, **layers
    )
    model = randomised(getattr(transformers, f"{kind}ForObjectDetection"), config)
    model.save_pretrained(folder)
    images = transformers.GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 128})
    transformers.GroundingDinoProcessor(images, tokenizer(folder)).save_pretrained(folder)


def small_heads(family):
    prompt = getattr(transformers, f"{family}PromptEncoderConfig")(hidden_size=32, image_size=SIDE, patch_size=16)
    decoder = getattr(transformers, f"{family}MaskDecoderConfig")(
        hidden_size=32, mlp_dim=64, num_attention_heads=4, iou_head_hidden_dim=32
    )
    return dict(prompt_encoder_config=prompt, mask_decoder_config=decoder)


def make_sam(folder):
    vision = transformers.SamVisionConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE, patch_size=16, window_size=4,
        global_attn_indexes=[1], output_channels=32, num_pos_feats=16, initializer_range=0.02,
    )  # fmt: skip
    config = transformers.SamConfig(vision_config=vision, **small_heads("Sam"))
    randomised(transformers.SamModel, config).save_pretrained(folder)
    square = {"height": SIDE, "width": SIDE}
    images = transformers.SamImageProcessor(size={"longest_edge": SIDE}, pad_size=square, **MEAN_STD)
    transformers.SamProcessor(images).save_pretrained(folder)


def make_sam2(folder, family="Sam2"):
    stages = dict(blocks_per_stage=[1, 1, 2, 1], embed_dim_per_stage=[16, 32, 64, 128])
    stages |= dict(num_attention_heads_per_stage=[1, 2, 4, 8], window_size_per_stage=[8, 4, 4, 4])
    hiera = transformers.Sam2HieraDetConfig(
        hidden_size=16, image_size=[SIDE, SIDE], global_attention_blocks=[3], **stages
    )
    vision = transformers.Sam2VisionConfig(
        backbone_config=hiera, backbone_channel_list=[128, 64, 32, 16], fpn_hidden_size=32,
        backbone_feature_sizes=[[SIDE // 4] * 2, [SIDE // 8] * 2, [SIDE // 16] * 2],
    )  # fmt: skip
    memory = dict(memory_attention_hidden_size=32, memory_attention_num_layers=1, memory_encoder_hidden_size=32)
    memory |= dict(memory_attention_feed_forward_hidden_size=64, memory_encoder_output_channels=16, image_size=SIDE)
    memory |= dict(mask_downsampler_embed_dim=32, memory_fuser_embed_dim=32, memory_fuser_intermediate_dim=64)
    memory |= dict(memory_attention_rope_feat_sizes=[SIDE // 16] * 2)
    more = {} if family == "Sam2" else memory
    config = getattr(transformers, f"{family}Config")(vision_config=vision, **small_heads(family), **more)
    randomised(getattr(transformers, f"{family}Model"), config).save_pretrained(folder)
    images = transformers.Sam2ImageProcessor(size={"height": SIDE, "width": SIDE}, **MEAN_STD)
    if family == "Sam2":
        transformers.Sam2Processor(images).save_pretrained(folder)
    else:
        transformers.Sam2VideoProcessor(images, transformers.Sam2VideoVideoProcessor()).save_pretrained(folder)


MAKERS = {
    "grounding-dino": make_dino,
    "mm-grounding-dino": lambda folder: make_dino(folder, "MMGroundingDino"),
    "sam": make_sam,
    "sam2": make_sam2,
    "sam2_video": lambda folder: make_sam2(folder, "Sam2Video"),
}
DETECTORS, SEGMENTERS = list(MAKERS)[:2], list(MAKERS)[2:]
# Of a picture of 67x50.
BOXES = [[5.0, 5.0, 30.0, 40.0], [1.0, 1.0, 66.0, 49.0], [40.0, 10.0, 60.0, 20.0]]


def noise(count, height=50, width=67, channels=3):
    return torch.rand(count, height, width, channels, generator=torch.Generator().manual_seed(count))


def same(found, expected):
    return found.labels == expected.labels and all(
        torch.allclose(getattr(found, name), getattr(expected, name), rtol=1e-3, atol=1e-3)
        for name in ("boxes", "scores")
    )


def make_folders(tmp_path_factory):
    """A folder of each kind of model, by kind."""
    made = {}
    for kind, make in MAKERS.items():
        made[kind] = tmp_path_factory.mktemp(kind)
        make(made[kind])
    return made


def load_models(module, folders):
    """The models of such folders, read by nodes.host.detectors.transformers_models, by kind."""
    return {
        kind: (module.load_detector if kind in DETECTORS else module.load_segmenter)(folder)
        for kind, folder in folders.items()
    }
