"""How large a change a night's check can see, by its number of seeds.

python -m benchmarks.check_seeds

Changes of one arm's difference are drawn from the seven between two kinds of processor, which draws everything anew
(docs/results.md, "The default comparison": igpo_rms), centred and with random signs. So nothing changed on the whole. Told is how
often a check says that the verdict stands, how often that it moved, how often it sees that all of the effect is gone where it is,
and below which size half of the checks see no change; two arms are compared.
"""

import numpy as np

from tasks.report.standing import Change, changes

BASELINE = ([0.393, 0.345, 0.298, 0.070, 0.483, 0.366, 0.383], [0.353, 0.298, 0.323, 0.307, 0.452, 0.379, 0.300])
IGPO_RMS = ([0.616, 0.420, 0.470, 0.622, 0.602, 0.512, 0.456], [0.594, 0.462, 0.534, 0.638, 0.605, 0.457, 0.489])
CHECKS = 400


def main() -> None:
    before, after = (np.subtract(arm, base) for arm, base in zip(IGPO_RMS, BASELINE, strict=True))
    observed, effect = after - before, float(before.mean())
    unrelated = np.sqrt(before.var(ddof=1) + after.var(ddof=1))
    print(
        f"an effect of {effect:+.3f}; seed by seed it changes by {observed.mean():+.3f}, with a standard deviation of"
    )
    print(f"{observed.std(ddof=1):.3f}; two differences of unrelated seeds would have {unrelated:.3f}")
    for seeds in (7, 8, 10, 14):
        rng = np.random.default_rng(seeds)
        drawn = rng.choice(observed - observed.mean(), (CHECKS, seeds)) * rng.choice([-1.0, 1.0], (CHECKS, seeds))
        kept, gone = ([check(line + shift, effect) for line in drawn] for shift in (0.0, -effect))
        print(
            f"{seeds:3d} check seeds, {CHECKS} checks: stands in {np.mean([one.stands for one in kept]):.1%}, moved in "
            f"{np.mean([one.moved for one in kept]):.1%}; seen where all is gone in {np.mean([one.moved for one in gone]):.1%}; "
            f"not seen below {np.median([one.unseen for one in kept]):.3f}"
        )


def check(drawn: np.ndarray, effect: float) -> Change:
    """The change of an arm, another arm being looked at besides. drawn: by seed."""
    base = dict.fromkeys(range(len(drawn)), 0.0)
    study = {"": {"base": base, "arm": dict.fromkeys(base, effect), "other": base}}
    now = {"": {"base": base, "arm": {seed: effect + float(by) for seed, by in enumerate(drawn)}, "other": base}}
    return changes(study, now, "base", list(base))[0]


if __name__ == "__main__":
    main()
