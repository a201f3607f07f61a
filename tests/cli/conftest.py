"""The same installations as the acceptance tests'."""

from tests.acceptance.conftest import another, client, installation

__all__ = ["another", "client", "installation"]
