"""A small MultiTalk that really talks: its faces are drawn here, its speech comes from espeak-ng."""
