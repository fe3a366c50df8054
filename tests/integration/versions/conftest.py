"""Each test meets every contract that this version has to work with."""

import pytest

from tests.support.contracts import Contract, neighbouring


@pytest.fixture(params=neighbouring(), ids=lambda contract: contract.version)
def contract(request: pytest.FixtureRequest) -> Contract:
    """Give the contract as the other side has it."""
    found: Contract = request.param
    return found
