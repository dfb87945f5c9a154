"""The tab Erase concepts, in Gradio: 3.41 of A1111, 4.40 of Forge, and later ones."""

import time

import gradio as gr

from .choices import PAPER, TYPES, WebUI, arguments_of, bar, compared, ended, presets, side_of
from .job import Job

# Seconds between two looks at the process.
EVERY = 0.5
HELP = """One concept a line: `dog`, `airplane -> sky`, `cat | kitty, feline -> forest`. The erased checkpoint
lands beside your checkpoints, the LoRA beside your LoRAs. The first run makes an environment of its own (3 GB to
download, 7 GB on the disk), unless Settings > Erase concepts names a ComfyUI. Unload the web UI's checkpoint first
where GPU memory is short."""


def build(webui: WebUI, job: Job) -> gr.Blocks:
    """The tab as Blocks of its own, which the web UI puts among its tabs."""
    with gr.Blocks(analytics_enabled=False) as blocks:
        gr.Markdown(HELP)
        with gr.Row():
            with gr.Column():
                with gr.Row():
                    names = webui.checkpoints()
                    checkpoint = gr.Dropdown(
                        names, value=names[0] if names else None, label="Checkpoint", elem_id="mace_checkpoint"
                    )
                    again = gr.Button("Refresh", scale=0, min_width=100, elem_id="mace_refresh")
                concepts = gr.Textbox(
                    label="What is to go, one a line", lines=6, elem_id="mace_concepts",
                    placeholder="dog\nairplane -> sky\ncat | kitty, feline -> forest",
                )  # fmt: skip
                kind = gr.Radio(list(TYPES), value=TYPES[0], label="What it is", elem_id="mace_type")
                strong = gr.Slider(-1, 1, value=0, step=0.05, label="gentle - strong", elem_id="mace_strong")
                aliases = gr.Checkbox(False, label="Other words that draw the same go too", elem_id="mace_aliases")
                with gr.Accordion("More", open=False, elem_id="mace_more"):
                    preset = gr.Dropdown(presets(), value=PAPER, label="Preset", elem_id="mace_preset")
                    strengths = gr.Textbox(
                        label="Strengths", lines=2, placeholder="dog = 0.5", elem_id="mace_strengths"
                    )
                    side = gr.Number(0, label="Side of the training images, 0: the model's own", elem_id="mace_side")
                    seed = gr.Number(0, label="Seed", elem_id="mace_seed")
                    name = gr.Textbox(label="Name of the result", placeholder="..._erased", elem_id="mace_name")
                    lora = gr.Checkbox(True, label="Write the change as a LoRA too", elem_id="mace_lora")
                    rank = gr.Slider(1, 128, value=16, step=1, label="Its rank", elem_id="mace_rank")
            with gr.Column():
                with gr.Row():
                    go = gr.Button("Erase", variant="primary", elem_id="mace_go")
                    cancel = gr.Button("Cancel", elem_id="mace_cancel")
                    follow = gr.Button("Show progress", elem_id="mace_follow")
                progress = gr.HTML("", elem_id="mace_bar")
                status = gr.Markdown("", elem_id="mace_status")
                log = gr.Textbox(label="Log", lines=16, max_lines=16, interactive=False, elem_id="mace_log")
                with gr.Row():
                    prompt = gr.Textbox(label="A prompt to see before and after", elem_id="mace_prompt")
                    shown_side = gr.Number(0, label="Side in pixels, 0: the model's own", elem_id="mace_shown_side")
                    shown_seed = gr.Number(0, label="Seed", elem_id="mace_shown_seed")
                compare = gr.Button("Before and after", elem_id="mace_compare")
                said = gr.Markdown("", elem_id="mace_said")
                with gr.Row():
                    before = gr.Image(label="before", interactive=False, type="pil", elem_id="mace_before")
                    after = gr.Image(label="after", interactive=False, type="pil", elem_id="mace_after")
        outputs = [progress, status, log, checkpoint]

        def seen():
            state = job.state
            return bar(state), ended(state), "\n".join(state.lines), gr.update()

        def followed():
            while job.state.running:
                yield seen()
                time.sleep(EVERY)
            if job.state.report is not None:
                webui.refresh()
            yield (*seen()[:3], gr.update(choices=webui.checkpoints()))

        def erase(checkpoint, concepts, kind, strong, aliases, preset, strengths, side, seed, name, lora, rank):
            chosen = {
                "checkpoint": checkpoint, "type": kind, "preset": preset, "gentle_strong": strong, "aliases": aliases,
                "strengths": strengths or "", "side": side or 0, "seed": seed or 0, "name": name or "", "lora": lora,
                "rank": rank,
            }  # fmt: skip
            try:
                job.start(arguments_of(webui, chosen), concepts or "", webui.comfyui())
            except (ValueError, RuntimeError, OSError) as error:
                yield bar(job.state), f"**{error}**", "\n".join(job.state.lines), gr.update()
                return
            yield from followed()

        def listed():
            webui.refresh()
            return gr.update(choices=webui.checkpoints())

        def drawn(prompt, side, seed):
            try:
                if job.state.running:
                    raise ValueError("an erasure is running: wait for it")
                webui.refresh()
                names = compared(webui, job.state.report)
            except ValueError as error:
                yield f"**{error}**", None, None
                return
            pictures, side = [None, None], side_of(job.state.report, side)
            for place, name in enumerate(names):
                yield f"drawing with {name}", *pictures
                pictures[place] = webui.draw(name, prompt or "", int(seed or 0), side)
            yield "", *pictures

        given = [checkpoint, concepts, kind, strong, aliases, preset, strengths, side, seed, name, lora, rank]
        go.click(erase, inputs=given, outputs=outputs)
        follow.click(followed, inputs=[], outputs=outputs)
        compare.click(drawn, inputs=[prompt, shown_side, shown_seed], outputs=[said, before, after])
        # Past the queue, which Gradio 3 works off one by one where the web UI does not say otherwise.
        cancel.click(lambda: job.stop(), inputs=[], outputs=[], queue=False)
        again.click(listed, inputs=[], outputs=[checkpoint])
    return blocks
