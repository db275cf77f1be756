"""What the rule says of equals: trained pairs, differences redrawn from trained runs, and a model fitted to those.

Axes: S seed, N arm, I validation document.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from simulated_rule import RULE, SAME_COST, judge
from tiny_arms import Arm, make_evidence
from tqdm import tqdm

from jaxformer.ablation.comparison import compare_runs
from jaxformer.ablation.noise_floor import NoiseFloor
from jaxformer.ablation.verdict import Measured, Word
from jaxformer.run.inputs import Data
from jaxformer.statistics.paired_difference import Difference, crossed_difference
from jaxformer.statistics.significance import INTERIM_SEEDS
from jaxformer.statistics.variance_prior import VariancePrior

# By how much more a simulated arm scatters than the arms of its prior.
SPREAD = 5.0


class Drawn(NamedTuple):
    """Differences of two equal arms."""

    bits_SI: np.ndarray
    """Bits of each seed's documents."""
    bytes_I: np.ndarray
    """UTF-8 bytes of each document."""
    parent_S: np.ndarray
    """The parent's bits per byte."""
    others_SN: np.ndarray
    """Differences of other arms of the same parent, bits per byte; no columns where a prior is not wanted."""

    def prior(self, seeds: int) -> VariancePrior | None:
        """Returns the rule's prior, by other arms' differences of the first seeds."""
        variances = {str(n): (one, seeds - 1) for n, one in enumerate(self.others_SN[:seeds].var(0, ddof=1))}
        floor = NoiseFloor(tuple(range(seeds)), tuple(self.parent_S[:seeds]), variances)
        return floor.prior("", seeds)

    def difference(self, seeds: int) -> Difference:
        """Returns that of the first seeds."""
        return crossed_difference(self.bits_SI[:seeds], self.bytes_I, prior=self.prior(seeds))

    def judge(self, seeds: int) -> Word:
        """Returns what the rule says after the first seeds, without a margin, which would keep and revert fewer."""
        return judge(Measured(self.difference(seeds), seeds, 0.0, SAME_COST, 1.0, self.prior(seeds)))


def first_word(words: Iterable[Word]) -> Word:
    """Returns what is decided where the analyses stop at the first decision."""
    return next((word for word in words if word is not Word.UNDECIDED), Word.UNDECIDED)


def tally(draw: Callable[[], Drawn], number: int) -> dict[str, Counter]:
    """Returns how often each word is decided of so many draws: at each analysis, and at the first that decides."""
    counts = {f"K = {seeds}": Counter() for seeds in INTERIM_SEEDS} | {"first decision": Counter()}
    for _ in range(number):
        drawn = draw()
        words = [drawn.judge(seeds) for seeds in INTERIM_SEEDS]
        for name, word in zip(counts, [*words, first_word(words)], strict=True):
            counts[name][word] += 1
    return counts


def redraw(arms: Mapping[str, Arm], name: str, seeds: int, random: np.random.Generator, *, moderated: bool) -> Drawn:
    """Returns some of the seeds that an arm and the parent share, and documents; the means are made equal.

    Args:
        moderated: gives the differences of all other arms on the same seeds, for a prior.
    """
    parent, arm = arms["parent"], arms[name]
    chosen = random.permutation(len(arm.bits_SI))[:seeds]
    others = [one for other, one in arms.items() if moderated and other not in ("parent", name)]
    others_SN = np.zeros((seeds, len(others)))
    for n, one in enumerate(others):
        others_SN[:, n] = one.bits_per_byte[chosen] - parent.bits_per_byte[chosen]
    return _centred(arm.bits_SI, parent.bits_SI[: len(arm.bits_SI)], chosen, chosen, parent.bytes_I, others_SN, random)


def redraw_unpaired(parent: Arm, seeds: int, random: np.random.Generator) -> Drawn:
    """Returns some seeds of the parent and as many others, called the same."""
    chosen = random.permutation(len(parent.bits_SI))[: 2 * seeds]
    nothing_SN, bits_SI = np.zeros((seeds, 0)), parent.bits_SI
    return _centred(bits_SI, bits_SI, chosen[seeds:], chosen[:seeds], parent.bytes_I, nothing_SN, random)


