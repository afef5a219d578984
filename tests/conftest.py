"""What all tests share."""

from hypothesis import settings

# Two busy cores make single examples slow; a property that is slow by nature shows in the test's own timeout.
settings.register_profile("walled", deadline=None)
settings.load_profile("walled")
