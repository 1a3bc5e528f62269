"""What all tests share."""

from hypothesis import settings

# No deadline: how long an example takes says more about the machine than about the code.
settings.register_profile("nocturne", deadline=None)
settings.load_profile("nocturne")
