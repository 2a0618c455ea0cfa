"""What an experiment is: one tree of settings, importable without torch.

Class defaults are the vetted laptop settings; presets in deployments/presets change them. Unknown keys are errors.
Limits stand in Field() so that Prefect's form refuses a bad value before a run exists.
"""

from igpo_core.config.data import DataConfig
from igpo_core.config.expect import Expectation
from igpo_core.config.experiment import ExperimentConfig
from igpo_core.config.identity import code_on_disk, code_version, fingerprint
from igpo_core.config.plan import Plan, RunSpec, make_plan, plan_run, warm_start_key
from igpo_core.config.policy import (
    Lora,
    NewPolicy,
    PolicyConfig,
    PretrainedPolicy,
    WarmStart,
    WarmStartStage,
)
from igpo_core.config.reward import Reward, RewardConfig, reward_of
from igpo_core.config.specification import AblationSpecification, Until
from igpo_core.config.training import (
    ContinuousEngine,
    EngineConfig,
    EvaluationConfig,
    JudgeSettings,
    OptimizerConfig,
    RolloutConfig,
    TrainingConfig,
    TransformersEngine,
    VllmEngine,
)
from igpo_core.environments.atlas import AtlasDemonstrations, AtlasWorld
from igpo_core.environments.calculator import CalculatorDemonstrations, CalculatorWorld
from igpo_core.environments.lookup import LookupDemonstrations, LookupWorld
from igpo_core.environments.question_files import (
    BM25Search,
    DenseSearch,
    FileDemonstrations,
    QuestionFile,
    QuestionFiles,
    SearchConfig,
    Suites,
    WebSearch,
)
from igpo_core.http_settings import HttpSettings
from igpo_core.settings import Decoding, Settings, Share, Source

__all__ = [
    "AblationSpecification",
    "AtlasDemonstrations",
    "AtlasWorld",
    "BM25Search",
    "CalculatorDemonstrations",
    "CalculatorWorld",
    "ContinuousEngine",
    "DataConfig",
    "Decoding",
    "DenseSearch",
    "EngineConfig",
    "EvaluationConfig",
    "Expectation",
    "ExperimentConfig",
    "FileDemonstrations",
    "HttpSettings",
    "JudgeSettings",
    "LookupDemonstrations",
    "LookupWorld",
    "Lora",
    "NewPolicy",
    "OptimizerConfig",
    "Plan",
    "PolicyConfig",
    "PretrainedPolicy",
    "QuestionFile",
    "QuestionFiles",
    "Reward",
    "RewardConfig",
    "RolloutConfig",
    "RunSpec",
    "SearchConfig",
    "Settings",
    "Share",
    "Source",
    "Suites",
    "TrainingConfig",
    "TransformersEngine",
    "Until",
    "VllmEngine",
    "WarmStart",
    "WarmStartStage",
    "WebSearch",
    "code_on_disk",
    "code_version",
    "fingerprint",
    "make_plan",
    "plan_run",
    "reward_of",
    "warm_start_key",
]
