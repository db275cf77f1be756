"""The table of decisions in a terminal."""

import pytest

from jaxformer.report.text import decision_table

pytestmark = pytest.mark.device_free


def test_each_row_has_its_reason_below_it_with_ascii_minus_signs(outcome):
    text = decision_table(outcome)
    assert not set(text) & {"\N{MINUS SIGN}", "\N{EN DASH}"}
    lines = text[text.index("\nvariant") :].splitlines()[2:]
    (row,) = (number for number, line in enumerate(lines) if line.startswith("muon "))
    assert lines[row + 1].startswith("    better")


def test_a_note_that_three_variants_share_is_printed_once_below_the_table(outcome):
    def with_note(number):
        noted = [one._replace(notes=("whatever is the case",)) for one in outcome.comparisons[:number]]
        return decision_table(outcome._replace(comparisons=[*noted, *outcome.comparisons[number:]]))

    first, second, third = (one.variant for one in outcome.comparisons[:3])
    assert with_note(2).count("whatever is the case") == 2
    assert f"\n{first}, {second}, {third}: whatever is the case.\n" in (text := with_note(3) + "\n")
    assert text.count("whatever is the case") == 1


@pytest.mark.parametrize("columns", [59, 79, 199])
def test_decisions_fit_a_terminal_and_lose_no_number(outcome, columns):
    text = decision_table(outcome, columns)
    # A path is not broken, however long it is.
    assert all(len(line) <= columns or " " not in line.strip() for line in text.splitlines())
    whole = decision_table(outcome)
    for line in whole[whole.index("\nvariant") :].splitlines()[2:]:
        if not line.startswith(" "):
            numbers = [word for word in line.split() if any(map(str.isdigit, word))]
            assert all(number.strip("[],;") in text for number in numbers)
