"""Which of the pages that are reported out of caution a reader may leave for later, and which it must have now.

A reader that leaves out what is uncertain has not got what changed there unseen. So a page is uncertain only where it
was reported for the same reason in the round before, and it stays in every round, once more also when nothing can write
to it unseen any more.
"""

from pyroaring import BitMap64


class Certainty:
    """Remembers to what something could write unseen in the round before."""

    def __init__(self) -> None:
        """Begin with nothing of the kind: what is found first is certain."""
        self._before = BitMap64()

    def settle(self, cautious: BitMap64, *, certain: BitMap64, reported: BitMap64, known: BitMap64) -> BitMap64:
        """Give the pages of a round that are uncertain, and add what has to be in it to ``reported``.

        Args:
            cautious: Pages to which something may have written unseen. Those that are not known count for nothing.
            certain: Pages with a sign of a write.
            reported: The written pages of the round; changed.
            known: The pages that are there now.
        """
        if not cautious and not self._before:
            return BitMap64()
        before, self._before = self._before, cautious & known
        reported |= self._before
        # What nothing can write to unseen any more is certain now: it may have been, since the round before.
        reported |= before & known
        return (before & self._before) - certain
