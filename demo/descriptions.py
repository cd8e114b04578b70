"""Synthetic accounting descriptions, as card statements print them: misspelt, abbreviated, cut, with numbers and cities.

Everything is drawn from a random generator that the caller gives, so a seed decides every byte.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

from demo.categories import CATEGORIES, CITIES, HELD_OUT_CITIES, HELD_OUT_STEMS, LABELS, LEGAL, PREFIXES, REGIONS, STEMS

SEED = 20261124
VENDORS = 1000  # of each category, in training
HELD_OUT_VENDORS = 60
OPAQUE = 5  # vendors of each category whose names say nothing: they can only be remembered
ONSETS = "B BL BR C CL D DR F FL G GR H J K KL L M N P PR QU R S ST T TR V W Z".split()
VOWELS = "A E I O U EA OO".split()
CODAS = " R N L S T X ND RN LT".split(" ")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LONGEST_VENDOR = 22
WIDTHS = (22, 40)  # characters that a statement prints
MISSPELT = 0.12  # of the words with five letters or more
ABBREVIATED = 0.15  # of the words that give the category away


@dataclass(frozen=True)
class Vendor:
    """A vendor's whole name, and its category."""

    name: str
    label: str


@dataclass(frozen=True)
class Row:
    """A description, its category, and whether its vendor occurs in training."""

    text: str
    label: str
    seen: bool


def abbreviations(word: str) -> list[str]:
    """The ways in which statements shorten a word: without its later vowels, or cut."""
    if len(word) < 5 or " " in word:
        return []
    short = word[0] + "".join(letter for letter in word[1:] if letter not in "AEIOU")
    found = [short] if 4 <= len(short) < len(word) else []
    return found + ([word[:5]] if len(word) >= 7 else [])


# Every written form of every hint. A misspelling must not turn one category's word into another's.
FORMS = {
    form: label
    for label, category in CATEGORIES.items()
    for hint in category.hints
    for word in hint.split()
    for form in (word, *abbreviations(word))
}
# What a name that means nothing must not hold.
TELLING = {form for form in FORMS if len(form) > 2} | {ending for category in CATEGORIES.values() for ending in category.endings}
PLAIN = [word for word in " ".join((*STEMS, *CITIES)).split() if len(word) > 3]


def coin(rng: random.Random, syllables: int) -> str:
    """A pronounceable name that means nothing."""
    while True:
        name = "".join(rng.choice(ONSETS) + rng.choice(VOWELS) for _ in range(syllables)) + rng.choice(CODAS)
        if not any(word in name for word in TELLING):
            return name


def blend(rng: random.Random) -> str:
    """The beginning of one plain word and the end of another: it looks like a name, and means nothing."""
    while True:
        first, second = rng.choice(PLAIN), rng.choice(PLAIN)
        name = first[: rng.randrange(2, len(first))] + second[-rng.randrange(2, len(second)) :]
        if not any(word in name for word in TELLING):
            return name


def stem(rng: random.Random) -> str:
    """A name that means nothing."""
    return blend(rng) if rng.random() < 0.5 else coin(rng, rng.choice((2, 2, 3)))


def named(rng: random.Random, label: str, word: str) -> Vendor:
    """A vendor whose name has ``word`` and one of the category's hints or endings."""
    category, kind = CATEGORIES[label], rng.random()
    if kind < 0.65:
        return Vendor(f"{word} {rng.choice(category.hints)}", label)
    if kind < 0.8:
        return Vendor(f"{rng.choice(category.hints)} {word}", label)
    return Vendor(word + rng.choice(category.endings), label)


def vendors(rng: random.Random, stems: Sequence[str], count: int, avoid: frozenset[str]) -> list[Vendor]:
    """``count`` vendors of each category, whose names contain one of its hints, and no word of ``avoid``."""
    found: dict[str, Vendor] = {}
    for label in LABELS:
        wanted = len(found) + count
        while len(found) < wanted:
            word = rng.choice(stems) if rng.random() < 0.4 else stem(rng)
            vendor = named(rng, label, word)
            if not avoid & {word, *vendor.name.split()} and len(vendor.name) <= LONGEST_VENDOR:
                found.setdefault(vendor.name, vendor)
    return list(found.values())


def opaque_vendors(rng: random.Random) -> list[Vendor]:
    """Vendors whose names say nothing."""
    names: dict[str, str] = {}
    for label in LABELS:
        wanted = len(names) + OPAQUE
        while len(names) < wanted:
            names.setdefault(coin(rng, 3), label)
    return [Vendor(name, label) for name, label in names.items()]


def misspell(rng: random.Random, word: str) -> str:
    """One slip of the finger: two letters swapped, one left out, doubled, or wrong."""
    place, kind = rng.randrange(1, len(word) - 1), rng.randrange(4)
    if kind == 0:
        return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    middle = ("", word[place] * 2, rng.choice(LETTERS))[kind - 1]
    return word[:place] + middle + word[place + 1 :]


