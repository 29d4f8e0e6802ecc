"""Small MultiTalk model that talks: its faces are drawings, its speech comes from espeak-ng."""
