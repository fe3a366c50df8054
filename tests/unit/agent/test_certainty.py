"""A reader that leaves out what is uncertain, against a memory to which some write seen and others unseen."""

import random

from pyroaring import BitMap64

from wetink_agent.certainty import Certainty

PAGES = 1
OPERATIONS = ("write", "unseen", "expose", "cover", "unmap", "map", "round", "read")
RUNS = 3000
STEPS_MAX = 30


class World:
    """Pages with contents, a tracker's rounds over them, and a copy that is made of lenient answers."""

    def __init__(self) -> None:
        """Begin with every page there and nothing told."""
        self.content = dict.fromkeys(range(PAGES), 1)
        self.exposed: set[int] = set()
        self.copy: dict[int, int] = {}
        self._seen = set(range(PAGES))
        self._known = BitMap64()
        self._certainty = Certainty()
        self._written, self._uncertain, self._vanished = BitMap64(), BitMap64(), BitMap64()
        self._clock = 1

    def do(self, name: str, page: int) -> None:
        """Do one thing; to what is not there, nothing."""
        self._clock += 1
        match name:
            case "round":
                self.round()
            case "read":
                self.read(strict=False)
            case "map" if page not in self.content:
                self.content[page] = self._clock
                self._seen.add(page)
            case _ if page not in self.content:
                pass
            case "write":
                self.content[page] = self._clock
                self._seen.add(page)
            case "unseen" if page in self.exposed:
                self.content[page] = self._clock
            case "expose":
                # To register a buffer is to have its pages made writable: that is seen.
                self.exposed.add(page)
                self._seen.add(page)
            case "cover":
                self.exposed.discard(page)
            case "unmap":
                self.exposed.discard(page)
                del self.content[page]

    def round(self) -> None:
        """Harvest, and merge with what the reader has not asked for yet, page by page."""
        known = BitMap64(self.content)
        certain = BitMap64(self._seen) & known
        reported = BitMap64(certain)
        uncertain = self._certainty.settle(BitMap64(self.exposed), certain=certain, reported=reported, known=known)
        assert uncertain <= reported <= known
        gone = self._known - known
        again = uncertain - (self._written - self._uncertain) - self._vanished
        self._uncertain = ((self._uncertain - (reported - uncertain)) - gone) | again
        self._written = (self._written - gone) | reported
        self._vanished = (self._vanished - reported) | gone
        self._known, self._seen = known, set()

    def read(self, *, strict: bool) -> None:
        """Ask with a barrier, and apply the answer."""
        self.round()
        for page in self._vanished:
            self.copy.pop(page, None)
        for page in self._written if strict else self._written - self._uncertain:
            self.copy[page] = self.content[page]
        self._written, self._uncertain, self._vanished = BitMap64(), BitMap64(), BitMap64()


def test_a_strict_answer_after_lenient_ones_makes_the_copy_whole() -> None:
    """Whatever was exposed and covered meanwhile, and however often the reader left it out."""
    for seed in range(RUNS):
        chance = random.Random(seed)  # noqa: S311 - repeatable, not secret
        world = World()
        done = []
        for _ in range(chance.randrange(STEPS_MAX)):
            done.append((chance.choice(OPERATIONS), chance.randrange(PAGES)))
            world.do(*done[-1])

        world.read(strict=True)

        assert world.copy == world.content, (seed, done)


def test_what_is_exposed_is_uncertain_from_its_second_round_on() -> None:
    """So that lenient answers are worth asking for."""
    certainty, page = Certainty(), BitMap64([1])

    def settle(cautious: BitMap64) -> tuple[BitMap64, BitMap64]:
        reported = BitMap64()
        return certainty.settle(cautious, certain=BitMap64(), reported=reported, known=page), reported

    assert settle(page) == (BitMap64(), page)
    assert settle(page) == (page, page)
    assert settle(BitMap64()) == (BitMap64(), page)
    assert settle(BitMap64()) == (BitMap64(), BitMap64())
