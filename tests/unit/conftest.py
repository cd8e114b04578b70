"""Settings of the property tests."""

from hypothesis import settings

# A busy machine is not a slow function.
settings.register_profile("ptolemy", deadline=None)
settings.load_profile("ptolemy")
