"""A small corpus of made-up film reviews, the same for a seed everywhere: enough to see a text network learn."""

import random

SUBJECTS = [
    "the story",
    "the acting",
    "the music",
    "the ending",
    "the dialogue",
    "the camera work",
    "the pace",
    "the cast",
]
PRAISE = ["wonderful", "moving", "clever", "brilliant", "charming", "superb", "gripping", "a delight"]
BLAME = ["dull", "clumsy", "tiresome", "awful", "predictable", "lifeless", "a mess", "painful"]
GOOD_ENDS = ["I would watch it again tomorrow.", "Warmly recommended.", "One of the best this year.", "See it."]
BAD_ENDS = ["I nearly left the cinema.", "Save your money.", "One of the worst this year.", "Avoid it."]
NEUTRAL = [
    "I saw it with my sister on a rainy evening.",
    "It runs for about two hours.",
    "The director has made three films before.",
    "Most of it takes place in a small harbour town.",
    "There is a long scene on a train.",
    "It is based on a novel from the seventies.",
]


def make_reviews(count: int, seed: int) -> tuple[list[str], list[int]]:
    """`count` reviews and their labels, as many bad (0) as good (1), the bad ones first.

    A good one has a word of blame now and then and a bad one of praise, so that no single word decides.
    """
    chance = random.Random(seed)
    labels = [0] * (count // 2) + [1] * (count - count // 2)
    return [_review(chance, bool(label)) for label in labels], labels


def _review(chance: random.Random, good: bool) -> str:
    sentences = chance.sample(NEUTRAL, chance.randint(1, 3))
    for subject in chance.sample(SUBJECTS, chance.randint(3, 5)):
        says_good = good if chance.random() < 0.8 else not good
        sentences.append(f"{subject.capitalize()} was {chance.choice(PRAISE if says_good else BLAME)}.")
    chance.shuffle(sentences)
    if chance.random() < 0.7:
        sentences.append(chance.choice(GOOD_ENDS if good else BAD_ENDS))
    return " ".join(sentences)
