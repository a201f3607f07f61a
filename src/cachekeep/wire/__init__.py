"""The AWS wire: route, verify, parse, validate, serialise. Generic over the vendored service models; knows no operation by name."""
