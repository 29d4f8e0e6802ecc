"""Files of sound, pictures and video, read and written."""
