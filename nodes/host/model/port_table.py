"""What is known of families' text ports: patterns of the layers that read the same features, by the host's class."""

_ATTN2 = r"\.attn2\.to_[kv]$"
_UNET, _UNET_POOLED = (_ATTN2,), (_ATTN2, r"^label_emb\.0\.0$")
_FLUX = (r"^txt_in$", r"^vector_in\.in_layer$")
_TXT_IN = (r"^txt_in$",)
_SD3 = (r"^context_embedder$", r"^y_embedder\.mlp\.0$")
_CAPTION = (r"^cap_embedder\.1$", r"^clip_text_pooled_proj\.1$")
_WAN = (r"^text_embedding\.0$",)
_HUNYUAN = (r"^txt_in\.input_embedder$", r"^txt_in\.c_embedder\.in_layer$")

# Several patterns: what the first reads is another thing than what the second reads, and so is its T. A pattern that
# finds nothing is of a part that a variant lacks (NewBie's pooled text, for one).
KNOWN: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("SD15", "SD20"), _UNET),
    **dict.fromkeys(("SDXL", "SSD1B", "Segmind_Vega", "KOALA_700M", "KOALA_1B", "SDXLRefiner"), _UNET_POOLED),
    **dict.fromkeys(("Flux", "FluxSchnell", "FluxInpaint"), _FLUX),
    **dict.fromkeys(("Flux2", "LongCatImage", "Chroma", "ChromaRadiance", "QwenImage", "MageFlow", "Lens"), _TXT_IN),
    "SD3": _SD3,
    **dict.fromkeys(("Lumina2", "ZImage"), _CAPTION),
    **dict.fromkeys(("WAN21_T2V", "WAN22_T2V", "WAN21_I2V"), _WAN),
    **dict.fromkeys(("PixArtAlpha", "PixArtSigma"), (r"^y_embedder\.y_proj\.fc1$",)),
    "HunyuanVideo": (*_HUNYUAN, r"^vector_in\.in_layer$"),
    **dict.fromkeys(("HunyuanImage21", "HunyuanVideo15"), (*_HUNYUAN, r"^byt5_in\.fc1$")),
    "AuraFlow": (r"^cond_seq_linear$",),
    "CosmosT2IPredict2": (r"^blocks\.\d+\.cross_attn\.[kv]_proj$",),
    "CosmosT2V": (r"^blocks\.block\d+\.blocks\.1\.block\.attn\.to_[kv]\.0$",),
    "Anima": (r"^llm_adapter\.out_proj$",),
    "LTXV": (r"^caption_projection\.linear_1$",),
    "LTXAV": (r"^caption_projection\.linear_1$", r"^audio_caption_projection\.linear_1$"),
    **dict.fromkeys(
        ("Kandinsky5", "Kandinsky5Image"), (r"^text_embeddings\.in_layer$", r"^pooled_text_embeddings\.in_layer$")
    ),
    "Krea2": (r"^txtmlp\.1$",),
    "ErnieImage": (r"^text_proj$",),
    **dict.fromkeys(("Omnigen2", "Boogu"), (r"^time_caption_embed\.caption_embedder\.1$",)),
    "CogVideoX_T2V": (r"^patch_embed\.text_proj$",),
    "GenmoMochi": (r"^t5_yproj$", r"^t5_y_embedder\.to_kv$", r"^t5_y_embedder\.to_q$"),
    "JoyImage": (r"^condition_embedder\.text_embedder\.linear_1$",),
    "Ideogram4": (r"^llm_cond_proj$",),
    "PixelDiTT2I": (r"^y_embedder\.proj$",),
    "Stable_Cascade_C": (r"^clip_txt_mapper$", r"^clip_txt_pooled_mapper$"),
    "MiniMaxH3": (r"^condition_proj$",),
}
