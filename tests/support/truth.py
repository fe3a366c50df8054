"""What the memory of a frozen process really holds."""

from wetink_client.verify import Difference, differences, populated

__all__ = ["Difference", "differences", "populated"]
