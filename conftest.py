"""How the whole suite is run; what holds for every test is in tests/conftest.py."""

pytest_plugins = ["tests.order", "tests.unchanged"]
