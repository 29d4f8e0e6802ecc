"""A command line as it is before anything runs: parsed, read, checked."""

from __future__ import annotations

from multitalk_pack.pipeline.__main__ import _files, _media, _options, _parser
from multitalk_pack.pipeline.errors import Problems
from multitalk_pack.pipeline.multitalk_pipeline import CheckedRequest, MultiTalkPipeline
from multitalk_pack.pipeline.request import Request

from .run import RecordingHost


def check(arguments: list[str], problems: Problems) -> CheckedRequest:
    """The request of a command line, checked; `ConfigError` with all that is wrong, which is in `problems` too."""
    args = _parser().parse_args(arguments)
    talk = MultiTalkPipeline.of(_files(args, problems), host=RecordingHost())
    request = Request.of(*_media(args), args.prompt, problems=problems, **_options(args))
    return talk.check(request, args.output, args.resume_folder, problems)
