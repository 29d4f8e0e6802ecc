"""Writes the workflows, each from one description: `workflows/*.json` for the page, `workflows/api/*.json` for the
queue, `subgraphs/*.json` for the page's library of nodes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from blueprints import blueprint
from workflow_graph import MODELS, PACK, Graph

REAL = {
    "base": "wan2.1_i2v_480p_14B_fp8_scaled.safetensors",
    "adapter": "WanVideo_2_1_Multitalk_14B_fp8_e4m3fn.safetensors",
    "text": "umt5_xxl_fp8_e4m3fn_scaled.safetensors",
    "image": "clip_vision_h.safetensors",
    "vae": "wan_2.1_vae.safetensors",
    "audio": "wav2vec2-chinese-base_fp16.safetensors",
}
FLASHTALK = REAL | {"base": "diffusers/SoulX-FlashTalk-14B", "adapter": "none"}
FLASHTALK_FILES = [Path(file).name for file in FLASHTALK.values() if file != "none"]
SMALL = {
    "base": "wan2.1_i2v_480p_demo.safetensors",
    "adapter": "multitalk_demo.safetensors",
    "text": "umt5_demo.safetensors",
    "image": "clip_vision_h_demo.safetensors",
    "vae": "wan_2.1_vae_demo.safetensors",
    "audio": "wav2vec2_demo.safetensors",
}
FACES = "mediapipe_face_fp32.safetensors"
LORA = "lightx2v_I2V_14B_480p_cfg_step_distill_rank64_bf16.safetensors"
ABOUT = json.loads((PACK / "docs" / "files.json").read_text(encoding="utf-8"))
MEMORY_NOTE = (
    "With 24 GB of GPU memory most of the model stays there; with 8 GB its blocks are streamed, which takes longer. "
    "The sampler shows the minutes that your machine takes, from the second run on."
)


Link = tuple[str, int]  # a node's number, and its output
Links = dict[str, Link]
Arrangement = Callable[[Graph, Link, Links], tuple[Links, Links]]  # inputs of MultiTalk Encode Audio, of Condition

BLUEPRINTS = {  # the page's name for each, and the workflow that it is made of
    "Talking Video (MultiTalk)": "single_speaker_quality",
    "Two People Talking (MultiTalk)": "two_speakers",
}


def talk(
    graph: Graph,
    files: dict[str, str],
    image: str,
    voices: Sequence[str],
    prompt: str,
    lora: str | None = None,
    condition: dict[str, Any] | None = None,
    sampler: dict[str, Any] | None = None,
    audio: dict[str, Any] | None = None,
    preflight: bool = False,
    arrangement: Arrangement | None = None,
) -> None:
    """The local chain: picture, voices, loaders, encoders, sampler, video; `preflight` checks it all before."""
    picture = (graph.add("MultiTalkLoadImage", image=image), 0)
    sounds = {
        f"audio_{k}": (graph.add("MultiTalkLoadAudio", audio=voice), 0) for k, voice in enumerate(voices, start=1)
    }
    if arrangement is not None:
        sounds, speakers = arrangement(graph, picture, sounds)
        condition = {**(condition or {}), **speakers}
    model = (graph.add("MultiTalkLoadModel", base=files["base"], adapter=files["adapter"]), 0)
    if lora:
        model = (graph.add("MultiTalkLoadLora", model=model, lora=lora, strength=1.0), 0)
    encoder = (graph.add("MultiTalkLoadAudioEncoder", file=files["audio"]), 0)
    embeds = (graph.add("MultiTalkEncodeAudio", audio_encoder=encoder, **sounds, **(audio or {})), 0)
    coders = {
        "vae": (graph.add("MultiTalkLoadVAE", file=files["vae"]), 0),
        "image_encoder": (graph.add("MultiTalkLoadImageEncoder", file=files["image"]), 0),
        "text_encoder": (graph.add("MultiTalkLoadTextEncoder", file=files["text"]), 0),
    }
    conditioning = (graph.add("MultiTalkCondition", image=picture, **coders, prompt=prompt, **(condition or {})), 0)
    options = {name: value for name, value in (sampler or {}).items() if name == "options"}
    if preflight:
        inputs = {"image": picture, "audio_encoder": encoder, **sounds, **coders, **options}
        graph.add("MultiTalkPreflight", model=model, **inputs)
    inputs = {"model": model, "audio_embeds": embeds, "conditioning": conditioning, **(sampler or {})}
    _save(graph, (graph.add("MultiTalkSampler", **inputs), 1))


def detected_faces(graph: Graph, picture: Link, sounds: Links) -> tuple[Links, Links]:
    """Voices for the faces that core's detector sees, from left to right."""
    model = (graph.add("LoadMediaPipeFaceLandmarker", model_name=FACES), 0)
    detector = {"detector_variant": "full", "min_confidence": 0.5, "missing_frame_fallback": "empty"}
    faces = graph.add(
        "MediaPipeFaceLandmarker", face_detection_model=model, image=picture, num_faces=len(sounds), **detector
    )
    speakers = {"speakers": (graph.add("MultiTalkSpeakers", background=picture, bboxes=(faces, 1), **sounds), 0)}
    return speakers, speakers


