"""How the whole suite is run; what holds for every test is in tests/rules.py."""

pytest_plugins = ["tests.rules", "tests.order", "tests.unchanged"]
