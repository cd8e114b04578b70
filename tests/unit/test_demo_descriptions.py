"""The demo model's data: honest labels, vendors apart, the same bytes for the same seed."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demo import conversations
from demo.categories import CATEGORIES, CITIES, HELD_OUT_CITIES, HELD_OUT_STEMS, LABELS, LEGAL, PREFIXES, REGIONS, STEMS
from demo.descriptions import FORMS, WIDTHS, Statements, abbreviations, misspell, noisy, read_rows, stem, write_rows


@pytest.fixture(scope="module")
def statements():
    return Statements()


def test_no_written_form_of_a_hint_belongs_to_two_categories():
    owners: dict[str, set[str]] = {}
    for label, category in CATEGORIES.items():
        for word in " ".join(category.hints).split():
            for form in (word, *abbreviations(word)):
                owners.setdefault(form, set()).add(label)
    assert {form: labels for form, labels in owners.items() if len(labels) > 1} == {}


def test_no_stem_city_or_sign_is_a_hint():
    neutral = " ".join((*STEMS, *HELD_OUT_STEMS, *CITIES, *HELD_OUT_CITIES, *REGIONS, *PREFIXES, *LEGAL)).split()
    assert set(neutral) & FORMS.keys() == set()


def test_unseen_vendors_share_no_name_and_no_first_word_with_training(statements):
    def own_words(vendors):
        return {word for vendor in vendors for word in vendor.name.split()} - FORMS.keys()

    assert own_words(statements.held_out) & own_words([*statements.seen, *statements.opaque]) == set()


def test_a_vendor_has_one_category(statements):
    vendors = [*statements.seen, *statements.opaque, *statements.held_out]
    assert len({vendor.name for vendor in vendors}) == len(vendors)
    assert {vendor.label for vendor in statements.held_out} == {vendor.label for vendor in statements.seen} == set(LABELS)


@given(st.integers(0, 10**9))
def test_noise_never_writes_another_categorys_word(seed):
    rng = random.Random(seed)
    word = rng.choice(sorted(FORMS))
    assert FORMS.get(noisy(rng, word), FORMS[word]) == FORMS[word]


@given(st.text("ABCDEFGH", min_size=5, max_size=9), st.integers(0, 10**9))
def test_a_misspelt_word_keeps_its_first_letter_and_about_its_length(word, seed):
    slip = misspell(random.Random(seed), word)
    assert slip[0] == word[0]
    assert abs(len(slip) - len(word)) <= 1


def test_half_of_the_held_out_rows_are_of_unseen_vendors_and_none_is_trained_on(statements):
    rows = statements.held_out_rows(500)
    assert sum(row.seen for row in rows) == 250
    texts = frozenset(row.text.lower() for row in rows)
    assert len(texts) == 500
    assert max(map(len, texts)) <= WIDTHS[1]
    rng = random.Random(1)
    assert {statements.row(rng, texts).text.lower() for _ in range(20_000)} & texts == set()


def test_a_seed_decides_the_rows(statements):
    assert Statements().held_out_rows(50) == statements.held_out_rows(50)
    assert Statements(seed=2).held_out_rows(50) != statements.held_out_rows(50)


def test_rows_come_back_from_their_file(statements, tmp_path):
    rows = statements.held_out_rows(50)
    write_rows(tmp_path / "rows.csv", rows)
    assert list(read_rows(tmp_path / "rows.csv")) == rows


def test_the_first_question_of_a_newcomer_is_about_an_unseen_vendor(statements):
    assert "DELTA AIR" in conversations.INTRODUCTION
    assert not any("DELTA" in vendor.name.split() for vendor in (*statements.seen, *statements.opaque))


def test_names_that_mean_nothing_use_all_letters_of_the_alphabet():
    rng = random.Random(4)
    assert set("".join(stem(rng) for _ in range(1000))) >= set("ABCDEFGHIJKLMNOPRSTUVWXYZ")
