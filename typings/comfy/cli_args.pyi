from argparse import Namespace

class _Arguments(Namespace):
    disable_api_nodes: bool
    disable_pinned_memory: bool

args: _Arguments