def noisy(rng: random.Random, word: str) -> str:
    """The word as somebody wrote it."""
    short = abbreviations(word) if word in FORMS else []
    if short and rng.random() < ABBREVIATED:
        return rng.choice(short)
    if len(word) >= 5 and word.isalpha() and rng.random() < MISSPELT:
        slip = misspell(rng, word)
        if FORMS.get(slip, FORMS.get(word)) == FORMS.get(word):
            return slip
    return word


def describe(rng: random.Random, vendor: Vendor, cities: Sequence[str]) -> str:
    """One line of a statement. The cut at the end may take the number and the city, but never the vendor."""
    head = " ".join(noisy(rng, word) for word in vendor.name.split())
    if rng.random() < 0.2:
        prefix = rng.choice(PREFIXES)
        head = prefix + ("" if prefix.endswith((".", "*")) else " ") + head
    tail = []
    if rng.random() < 0.15:
        tail.append(rng.choice(LEGAL))
    if rng.random() < 0.6:
        tail.append(rng.choice(("", "", "#")) + "".join(rng.choice("0123456789") for _ in range(rng.randrange(2, 9))))
    if rng.random() < 0.7:
        tail.append(noisy(rng, rng.choice(cities)))
        if rng.random() < 0.4:
            tail.append(rng.choice(REGIONS))
    if rng.random() < 0.1:
        tail.append(f"{rng.randrange(1, 13):02d}/{rng.randrange(1, 29):02d}")
    text = " ".join((head, *tail))[: max(len(head), rng.randrange(WIDTHS[0], WIDTHS[1] + 1))].rstrip()
    return rng.choice((text,) * 8 + (text.title(), text.lower()))


def item(rng: random.Random, label: str) -> str:
    """What somebody writes himself."""
    text = rng.choice(CATEGORIES[label].items)
    return rng.choice((text, text, text.capitalize(), f"{text} {rng.choice(CITIES).title()}", f"{text}, {rng.randrange(2, 900)}"))


class Statements:
    """All vendors, and rows about those of the training."""

    def __init__(self, seed: int = SEED) -> None:
        rng = random.Random(f"vendors {seed}")
        self.held_out = vendors(rng, HELD_OUT_STEMS, HELD_OUT_VENDORS, frozenset(STEMS))
        own = frozenset(word for vendor in self.held_out for word in vendor.name.split()) - FORMS.keys()
        self._unseen = own | frozenset(HELD_OUT_STEMS) | frozenset(HELD_OUT_CITIES)
        self.seen = vendors(rng, STEMS, VENDORS, self._unseen)
        self.opaque = opaque_vendors(rng)
        self._seed = seed

    def row(self, rng: random.Random, avoid: frozenset[str] = frozenset()) -> Row:
        """A row as training has them; its text in small letters is not in ``avoid``.

        Half of the vendors come only once, and many cities: what the model does not know must not mean anything to it.
        """
        while True:
            row = self._row(rng)
            if row.text.lower() not in avoid:
                return row

    def _row(self, rng: random.Random) -> Row:
        if rng.random() < 0.1:
            label = rng.choice(LABELS)
            return Row(item(rng, label), label, seen=True)
        vendor = self._vendor(rng)
        cities: Sequence[str] = CITIES
        if rng.random() < 0.5:
            word, city = stem(rng), stem(rng)
            once = named(rng, rng.choice(LABELS), word)
            if not self._unseen & {word, city, *once.name.split()} and len(once.name) <= LONGEST_VENDOR:
                vendor, cities = once, rng.choice((CITIES, [city]))
        return Row(describe(rng, vendor, cities), vendor.label, seen=True)

    def _vendor(self, rng: random.Random) -> Vendor:
        return rng.choice(self.opaque if rng.random() < 0.15 else self.seen)

    def held_out_rows(self, count: int) -> list[Row]:
        """Rows that training must not contain: half of them of vendors that it lacks too, some in cities that it lacks."""
        rng = random.Random(f"held out {self._seed}")
        found: dict[str, Row] = {}
        while len(found) < count:
            seen = len(found) % 2 == 1
            vendor = self._vendor(rng) if seen else rng.choice(self.held_out)
            text = describe(rng, vendor, CITIES if seen else (*CITIES, *HELD_OUT_CITIES))
            found.setdefault(text.lower(), Row(text, vendor.label, seen))
        return list(found.values())


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """The rows as CSV: text, label, vendor (seen or unseen)."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("text", "label", "vendor"))
        writer.writerows((row.text, row.label, "seen" if row.seen else "unseen") for row in rows)


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file that `write_rows` wrote."""
    with path.open(encoding="utf-8", newline="") as stream:
        for line in csv.DictReader(stream):
            yield Row(line["text"], line["label"], line["vendor"] == "seen")
