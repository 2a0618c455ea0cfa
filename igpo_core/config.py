"""What an experiment is: one tree of settings, importable without torch.

Class defaults are the vetted laptop settings; presets in deployments/presets change them. Unknown keys are errors.
Limits stand in Field() so that Prefect's form refuses a bad value before a run exists.
"""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Source = Literal["hotpotqa", "2wikimultihopqa", "musique", "nq", "triviaqa", "popqa", "bamboogle", "custom"]
Decoding = Literal["sampled", "greedy"]
Share = Annotated[float, Field(ge=0, le=1)]


class Settings(BaseModel):
    """Frozen, and closed: a key that is not declared raises."""

    model_config = ConfigDict(frozen=True, extra="forbid")


# ---------------------------------------------------------------------------------------------------------- data


class LookupWorld(Settings):
    """World `lookup`: a chain of facts that can be known only by searching; the gold is named by the last one alone.

    "who is the r3 of the r2 of the r1 of F5 ?"; a search "r of E" finds the fact when it is on the question's chain.
    """

    kind: Literal["lookup"] = "lookup"
    seed: int = Field(0, description="Seed of the questions; the same for every arm and run seed.")
    hops: int = Field(3, ge=1, le=8, description="Facts between the question and its answer.")
    names: int = Field(40, ge=4, le=1000, description="Names in the vocabulary.")
    people: int = Field(32, ge=4, le=1000, description="People in one question's world.")
    distractors: int = Field(0, ge=0, le=8, description="Facts off the chain that each search result carries besides.")
    train: int = Field(4096, ge=1, description="Training questions.")
    dev: int = Field(512, ge=1)
    test: int = Field(512, ge=1)

    @model_validator(mode="after")
    def _people_have_names(self) -> "LookupWorld":
        if self.people > self.names:
            raise ValueError(f"people={self.people} exceeds names={self.names}: raise names or lower people")
        if self.people <= self.hops:
            raise ValueError(f"people={self.people} cannot form a chain of {self.hops} hops: raise people")
        return self


class AtlasWorld(Settings):
    """World `atlas`: each hop's result narrows the answer (continent, country, city), so belief grows hop by hop.

    The tool understands key words @i; which relation word means which key is fixed and never taught.
    """

    kind: Literal["atlas"] = "atlas"
    seed: int = Field(0, description="Seed of the questions and of the geography.")
    hops: int = Field(3, ge=2, le=5)
    names: int = Field(40, ge=6, le=1000)
    key_count: int = Field(
        12, ge=6, le=64, description="Key words the tool knows; a blind hit has chance 1 / key_count."
    )
    continents: int = Field(4, ge=2, le=16)
    branching: int = Field(4, ge=2, le=16, description="Countries in a continent, and cities in a country.")
    train: int = Field(4096, ge=1)
    dev: int = Field(512, ge=1)
    test: int = Field(512, ge=1)


class QuestionFile(Settings):
    """One question file, and the split of its rows that name none (official files hold one split each)."""

    path: Path
    split: Literal["train", "dev", "test"] | None = None


class BM25Search(Settings):
    """BM25 over the corpus, on this machine."""

    kind: Literal["bm25"] = "bm25"


class DenseSearch(Settings):
    """Nearest passages by the inner product of a sentence-transformers model's normalised embeddings (extra [dense])."""

    kind: Literal["dense"] = "dense"
    model: str = Field(min_length=1, description="Hub name or folder of a sentence-transformers model.")
    revision: str | None = None
    query_prefix: str = Field("", description='What the model wants before a query ("query: " for E5).')
    passage_prefix: str = Field("", description='.. and before a passage ("passage: " for E5).')
    index: Literal["exact", "faiss"] = Field(
        "exact", description="exact: all inner products; faiss: HNSW, approximate."
    )
    batch_size: int = Field(256, ge=1, description="Passages encoded at a time.")


