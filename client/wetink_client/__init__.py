"""The SDK for orchestrators, and the ``wetink`` command."""
