"""Clean trees for test suites: the pytest plugin."""
