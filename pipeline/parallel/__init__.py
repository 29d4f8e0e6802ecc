"""One clip on several devices: guidance passes and tokens split over ranks (Ulysses, arXiv:2309.14509)."""