def _centred(ours_SI, theirs_SI, ours, theirs, bytes_I, others_SN, random: np.random.Generator) -> Drawn:
    effect = (ours_SI.mean(0) - theirs_SI.mean(0)).sum() / bytes_I.sum()
    documents = random.integers(len(bytes_I), size=len(bytes_I))
    parent_SI, drawn_I = theirs_SI[theirs][:, documents], bytes_I[documents]
    bits_SI = ours_SI[ours][:, documents] - parent_SI - effect * drawn_I
    return Drawn(bits_SI, drawn_I, parent_SI.sum(1) / drawn_I.sum(), others_SN)


class Noise(NamedTuple):
    """How the differences of some arms and their parent scatter, as fitted to trained runs."""

    covariance: np.ndarray
    """(1 + arms, 1 + arms), of a seed's parent and of its differences, bits per byte."""
    document_NI: np.ndarray
    """Bits by which a document's difference lies off the mean one, whatever the seed."""
    rest_NI: np.ndarray
    """Standard deviation of its bits from seed to seed beside that."""
    bytes_I: np.ndarray
    """UTF-8 bytes of each document."""

    def draw(
        self, n: int, seeds: int, random: np.random.Generator, *, spread: float = 1.0, moderated: bool = False
    ) -> Drawn:
        """Returns seeds and documents of an arm and a parent that do not differ in the mean.

        Args:
            spread: by how much more the arm's seeds scatter than those to which it was fitted.
            moderated: gives the differences of all other arms on the same seeds, for a prior.
        """
        chosen, mean = random.integers(len(self.bytes_I), size=len(self.bytes_I)), np.zeros(len(self.covariance))
        drawn_SN = random.multivariate_normal(mean, self.covariance, size=seeds)
        # Of the seeds' variance, the rest makes a part over the documents, which is drawn document by document.
        by_rest = (self.rest_NI[n] ** 2).sum() / self.bytes_I.sum() ** 2
        share = math.sqrt(max(0.0, 1 - by_rest / self.covariance[n + 1, n + 1]))
        moves_SI = share * drawn_SN[:, n + 1, None] * self.bytes_I[chosen]
        moves_SI += random.normal(size=moves_SI.shape) * self.rest_NI[n, chosen]
        others_SN = np.delete(drawn_SN, [0, n + 1], axis=1) if moderated else np.zeros((seeds, 0))
        bits_SI = spread * moves_SI + self.document_NI[n, chosen]
        return Drawn(bits_SI, self.bytes_I[chosen], drawn_SN[:, 0], others_SN)


def fit_noise(differences: Sequence[np.ndarray], parent: Arm, *, share_documents: bool) -> Noise:
    """Returns the noise of arms' differences (S, I) in bits, of the parent's first seeds.

    Args:
        share_documents: whether arms differ in documents whatever the seed; without, only their seeds differ.
    """
    bytes_I, document_NI, rest_NI, means = parent.bytes_I, [], [], []
    for bits_SI in differences:
        mean_S = bits_SI.sum(1) / bytes_I.sum()
        moves_SI = bits_SI - mean_S[:, None] * bytes_I
        rest_I, document_I = moves_SI.std(0, ddof=1), moves_SI.mean(0)
        # Of the variance of the documents' means, what the rest makes of it over the seeds is not the documents'.
        excess = 1 - (rest_I**2).mean() / len(bits_SI) / (document_I**2).mean()
        document_NI.append(document_I * (math.sqrt(max(0.0, excess)) if share_documents else 0.0))
        rest_NI.append(rest_I)
        means.append(mean_S)
    covariance = np.cov([parent.bits_per_byte[: len(means[0])], *means])
    return Noise(covariance, np.stack(document_NI), np.stack(rest_NI), bytes_I)


class Truth(NamedTuple):
    """An arm beside the parent, as all their runs and documents show it."""

    effect: float
    """Mean difference, bits per byte."""
    standard_deviation: float
    """Standard deviation of one seed's difference."""
    item_variance: float
    """Item variance of the effect, by the choice of documents."""
    correlation: float
    """Over seeds."""
    noise: float
    """Standard deviation of the arm's runs."""