class HttpSettings(Settings):
    """How a service is called (igpo_core/http.py)."""

    url: str = Field(pattern=r"^https?://", description="Where it answers.")
    key_variable: str = Field(pattern=r"^[A-Z][A-Z0-9_]*$", description="Environment variable that holds the key.")
    concurrency: int = Field(16, ge=1, le=1024, description="Calls at a time, of a process.")
    rate: float | None = Field(None, gt=0, description="Calls a second, of all processes together.")
    timeout: float = Field(20.0, gt=0, description="Seconds for one call.")
    attempts: int = Field(4, ge=1, le=20, description="Calls for one answer, where the failure may pass.")
    max_bytes: int = Field(2_000_000, ge=1000, description="Of an answer.")
    max_calls: int = Field(100_000, ge=1, description="Calls in all, shared by all processes.")


class WebSearch(HttpSettings):
    """Search by HTTP (igpo_core/retrieval/web.py). Results are pinned in a cache that all runs share."""

    kind: Literal["web"] = "web"
    api: Literal["serper", "bing", "retriever"] = Field(description="retriever: Search-R1's form, which needs no key.")
    key_variable: str = Field("SEARCH_API_KEY", pattern=r"^[A-Z][A-Z0-9_]*$")
    mode: Literal["live", "replay"] = Field("live", description="replay: the cache alone; what it lacks is a failure.")
    parameters: dict[str, str | int] = Field({}, description="Sent with every query (language, country, ...).")
    max_failure_share: Share = Field(0.1, description="Of recent searches; above it the run stops.")


SearchConfig = Annotated[BM25Search | DenseSearch | WebSearch, Field(discriminator="kind")]


class QuestionFiles(Settings):
    """Question tables and a passage corpus from files, in any format that igpo_core.data reads."""

    kind: Literal["files"] = "files"
    questions: tuple[QuestionFile, ...] = Field(min_length=1, description="Question files, each with its split.")
    corpus: tuple[Path, ...] = Field(
        (), description="Passage files; an official question file serves with its paragraphs. None for web search."
    )
    search: SearchConfig = Field(default_factory=BM25Search)
    evaluation: Path | None = Field(None, description="A question file whose rows become the test split.")
    only_answerable: bool = Field(True, description="Drop rows that their table marks as not answerable.")
    sources: tuple[Source, ...] = Field((), description="Keep these sources only; empty: all.")
    min_train: int = Field(1, ge=1, description="Fewer good train rows than this stops the flow.")
    min_dev: int = Field(1, ge=1)
    min_test: int = Field(1, ge=1)
    max_question_words: int = Field(200, ge=1)
    max_answer_words: int = Field(30, ge=1, description="Longer aliases are dropped; a row left with none is bad.")
    top_k: int = Field(5, ge=1, le=100, description="Passages in an observation.")
    max_passage_words: int = Field(100, ge=1, description="A longer passage is cut there in the observation.")

    @model_validator(mode="after")
    def _corpus_to_search(self) -> "QuestionFiles":
        if bool(self.corpus) is isinstance(self.search, WebSearch):
            raise ValueError(
                f"search.kind={self.search.kind} with {len(self.corpus)} corpus files: bm25 and dense search a corpus, web "
                "search has none; give data.corpus, or leave it out"
            )
        return self


DataConfig = Annotated[LookupWorld | AtlasWorld | QuestionFiles, Field(discriminator="kind")]


# -------------------------------------------------------------------------------------------------------- policy


class Lora(Settings):
    """A low-rank adapter is trained, in float32, in place of the model's weights (extra [lora])."""

    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1, description="The adapter's output is scaled by alpha / rank.")
    targets: Literal["all-linear"] | tuple[str, ...] = Field(
        "all-linear", description="Names of the layers that get an adapter; all-linear: all but the output head."
    )


