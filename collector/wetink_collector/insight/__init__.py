"""Answers that an orchestrator can act on, from the rounds that are kept: one module an idea, ``service`` at the edge.

The rpcs are documented in ``wetink/v1/insight.proto``. Nothing here is asked before a round is acknowledged.
"""