def measure(parent: Arm, arm: Arm) -> Truth:
    """Returns what is taken for the truth of an arm."""
    seeds = len(arm.bits_SI)
    full = crossed_difference(arm.bits_SI - parent.bits_SI[:seeds], arm.bytes_I)
    ours_S, theirs_S = arm.bits_per_byte, parent.bits_per_byte[:seeds]
    deviation, correlation = (ours_S - theirs_S).std(ddof=1), np.corrcoef(ours_S, theirs_S)[0, 1]
    return Truth(full.mean, float(deviation), full.item_variance, float(correlation), arm.noise)


def pair_equals(parent: Arm, data: Data, seeds: int, pairs: int) -> dict[str, Counter]:
    """Returns the verdicts on pairs of arms of the parent's runs, each run in one arm of one pair.

    Where there are seeds for all analyses, those at the first decision too.
    """
    counts = {f"K = {seeds}": Counter()} | ({"first decision": Counter()} if seeds == INTERIM_SEEDS[-1] else {})
    for pair in range(min(pairs, len(parent.bits_SI) // (2 * seeds))):
        first = range(2 * seeds * pair, 2 * seeds * pair + seeds)
        arms = [make_evidence(parent, data, chosen) for chosen in (first, range(first.stop, first.stop + seeds))]
        analyses = [k for k in INTERIM_SEEDS if k <= seeds] if len(counts) > 1 else [seeds]
        words = [compare_runs(*(arm[:k] for arm in arms), rule=RULE, allow=("batches",)).verdict.word for k in analyses]
        for name, word in zip(counts, (words[-1], first_word(words)), strict=False):
            counts[name][word] += 1
    return counts


def judge_equals(
    arms: dict[str, Arm], data: Data, pairs: int, simulated: int, random: np.random.Generator
) -> dict[str, Counter]:
    """Returns the verdicts on equals by what they are and when they are analysed."""
    parent, names = arms["parent"], [name for name in arms if name != "parent"]
    seeds, half, last = len(arms[names[0]].bits_SI), len(parent.bits_SI) // 2, INTERIM_SEEDS[-1]
    bits_SI = parent.bits_SI
    unpaired = fit_noise([bits_SI[half : 2 * half] - bits_SI[:half]], parent, share_documents=False)
    paired = fit_noise([arms[name].bits_SI - bits_SI[:seeds] for name in names], parent, share_documents=True)
    widest = max(names, key=lambda name: measure(parent, arms[name]).standard_deviation)

    def of_any() -> int:
        return int(random.integers(len(names)))

    kinds = {
        "other seeds, redrawn": lambda: redraw_unpaired(parent, last, random),
        "other seeds, simulated": lambda: unpaired.draw(0, last, random),
        "same seeds, redrawn": lambda: redraw(arms, names[of_any()], last, random, moderated=False),
        "same seeds, simulated": lambda: paired.draw(of_any(), last, random),
        "prior, redrawn": lambda: redraw(arms, names[of_any()], last, random, moderated=True),
        f"prior, redrawn, {widest}": lambda: redraw(arms, widest, last, random, moderated=True),
        "prior, simulated": lambda: paired.draw(of_any(), last, random, moderated=True),
        f"prior, simulated, {widest}": lambda: paired.draw(names.index(widest), last, random, moderated=True),
        f"prior, simulated, {SPREAD:g} x as spread": lambda: paired.draw(
            of_any(), last, random, spread=SPREAD, moderated=True
        ),
    }
    trained = {}
    for number in (INTERIM_SEEDS[0], last):
        trained |= pair_equals(parent, data, number, pairs)
    found = {"other seeds, trained": trained}
    for kind, draw in tqdm(kinds.items(), desc="equals", leave=False, disable=None):
        found[kind] = tally(draw, simulated)
    return {f"{kind}, {when}": counts for kind, analyses in found.items() for when, counts in analyses.items()}