class NewPolicy(Settings):
    """A small random causal LM, built here. `words`: the world's own vocabulary, one token a word.
    `chat`: a byte-level BPE trained on the corpus, with Qwen2.5's control tokens and a ChatML template."""

    kind: Literal["new"] = "new"
    architecture: Literal["llama", "qwen2"] = "llama"
    tokenizer: Literal["words", "chat"] = "words"
    vocabulary: int = Field(4096, ge=300, description="Size of the BPE vocabulary (tokenizer `chat` only).")
    width: int = Field(96, ge=8)
    layers: int = Field(3, ge=1)
    heads: int = Field(4, ge=1)
    key_value_heads: int = Field(4, ge=1)
    feed_forward: int = Field(192, ge=8)
    window: int = Field(1024, ge=32, description="Longest sequence in tokens, an answer probe included.")

    @model_validator(mode="after")
    def _heads_divide(self) -> "NewPolicy":
        if self.width % self.heads or self.heads % self.key_value_heads:
            raise ValueError(
                f"width={self.width} must be a multiple of heads={self.heads}, and heads of "
                f"key_value_heads={self.key_value_heads}: change one of them"
            )
        return self


class PretrainedPolicy(Settings):
    """A causal LM with a chat template, from a hub name or a folder; safetensors only, remote code off unless asked for."""

    kind: Literal["pretrained"] = "pretrained"
    name: str = Field(min_length=1, description="Hub name or path.")
    revision: str | None = None
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="What is computed in. Trained weights are float32 in either case: with bfloat16 they are cast as they "
        "are used; weights that LoRA leaves alone are kept in it.",
    )
    lora: Lora | None = None
    trust_remote_code: bool = Field(False, description="Run the code that comes with the model. Know whose it is.")


PolicyConfig = Annotated[NewPolicy | PretrainedPolicy, Field(discriminator="kind")]


# ---------------------------------------------------------------------------------------------------- warm start


class LookupDemonstrations(Settings):
    """How careful the demonstrator of world `lookup` is; each value is a probability."""

    kind: Literal["lookup"] = "lookup"
    right_query: tuple[Share, Share] = Field((0.2, 1.0), description="Range; each demonstration draws its own rate.")
    stop_early: Share = Field(0.05, description="Answers before the chain is complete.")
    answer_when_done: Share = 0.8
    wrong_answer: Share = Field(0.0, description="Names the person in the question or one mentioned in the results.")
    lazy_query: Share = Field(0.3, description="A wrong query asks the outermost relation of the person named.")


class AtlasDemonstrations(Settings):
    """How the demonstrator of world `atlas` searches. The key token is trained towards a soft target."""

    kind: Literal["atlas"] = "atlas"
    right_history: tuple[Share, Share] = Field(
        (0.4, 1.0), description="Range of the rate of right keys in the history."
    )
    right_key: Share | None = Field(None, description="Probability of the right key in the target; None: uniform.")
    stop_early: Share = 0.1
    answer_when_done: Share = 0.9
    geography_lines: int = Field(0, ge=0, description="Lines of geography lessons added to each batch.")
    geography_weight: float = Field(5.0, ge=0)


class FileDemonstrations(Settings):
    """Demonstrations over a corpus: search for the supporting titles, then answer. They teach the format."""

    kind: Literal["files"] = "files"
    max_searches: int = Field(2, ge=1)


class WarmStartStage(Settings):
    """A run of supervised steps: AdamW, linear warm-up, cosine from learning_rate to final_share of it."""

    steps: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    final_share: Share = Field(0.1, description="Share of the learning rate at the stage's end.")
    batch_size: int = Field(64, ge=1)
    warmup_steps: int = Field(50, ge=0)
    demonstrations: LookupDemonstrations | AtlasDemonstrations | FileDemonstrations = Field(discriminator="kind")


class WarmStart(Settings):
    """Supervised stages before reinforcement learning; shared by every arm of a seed."""

    stages: tuple[WarmStartStage, ...] = Field(min_length=1)


# ------------------------------------------------------------------------------------------------- reward, update


GainName = Literal["log_prob_diff", "prob_diff", "log_ratio_gap", "watermark", "first_exposure", "leave_one_turn_out"]


