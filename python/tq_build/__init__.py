"""Builds the wheel: fetches, verifies, unpacks and patches upstream, then hands over to scikit-build-core."""
