"""What all tests share."""

from hypothesis import settings

# No deadline: how long an example takes says more about the machine than about the code.
settings.register_profile("nocturne", deadline=None)
settings.load_profile("nocturne")
# `make fuzz`: what clients may send, much more of it.
settings.register_profile("fuzz", deadline=None, max_examples=100_000, print_blob=True)