class RewardConfig(Settings):
    """Where the learning signal comes from: an arm (docs/arms.md). Each is a closed choice, and they combine freely; a
    choice that the others leave without effect is refused, for an arm that says it must not be one that lacks it."""

    reward: Literal["outcome_and_gain", "outcome_only", "gain_only", "gigpo"] = Field(
        "outcome_and_gain", description="gigpo: outcome and the return among turns that had seen the same passages."
    )
    gain: GainName = Field("log_prob_diff", description="What a turn earns (igpo_core/rewards/gains.py).")
    credit: Literal["turn", "observation", "query", "trajectory"] = Field(
        "turn",
        description="What is credited: the whole turn; its observation against an empty one; the query's tokens, against "
        "other questions' observations; or all gains at once at the end (belief return).",
    )
    shuffle_gains: bool = Field(False, description="Control: gains permuted among the turns of the group.")
    normalization: Literal["separate", "joint", "raw", "turn_group", "none"] = "separate"
    turn_group_size: int = Field(3, ge=2, description="Of turn_group: fewer turns than this use the question's pool.")
    baseline: Literal["group_mean", "leave_one_out", "batch_mean"] = Field(
        "group_mean", description="What is subtracted: GRPO's, RLOO's (with scale none), REINFORCE++'s."
    )
    scale: Literal["std", "none"] = "std"
    eps: float = Field(1e-6, gt=0)
    gamma: float = Field(1.0, ge=0, le=1, description="Discount of turn returns.")
    accumulation: Literal["sum", "root", "window"] = Field(
        "sum", description="root: the sum over the root of its length; window: the mean of the next `window` gains."
    )
    window: int = Field(3, ge=1, description="Gains that accumulation=window looks ahead.")
    outcome_credit: Literal["return", "broadcast"] = Field(
        "return", description="The outcome at the end of the discounted sum, or the same for every turn beside it."
    )
    gain_weight: float = Field(1.0, gt=0, description="Multiplies normalised gains.")
    gain_weight_end: float | None = Field(None, ge=0, description="The weight moves linearly from gain_weight to this,")
    gain_weight_steps: int = Field(0, ge=0, description=".. within so many steps.")
    gain_scale: Literal["none", "match_outcome"] = Field(
        "none", description="match_outcome: the batch's mean |gain| is brought to that of its outcomes."
    )
    gate: Literal["none", "sign", "outcome_spread"] = Field(
        "none",
        description="sign: a gain counts where its normalised value has its sign; outcome_spread: gains fade where "
        "outcomes differ.",
    )
    gate_temperature: float = Field(0.5, gt=0, description="Of gate=outcome_spread.")
    scorer: Literal["current", "lagged", "frozen"] = Field(
        "current", description="Whose beliefs: the policy's, or older."
    )
    scorer_steps: int = Field(10, ge=1, description="Steps between copies of scorer=lagged.")
    aliases: Literal["logsumexp", "max", "shortest", "first"] = Field(
        "logsumexp", description="How the beliefs in several accepted answers become one."
    )
    outcome: Literal["f1", "paper_f1"] = Field("f1", description="f1: SQuAD's; paper_f1: the authors' (token sets).")
    format_penalty: float = Field(-1.0, le=0, description="For a trajectory without a well-formed answer.")
    penalty_on: Literal["trajectory", "apart", "turn"] = Field(
        "trajectory",
        description="The penalty is the outcome; or its normalised value, kept out of the outcomes' pool; or is charged to "
        "the last turn alone.",
    )
    belief_tokens: int = Field(2048, ge=1, description="Most tokens in one scoring pass; small suits a CPU's cache.")

    @property
    def needs_gain(self) -> bool:
        """Whether turns earn something of their own."""
        return self.reward in ("outcome_and_gain", "gain_only")

    @property
    def needs_beliefs(self) -> bool:
        """Whether a model is asked for beliefs; otherwise no scoring pass is made at all."""
        return self.needs_gain and self.gain != "first_exposure"

    @property
    def beliefs_while_rolling_out(self) -> bool:
        """Whether the beliefs at turn boundaries are the policy's own, so that they ride in its rollout."""
        of_boundaries = self.gain != "leave_one_turn_out" and self.credit in ("turn", "trajectory")
        return self.needs_beliefs and self.scorer == "current" and of_boundaries

    @model_validator(mode="after")
    def _impossible(self) -> "RewardConfig":
        if self.reward == "gain_only" and self.normalization == "joint":
            raise ValueError(
                "reward=gain_only has no outcomes to share a pool with (their zeros would price turns): use "
                "normalization=separate"
            )
        if self.credit in ("observation", "query") and self.gain not in ("log_prob_diff", "prob_diff"):
            raise ValueError(
                f"credit={self.credit} compares two beliefs of one turn: use gain=log_prob_diff or prob_diff, not {self.gain}"
            )
        if self.credit in ("query", "trajectory") and self.normalization in ("joint", "turn_group"):
            raise ValueError(
                f"credit={self.credit} adds gains beside the outcome: normalization={self.normalization} has no such pool; use "
                "separate, raw or none"
            )
        if self.normalization == "joint" and self.penalty_on == "apart":
            raise ValueError(
                "penalty_on=apart keeps the penalty out of the outcomes' pool, and normalization=joint has one pool for all: "
                "use normalization=separate"
            )
        if self.accumulation != "sum" and self.outcome_credit == "return":
            raise ValueError(f"accumulation={self.accumulation} is of gains alone: set outcome_credit=broadcast")
        return self

    @model_validator(mode="after")
    def _no_inert_choice(self) -> "RewardConfig":
        for name, reason in self.ignored().items():
            if name in self.model_fields_set and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{reason} ignores {name}: leave it out")
        return self

    def ignored(self) -> dict[str, str]:
        """Choices that the other ones leave without effect, and by which of them."""
        found: dict[str, str] = {}

        def ignore(names: str, reason: str) -> None:
            for name in names.split():
                found.setdefault(name, reason)

        of_gains = "gain credit shuffle_gains normalization gain_scale gate scorer aliases accumulation outcome_credit"
        if not self.needs_gain:
            ignore(of_gains, f"reward={self.reward}")
        if self.reward == "outcome_only":
            ignore("gamma gain_weight gain_weight_end", "reward=outcome_only")
        if self.reward == "gain_only":
            ignore("outcome outcome_credit gain_scale", "reward=gain_only")
            if self.gate == "outcome_spread":
                ignore("gate", "reward=gain_only")
            if self.penalty_on != "turn":
                ignore("format_penalty penalty_on", "reward=gain_only, except with penalty_on=turn,")
        if self.gain == "first_exposure":
            ignore("aliases scorer", "gain=first_exposure")
        if self.credit in ("query", "trajectory"):
            ignore("gamma accumulation outcome_credit", f"credit={self.credit}")
        if self.credit == "trajectory":
            ignore("shuffle_gains", "credit=trajectory")
        if self.normalization in ("raw", "none") and self.gate == "sign":
            ignore("gate", f"normalization={self.normalization}, which changes no sign,")
        if self.normalization != "turn_group":
            ignore("turn_group_size", "any normalization but turn_group")
        if self.accumulation != "window":
            ignore("window", "any accumulation but window")
        if self.gate != "outcome_spread":
            ignore("gate_temperature", "any gate but outcome_spread")
        if self.scorer != "lagged":
            ignore("scorer_steps", "any scorer but lagged")
        if self.gain_weight_end is None:
            ignore("gain_weight_steps", "a constant gain_weight")
        elif self.gain_weight_steps == 0:
            ignore("gain_weight_end", "gain_weight_steps=0")
        if self.normalization == "turn_group" and self.baseline == "batch_mean":
            ignore("baseline", "normalization=turn_group, whose pools are a question's,")
        return found