def dialogue_clips(graph: Graph, picture: Link, sounds: Links) -> tuple[Links, Links]:
    """Each voice after the one before, on one timeline; the first one has the last word too."""
    first, second = sounds.values()
    clips: Links = {}
    for audio, speaker, pause in ((first, 1, 0.3), (second, 2, 0.3), (first, 1, -0.2)):
        clips = {"dialogue": (graph.add("MultiTalkDialogue", audio=audio, speaker=speaker, pause=pause, **clips), 0)}
    return clips, {}


def example(name: str) -> str:
    """A bundled picture or voice, as the loaders list it."""
    return f"multitalk_{name} [temp]"


def files_note(*names: str) -> str:
    """A table of files: link, folder, size."""
    rows = [f"| [{name}]({MODELS[name][1]}/{name}) | {MODELS[name][0]} | {ABOUT[name]['gb']:g} GB |" for name in names]
    return "\n".join(("| File | models/ | Size |", "| --- | --- | --- |", *rows))


def _save(graph: Graph, video: tuple[str, int]) -> None:
    graph.add("SaveVideo", video=video, filename_prefix="video/MultiTalk", format="auto", codec="auto")


def build() -> dict[str, Graph]:
    """All workflows by the names of the queue's files.

    Pictures and voices are the bundled examples, so that none is missing.
    """
    portrait, speech = example("portrait.jpg"), example("speech.wav")
    woman = "A woman talks to the camera in a softly lit room."
    drawn, drawn_two = example("drawn_portrait.png"), example("drawn_two.png")
    dialogue = [example("drawn_speech.wav"), example("drawn_answer.wav")]
    files = f"{files_note(*REAL.values())}\n\n{MEMORY_NOTE}\n"
    files_and_lora = f"{files_note(*REAL.values(), LORA)}\n\n{MEMORY_NOTE}\n"
    files_and_faces = f"{files_note(*REAL.values(), FACES)}\n\n{MEMORY_NOTE}\n"
    quality = Graph(
        "Talking portrait",
        f"# One speaker, best quality\n\n{files}\n40 steps with text and audio guidance.",
        is_app=True,
    )
    fast = Graph(
        "Talking portrait in 4 steps",
        f"# One speaker, four steps\n\n{files_and_lora}\nThe LoRA wants text guidance 1.",
    )
    flashtalk = Graph(
        "Talking portrait, fast (FlashTalk)",
        f"# One speaker, fast\n\n{files_note(*FLASHTALK_FILES)}\n\nFlashTalk is one folder: `hf download "
        "Soul-AILab/SoulX-FlashTalk-14B --local-dir models/diffusers/SoulX-FlashTalk-14B`. Four steps without guidance "
        "for each 1.12 s; a calm prompt suits it.",
        is_app=True,
    )
    two = Graph(
        "Two people talking",
        f"# Two speakers\n\n{files}\nThe first voice is the left person's, the second the right one's; for other "
        "places connect MultiTalk Speaker. The drawn faces only hold the place of a photograph of two people: the 14B "
        "model is for those.",
        is_app=True,
    )
    faces = Graph(
        "Two people found by a face detector",
        f"# Faces find their voices\n\n{files_and_faces}\nThe first voice is the left face's. Instead of the detector, "
        "boxes may be drawn with the mouse: on MultiTalk Speakers, with Nodes 2.0.",
    )
    dialogue_graph = Graph(
        "A dialogue",
        f"# Who says what, when\n\n{files}\nOne MultiTalk Dialogue for each clip: after the one before, with a pause, "
        "or overlapping it. For a podcast in one recording take MultiTalk Split Recording.",
    )
    long = Graph(
        "Long speech",
        f"# A long speech\n\n{files}\nThe length follows the audio. An interrupted run goes on where it was.",
        is_app=True,
    )
    small = Graph(
        "Drawn face without download",
        "# The small bundled model\n\nRuns with no download, on a CPU. It knows drawn faces only.",
        is_app=True,
    )
    remote = Graph(
        "Talking portrait on fal",
        "# Made by fal\n\nNo model, no GPU. Put your key into FAL_KEY; every run costs money.",
    )
    few = {"steps": 4, "text_scale": 1.0, "audio_scale": 2.0, "shift": 2.0, "acceleration": "high"}
    talk(quality, REAL, portrait, [speech], woman)
    talk(fast, REAL, portrait, [speech], woman, lora=LORA, sampler=few)
    calm = "A woman speaks calmly to the camera, with subtle, natural movements of her lips."
    talk(flashtalk, FLASHTALK, portrait, [speech], calm, sampler={"keep_frames": False})
    talk(two, REAL, drawn_two, dialogue, "Two people talk to each other.", audio={"multi_audio_type": "add"})
    talk(faces, REAL, drawn_two, dialogue, "Two people talk to each other.", arrangement=detected_faces)
    talk(dialogue_graph, REAL, drawn_two, dialogue, "Two people talk to each other.", arrangement=dialogue_clips)
    options = (long.add("MultiTalkLongVideoOptions"), 0)
    talk(
        long, REAL, portrait, [speech], woman, preflight=True,
        sampler={"keep_frames": False, "acceleration": "regular", "options": options},
    )  # fmt: skip
    talk(
        small, SMALL, drawn, dialogue[:1], "a smiling person talks",
        condition={"resolution": "custom", "width": 128, "height": 128},
    )  # fmt: skip
    sockets = {
        "image": (remote.add("MultiTalkLoadImage", image=portrait), 0),
        "audio": (remote.add("MultiTalkLoadAudio", audio=speech), 0),
    }
    _save(remote, (remote.add("MultiTalkFal", **sockets, prompt=woman), 0))
    return {
        "single_speaker_quality": quality,
        "single_speaker_fast": fast,
        "flashtalk": flashtalk,
        "two_speakers": two,
        "two_faces": faces,
        "dialogue": dialogue_graph,
        "long_speech": long,
        "remote": remote,
        "small_model": small,
    }


def main() -> None:
    """Writes all files."""
    workflows, subgraphs, graphs = PACK / "workflows", PACK / "subgraphs", build()
    for name, graph in graphs.items():
        _write(workflows / f"{graph.stem}.json", graph.page())
        _write(workflows / "api" / f"{name}.json", graph.api())
    for name, file in BLUEPRINTS.items():
        _write(subgraphs / f"{name}.json", blueprint(name, graphs[file]))


def _write(file: Path, content: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
