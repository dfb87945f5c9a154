"""What the tests of ports know of each family's text: the layers, and which token each row reads."""

from collections import Counter

SD3_SIZES = dict(
    context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 128}},
    num_patches=256,
    pos_embed_max_size=16,
)
# The family of the model that each CLIP is for, where it has another name or other sizes.
MODELS = {
    "sd3": ("sd3", SD3_SIZES),
    "sd3_clips": ("sd3", SD3_SIZES),
    "pixeldit": ("pixeldit", dict(txt_max_length=300)),
    "newbie": ("newbie", dict(clip_text_dim=24)),
    "cogvideox": ("cogvideox", dict(max_text_seq_length=226)),
    "mochi": ("mochi", dict(t5_token_length=256)),
    "ideogram4": ("ideogram4", dict(llm_features_dim=78)),
    # As wide as T5 has rows, and the mean: else their pooler's ports are another layer.
    "hydit": ("hydit12", dict(text_len=77, text_len_t5=256, text_states_dim_t5=264)),
    "ace": ("ace", dict(lyric_encoder_vocab_size=6693)),
}
# By CLIP: the layers edited, those of the pooled text, and those of each further text.
EDITED = {
    "flux": (["txt_in"], ["vector_in.in_layer"]),
    "chroma": (["txt_in"], []),
    "sd3": (["context_embedder"], ["y_embedder.mlp.0"]),
    "sd3_clips": (["context_embedder"], ["y_embedder.mlp.0"]),
    "qwen": (["txt_in"], []),
    "zimage": (["cap_embedder.1"], []),
    "flux2_klein": (["txt_in"], []),
    # The second reads the mean of what the first reads.
    "hunyuan_video": (["txt_in.input_embedder", "txt_in.c_embedder.in_layer"], ["vector_in.in_layer"]),
    "anima": (["llm_adapter.out_proj"], []),
    "flux2": (["txt_in"], []),
    "ernie": (["text_proj"], []),
    "lumina2": (["cap_embedder.1"], []),
    "newbie": (["cap_embedder.1"], ["clip_text_pooled_proj.1"]),
    "pixeldit": (["y_embedder.proj"], []),
    "wan21": (["text_embedding.0"], []),
    "aura": (["cond_seq_linear"], []),
    "cosmos1": ([f"blocks.block{n}.blocks.1.block.attn.to_{side}.0" for n in (0, 1) for side in "kv"], []),
    "ltxv": (["caption_projection.linear_1"], []),
    "cogvideox": (["patch_embed.text_proj"], []),
    "cascade_c": (["clip_txt_mapper"], ["clip_txt_pooled_mapper"]),
    "kandinsky5_image": (["text_embeddings.in_layer"], ["pooled_text_embeddings.in_layer"]),
    "kandinsky5_video": (["text_embeddings.in_layer"], ["pooled_text_embeddings.in_layer"]),
    "krea2": (["txtmlp.1"], []),
    "omnigen2": (["time_caption_embed.caption_embedder.1"], []),
    "boogu": (["time_caption_embed.caption_embedder.1"], []),
    "joyimage": (["condition_embedder.text_embedder.linear_1"], []),
    "mage_flow": (["txt_in"], []),
    "longcat": (["txt_in"], []),
    "ovis": (["txt_in"], []),
    "ideogram4": (["llm_cond_proj"], []),
    # The last two read the tokens once more, and their mean.
    "mochi": (["t5_yproj", "t5_y_embedder.to_kv", "t5_y_embedder.to_q"], []),
    "lens": (["txt_in"], []),
    "hunyuan_image21": (["txt_in.input_embedder", "txt_in.c_embedder.in_layer"], []),
    "hunyuan_video15": (["txt_in.input_embedder", "txt_in.c_embedder.in_layer"], []),
    # A Llama layer for each block, and T5 for all.
    "hidream": (
        ["caption_projection.0.linear"],
        ["p_embedder.pooled_embedder.linear_1"],
        ["caption_projection.1.linear"],
        ["caption_projection.2.linear"],
    ),
    # Two encoders one behind the other, and the second once more with its mean in front.
    "hydit": (
        [f"blocks.{n}.attn2.kv_proj" for n in range(4)],
        ["pooler.q_proj"],
        ["pooler.k_proj", "pooler.v_proj"],
    ),
    "ace": (["genre_embedder"], []),
}
# Layers that read quoted text alone, which are left.
LEFT = dict.fromkeys(("hunyuan_image21", "hunyuan_video15"), ("byt5_in.fc1",))
# Rows begin behind "<|im_start|>user\n" of the template.
BEHIND_USER = (
    "qwen",
    "kandinsky5_image",
    "kandinsky5_video",
    "krea2",
    "mage_flow",
    "hunyuan_image21",
    "hunyuan_video15",
)
# Of which section the rows are, where a CLIP has several.
READ = {"flux": "t5xxl", "anima": "t5xxl", "newbie": "gemma", "hunyuan_video": "llama", "ace": "umt5base"}
# The padding whose rows a model does not hear.
UNHEARD = {"ltxv": 0, "mochi": 0}


def row_tokens(name: str, clip, prompt: str, count: int, place: int = 0) -> list:
    """The token that each of the port's rows reads, by what the host's text encoders do with tokens; None for rows that
    a model puts in front. place: of the text, where a model reads several."""
    sections = {key: [entry[0] for entry in parts[0]] for key, parts in clip.tokenize(prompt).items()}
    if name == "hidream":
        return sections["llama" if place < 2 else "t5xxl"]
    if name == "hydit":
        return [None, *sections["mt5xl"]] if place else sections["hydit_clip"] + sections["mt5xl"]
    if name.startswith("sd3"):
        return sections["l"] + (sections["t5xxl"] if name == "sd3" else [])
    tokens = sections[READ.get(name, next(iter(sections)))]
    if name in BEHIND_USER:
        user = [place for place, token in enumerate(tokens) if token == 151644][1]
        return tokens[user + 3 :]
    if name == "longcat":
        # The end of the template is cut off too.
        user, end = [place for place, token in enumerate(tokens) if token == 151644][1:]
        return tokens[user + 3 : end - 2]
    if name == "ovis":
        # From the colon on; what is put behind has the padding's token.
        return tokens[tokens.index(4004) + 1 :][:count]
    if name == "joyimage":
        return tokens[34:]
    if name == "lens":
        return tokens[len(tokens) - count :]
    if name == "pixeldit":
        return tokens[:1] + tokens[-299:]
    if name != "hunyuan_video":
        return [None] * (count - len(tokens)) + tokens
    user = next(place for place in range(len(tokens)) if tokens[place : place + 3] == [128006, 882, 128007])
    # Behind the header and, where it is one token, its empty line; up to the end of the turn.
    begin = user + 2 + 2 * (tokens[user + 3] == 271)
    return tokens[begin : tokens.index(128009, user) + 1]


def words_of(name: str, clip, phrase: str) -> set:
    """Tokens that a phrase may be made of, alone or behind a space, without those of the template."""
    found = set()
    for text in (phrase, " " + phrase):
        for key, parts in clip.tokenize(text).items():
            # What two other texts have alike: a space that is a token of its own may be the phrase's.
            first, second = (Counter(entry[0] for entry in clip.tokenize(other)[key][0]) for other in ("0", "the"))
            found |= set(Counter(entry[0] for entry in parts[0]) - (first & second))
    return found