class RolloutConfig(Settings):
    """How trajectories are sampled."""

    questions: int = Field(16, ge=1, description="Questions a step.")
    group_size: int = Field(8, description="Trajectories a question, at least two.")
    max_turns: int = Field(6, ge=1, le=64, description="Model turns, the answer included.")
    max_new_tokens: int = Field(16, ge=1, description="Sampled tokens a turn.")
    max_tokens: int = Field(512, ge=16, description="Tokens of a whole trajectory.")
    temperature: float = Field(1.0, gt=0, description="Of training rollouts and of `sampled` evaluation.")
    batch_size: int = Field(256, ge=1, description="Trajectories that share one KV cache.")

    @field_validator("group_size")
    @classmethod
    def _group_has_spread(cls, size: int) -> int:
        if size < 2:
            raise ValueError(f"a group of {size} has no spread to learn from: give at least 2 trajectories a question")
        return size


class OptimizerConfig(Settings):
    """AdamW and the clipped surrogate."""

    learning_rate: float = Field(3e-4, gt=0)
    warmup_steps: int = Field(0, ge=0, description="Linear warm-up; constant afterwards.")
    betas: tuple[Share, Share] = (0.9, 0.99)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    clip_low: float = Field(0.2, gt=0, lt=1)
    clip_high: float = Field(0.2, gt=0)
    kl_coefficient: float = Field(0.0, ge=0, description="k3 estimate to the start of the run; 0: no reference pass.")
    entropy_coefficient: float = Field(0.0, ge=0)
    denominator: Literal["sequence", "token", "constant"] = Field(
        "sequence",
        description="sequence: mean over trajectories of the mean over their tokens; token: over all tokens; constant: "
        "over as many as could be sampled (Dr. GRPO).",
    )
    dead_groups: Literal["keep", "drop"] = Field(
        "keep", description="Whether groups without any advantage count in the denominator."
    )
    ratio: Literal["token", "turn", "sequence"] = Field(
        "token", description="What the probability ratio is of; sequence: GSPO. The same with one update a step."
    )
    updates_per_step: int = Field(1, ge=1, description="Updates on the same rollouts; with 1 the ratio is 1.")
    tokens_per_batch: int = Field(2048, ge=1, description="Most tokens (padding included) in one forward pass.")
    gradient_checkpointing: bool = Field(
        False,
        description="Keep each layer's input alone and compute the rest again on the way back: less memory, 4/3 time.",
    )

    @model_validator(mode="after")
    def _on_policy_ratio_is_one(self) -> "OptimizerConfig":
        inert = [name for name in ("ratio", "clip_low", "clip_high") if name in self.model_fields_set]
        inert = [name for name in inert if getattr(self, name) != type(self).model_fields[name].default]
        if self.updates_per_step == 1 and inert:
            raise ValueError(
                f"updates_per_step=1 ignores {', '.join(inert)}: the ratio is 1 on rollouts of the policy itself; leave it out, "
                "or set updates_per_step to 2 or more"
            )
        return self


