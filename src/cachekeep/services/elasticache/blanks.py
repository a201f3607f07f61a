"""What clients leave blank."""

from __future__ import annotations

from dataclasses import replace

from cachekeep.services.core.context import value_error
from cachekeep.wire.gateway import Call
from cachekeep.wire.model import service_model


def without_blanks(call: Call) -> Call:
    """Ansible sends ``EngineVersion=`` and Terraform empty lists where they mean "not set" (recorded from both).

    Raises ApiError InvalidParameterValue for a blank that may not be one.
    """
    given = {name: value for name, value in call.params.items() if value is not None and value != "" and value != []}
    asks = service_model(call.service).operation(call.operation).input
    for name in asks.required if asks else ():
        if name not in given:
            raise value_error(f"The parameter {name} must be provided and must not be blank.")
    return replace(call, params=given)
