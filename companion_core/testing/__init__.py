"""The conformance kit and the fakes, shipped for plugin authors."""