class TrainingConfig(Settings):
    """How long, and how often it is saved. Every arm of a comparison has the same budget."""

    epochs: int = Field(4, ge=1)
    steps_per_epoch: int = Field(10, ge=1)
    budget: Literal["steps", "sampled_tokens", "seconds"] = Field(
        "steps",
        description="What is equal for all arms. steps: and with them rollouts. sampled_tokens, seconds (of steps, which no "
        "two runs repeat to the bit): a run ends with the step that reaches `amount`, at the latest with its last epoch.",
    )
    amount: float | None = Field(None, gt=0, description="Of sampled tokens or seconds.")
    threads: int = Field(1, ge=1, description="Torch threads of the training process.")

    @property
    def steps(self) -> int:
        """The most steps that are made."""
        return self.epochs * self.steps_per_epoch

    @model_validator(mode="after")
    def _amount_of_budget(self) -> "TrainingConfig":
        if (self.amount is None) is not (self.budget == "steps"):
            raise ValueError(
                f"training.budget={self.budget} with amount={self.amount}: sampled_tokens and seconds need an amount, and "
                "steps are given by epochs and steps_per_epoch"
            )
        return self


class JudgeSettings(HttpSettings):
    """A language model that judges the test's answers (igpo_core/judge.py), at an endpoint like OpenAI's."""

    model: str = Field(min_length=1)
    key_variable: str = Field("JUDGE_API_KEY", pattern=r"^[A-Z][A-Z0-9_]*$")
    timeout: float = Field(60.0, gt=0, description="Seconds for one call.")


