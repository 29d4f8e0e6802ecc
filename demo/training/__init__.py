"""Training of the bundled small model from nothing, in five phases: `python -m demo.training`.

| Phase | Learns | From |
| --- | --- | --- |
| `vae` | the video VAE | drawings of faces with random motions |
| `speech_encoder` | a wav2vec 2.0 | speech of espeak-ng and the mouth that it implies |
| `clips` | nothing: it encodes scenes with the first two | scenes of one or two people who speak |
| `transformer` | the transformer with its audio adapter, and the text encoder | the clips, by flow matching |
| `guidance` | the same | states that its own guidance leads to |

`export` writes the files that the engine opens, `restore` makes finished phases of such files. The image encoder keeps
random weights (`clips.random_image_encoder`). torch 2.9 or newer and espeak-ng are needed. How the bundled weights came
to be, which was not by this recipe, is in `docs/demo-model.md`.
"""
