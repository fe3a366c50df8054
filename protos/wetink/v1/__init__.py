"""The generated modules of the contract, version 1. The ``.proto`` files beside them are the source."""
