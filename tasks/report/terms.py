"""The words of a report, explained on its own page."""

TERMS: tuple[tuple[str, str], ...] = (
    (
        "arm",
        "One way to reward. All arms of a seed start from the same weights and meet the same tasks in the same order.",
    ),
    ("seed", "One repetition: its own warm start and its own draws. Arms are compared seed by seed."),
    ("rollout, turn", "A rollout is one attempt at a task. A turn is a thought with a tool call, or with the answer."),
    (
        "belief",
        "The probability that the policy gives the right answer now, if it had to answer (geometric mean over its tokens).",
    ),
    (
        "gain",
        "What a turn earns of itself: in most arms, what it adds to the belief, in the unit that the figure names.",
    ),
    (
        "gain from ..",
        "Parts of a turn's gain in nats: from the thought that the policy wrote, and from what the tool gave. Measured at "
        "evaluated steps with the weights after the step's update, so that arms differ from the first value on.",
    ),
    ("advantage", "What an update pays a turn, after gains and outcomes were normalised within a group."),
    ("group", "The rollouts of one task in one step. They are compared with one another."),
    ("dead groups", "The share of groups in which every advantage is zero: nothing is learned from them."),
    ("hop", "One fact of a chain that a task asks for; `miss`: the call found none."),
    ("format penalty", "What a rollout without a well-formed answer is charged, and where."),
    ("warm start", "Supervised steps before the comparison, which teach the form and make the skill as rare as it is."),
    (
        "difference [95%]",
        "Mean over seeds of the paired differences, and the differences that the sign-flip test does not reject.",
    ),
    (
        "verdict, p",
        "Of an exact sign-flip test over seeds, adjusted for the arms compared (Benjamini and Hochberg). Intervals are not.",
    ),
    ("P(better)", "The share of pairs of seeds in which the arm wins; ties count half."),
    ("IQM", "Interquartile mean: of the middle half of the seeds. One collapsed seed does not move it."),
    (
        "sampled, greedy",
        "Decodings of the test: tokens drawn as in training, or the likeliest ones. The first that is asked for is the headline.",
    ),
    ("best-by-dev", "The test of the checkpoint that was best on dev, beside the last one's."),
    (
        "seeds for margin",
        "Seeds that a true difference of the margin would need for a verdict, at the spread seen (80% power).",
    ),
    ("reached", "How many runs reached the threshold on dev, and the median of what that took; > : more than was run."),
    ("EARLY ANSWERS", "An alarm: the policy stopped using its tools, and answers wrongly."),
    ("ENDLESS CALLING", "An alarm: most rollouts spend all their turns on tool calls."),
    ("MALFORMED TURNS", "An alarm: most rollouts end in a turn that is neither a call nor an answer."),
    (
        "NO GAIN",
        "An alarm: in a whole run the gains of every group were none, zero or alike, so that the arm was the outcome alone.",
    ),
)