class EvaluationConfig(Settings):
    """What is evaluated. Dev during training; test once, at the end."""

    every: int = Field(5, ge=1, description="Steps between evaluations on dev.")
    dev_questions: int = Field(128, ge=1)
    test_questions: int = Field(512, ge=1)
    decoding: tuple[Decoding, ...] = Field(
        ("sampled", "greedy"), min_length=1, description="The first is the headline."
    )
    threshold: float = Field(
        0.5, gt=0, le=1, description="Dev F1 whose first reaching gives steps, tokens and seconds."
    )
    traces: int = Field(4, ge=0, description="Test trajectories logged as MLflow traces.")
    diagnostics: int = Field(
        32, ge=0, description="Training trajectories whose beliefs are looked into at each evaluation, in every arm."
    )
    judge: JudgeSettings | None = Field(
        None, description="Judges the test's answers, first decoding, at the run's end."
    )
    kept: int = Field(4, ge=0, description="Of these, kept whole for the report's trajectory viewer.")


class ExperimentConfig(Settings):
    """One training run, whole: with a seed and a data version it determines every number."""

    seed: int = Field(0, ge=0)
    replicate: int = Field(
        0, ge=0, description="Another draw of the training rollouts from the same start: for A/A comparisons."
    )
    data: DataConfig = Field(default_factory=LookupWorld)
    policy: PolicyConfig = Field(default_factory=NewPolicy)
    warm_start: WarmStart | None = None
    reward: RewardConfig = Field(default_factory=RewardConfig)
    rollout: RolloutConfig = Field(default_factory=RolloutConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)

    @model_validator(mode="after")
    def _fits_together(self) -> "ExperimentConfig":
        if isinstance(self.policy, NewPolicy):
            if self.policy.tokenizer == "words" and self.data.kind == "files":
                raise ValueError(
                    "policy.tokenizer=words knows a synthetic world's words only: use tokenizer=chat for files"
                )
            if self.policy.tokenizer == "chat" and self.data.kind != "files":
                raise ValueError(
                    "policy.tokenizer=chat is trained on a corpus, which a synthetic world lacks: use words"
                )
            if self.rollout.max_tokens > self.policy.window:
                raise ValueError(
                    f"rollout.max_tokens={self.rollout.max_tokens} exceeds policy.window={self.policy.window}: "
                    "lower the one or raise the other"
                )
        if self.reward.needs_gain and self.reward.credit == "query" and self.rollout.questions < 2:
            raise ValueError(
                "reward.credit=query compares with what other questions' searches returned: set rollout.questions to 2 or more"
            )
        for number, stage in enumerate(self.warm_start.stages if self.warm_start else (), start=1):
            if stage.demonstrations.kind != self.data.kind:
                raise ValueError(
                    f"warm_start stage {number} has demonstrations of kind {stage.demonstrations.kind!r} but data is of "
                    f"kind {self.data.kind!r}: use kind {self.data.kind!r}"
                )
        return self


def fingerprint(*parts: Any) -> str:
    """Twelve hex digits that change when any part does. Parts are JSON values or settings."""
    plain = [part.model_dump(mode="json") if isinstance(part, BaseModel) else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]


def code_on_disk() -> str:
    """A hash of igpo_core's source files as they are now, and of the versions of what it computes with."""
    digest = hashlib.sha256()
    for library in ("torch", "transformers"):  # another version may give other bits
        digest.update(version(library).encode() + b"\0")
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


_IMPORTED = code_on_disk()


def code_version() -> str:
    """code_on_disk when this process imported igpo_core: what computes a result is part of its identity."""
    return _IMPORTED
